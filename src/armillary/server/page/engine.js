// The live view: numbers, the KV map, the steps, charts, requests.

import { $, el, icon, say } from "./dom.js";
import { Chart } from "./chart.js";
import { Feed } from "./feed.js";
import { drawLegend, KvMap } from "./kvmap.js";
import { Load } from "./load.js";
import { Requests } from "./requests.js";
import { Steps } from "./steps.js";
import { count, percent, seconds, short } from "./format.js";

const SAY_EVERY_MS = 15000;

export class EngineView {
  constructor(models) {
    this.models = models;
    this.feed = new Feed((feed) => this.#changed(feed), (trouble) => this.#trouble(trouble));
    this.load = new Load((load) => this.#loadChanged(load));
    this.#build();
    this.map = new KvMap(this.kvCanvas, (id) => id && (location.hash = `#/request/${encodeURIComponent(id)}`));
    this.steps = new Steps(this.stepCanvas);
    this.requests = new Requests(this.rows, this.empty);
    this.said = 0;
    document.addEventListener("theme", () => {
      for (const part of [this.map, this.steps, ...this.charts]) part.repaint();
      this.#draw();
    });
    document.addEventListener("visibilitychange", () => {
      if (!this.running) return;
      if (document.hidden) this.feed.stop();
      else this.#follow();
    });
    new ResizeObserver(() => this.#draw()).observe(this.kvCanvas);
  }

  start() {
    this.running = true;
    if (!this.models.learned) return; // it is started again once there is a model to look at
    this.requests.start(this.models.chosen);
    this.#follow();
  }

  stop() {
    this.running = false;
    this.requests.stop();
    this.feed.stop();
  }

  restart() {
    this.stop();
    this.start();
  }

  #follow() {
    if (this.models.learned && !this.paused) this.feed.start(this.models.chosen);
  }

  #build() {
    this.tiles = {};
    const tile = (name, label, hint) => {
      const value = el("dd", { class: "num" }, "–");
      const under = el("dd", { class: "under num" }, "");
      this.tiles[name] = [value, under];
      return el("div", { class: "tile", title: hint }, el("dt", {}, label), value, under);
    };
    this.pauseButton = el("button", { type: "button", class: "quiet", id: "pause-button", "aria-pressed": "false", onclick: () => this.#pause() }, icon("pause"), el("span", {}, "Pause"));
    this.loadButton = el("button", { type: "button", class: "quiet", id: "load-button", onclick: () => (this.load.on ? this.load.stop() : this.load.start(this.models, Number(this.streams.value))) }, "Make some load");
    this.streams = el("select", { "aria-label": "Sequences at once" }, ...[4, 8, 16, 32].map((each) => el("option", { value: String(each), selected: each === 8 }, `${each} at once`)));
    this.trouble = el("p", { class: "problem", role: "alert", hidden: true });
    this.loadTrouble = el("p", { class: "problem", role: "alert", hidden: true });
    this.kvCanvas = el("canvas", { id: "kv-map", class: "kv-map", role: "img", tabIndex: 0, "aria-label": "KV blocks" });
    this.stepCanvas = el("canvas", { id: "step-canvas", class: "step-canvas", role: "img", tabIndex: 0, "aria-label": "Steps" });
    this.summary = el("p", { class: "quiet-text num", id: "engine-summary" });
    const mode = (value, label) => el("label", {}, el("input", { type: "radio", name: "kv-mode", value, checked: value === "owner", onchange: () => this.#mode(value) }), el("span", {}, label));
    this.charts = [
      new Chart("Throughput", [{ name: "prefill", colour: "prefill", value: (p) => p.prefill }, { name: "decode", colour: "decode", value: (p) => p.decode }], (v) => `${short(v)}/s`),
      new Chart("Time of a step", [{ name: "median", colour: "third", value: (p) => p.stepMid }, { name: "longest", colour: "soft", value: (p) => p.stepMax }], seconds),
      new Chart("Between tokens", [{ name: "p50", colour: "decode", value: (p) => p.itl50 }, { name: "p95", colour: "soft", value: (p) => p.itl95 }], seconds),
      new Chart("Time to first token", [{ name: "p50", colour: "prefill", value: (p) => p.ttft50 }, { name: "p95", colour: "soft", value: (p) => p.ttft95 }], seconds),
      new Chart("Sequences", [{ name: "running", colour: "good", value: (p) => p.running }, { name: "waiting", colour: "bad", value: (p) => p.waiting }], short),
      new Chart("Prefix cache hits", [{ name: "now", colour: "third", value: (p) => p.hits }, { name: "overall", colour: "soft", value: (p) => p.allHits }], (v) => percent(v), 1),
    ];
    this.rows = el("tbody");
    this.empty = el("p", { class: "quiet-text" }, "No request yet. Talk in the playground, or make some load.");
    const heads = ["Request", "State", "Prompt", "Cached", "Generated", "First token", "Between", "Total"];
    $("engine-view").append(
      el("div", { class: "engine-head" },
        el("div", {}, el("h1", { id: "engine-title" }, "Engine"), this.summary),
        el("div", { class: "row" }, this.streams, this.loadButton, this.pauseButton)),
      this.trouble,
      this.loadTrouble,
      el("dl", { class: "tiles", id: "tiles" },
        tile("running", "Running", "Sequences that hold KV blocks"),
        tile("waiting", "Waiting", "Sequences in the queue"),
        tile("kv", "KV blocks held", "Of the pool's blocks"),
        tile("hits", "Cache hit rate", "Prompt tokens that the prefix index supplied, since the start"),
        tile("decode", "Decode", "Tokens generated a second"),
        tile("prefill", "Prefill", "Prompt tokens computed a second"),
        tile("ttft", "First token", "Median over requests that ended in the last minute"),
        tile("itl", "Between tokens", "Median over requests that ended in the last minute")),
      el("div", { class: "panels" },
        el("section", { class: "panel kv-panel", "aria-labelledby": "kv-title" },
          el("div", { class: "panel-head" }, el("h2", { id: "kv-title" }, "KV blocks"),
            el("fieldset", { class: "switch" }, el("legend", { class: "sr" }, "Colour of a block"), mode("owner", "by owner"), mode("sharing", "by sharing"))),
          this.kvCanvas, el("ul", { class: "legend", id: "kv-legend" })),
        el("section", { class: "panel step-panel", "aria-labelledby": "steps-title" },
          el("div", { class: "panel-head" }, el("h2", { id: "steps-title" }, "Steps"), el("span", { class: "quiet-text num", id: "step-count" })),
          this.stepCanvas)),
      el("div", { class: "charts" }, ...this.charts.map((chart) => chart.node)),
      el("section", { class: "panel", "aria-labelledby": "requests-title" },
        el("div", { class: "panel-head" }, el("h2", { id: "requests-title" }, "Requests"), el("span", { class: "quiet-text" }, "Each leads to its timeline.")),
        el("div", { class: "table-scroll", tabIndex: 0, role: "region", "aria-labelledby": "requests-title" },
          el("table", { class: "requests", id: "requests" }, el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))), this.rows)),
        this.empty));
  }

  #mode(mode) {
    this.map.mode = mode;
    this.#draw();
  }

  #pause() {
    this.paused = !this.paused;
    this.requests.paused = this.paused;
    if (this.paused) this.feed.stop();
    else this.#follow();
    this.pauseButton.setAttribute("aria-pressed", String(this.paused));
    this.pauseButton.replaceChildren(icon(this.paused ? "play" : "pause"), el("span", {}, this.paused ? "Go on" : "Pause"));
  }

  #loadChanged(load) {
    if (!this.loadButton) return;
    this.loadButton.textContent = load.on ? "Stop the load" : "Make some load";
    this.loadTrouble.hidden = !load.failed;
    this.loadTrouble.textContent = load.failed ? `The load: ${load.failed.message}` : "";
  }

  #trouble(error) {
    this.trouble.hidden = !error;
    this.trouble.textContent = error ? error.message : "";
    if (error?.status === 404) this.models.learn(); // the model was taken away
  }

  #changed(feed) {
    if (!feed.snapshot) return;
    const { snapshot } = feed;
    this.requests.update(snapshot.sequences);
    this.#tiles(feed);
    this.#draw();
    const now = performance.now();
    if (now - this.said > SAY_EVERY_MS) {
      this.said = now;
      say(`${snapshot.running} running, ${snapshot.waiting} waiting, ${snapshot.blocks.used} of ${snapshot.blocks.total} blocks held`);
    }
  }

  #draw() {
    const { feed } = this;
    if (!feed.snapshot || $("engine-view").hidden) return;
    this.map.update(feed);
    drawLegend(this.map.mode, feed.snapshot.blocks, this.map.shown);
    this.steps.update(feed);
    for (const chart of this.charts) chart.update(feed.history);
  }

  #tiles(feed) {
    const { limits, counters, blocks, window, running, waiting, model } = feed.snapshot;
    const last = feed.history.at(-1);
    const put = (name, value, under) => {
      const [main, small] = this.tiles[name];
      if (main.textContent !== value) main.textContent = value;
      if (small.textContent !== under) small.textContent = under;
    };
    put("running", count(running), `of ${count(limits.max_running)} at once`);
    put("waiting", count(waiting), waiting ? `order ${limits.order}` : "nobody waits");
    put("kv", percent(blocks.used / blocks.total, blocks.used && blocks.used < blocks.total / 10 ? 1 : 0), `${count(blocks.used)} of ${count(blocks.total)}, ${count(blocks.shared)} shared`);
    put("hits", percent(last.allHits), limits.prefix_cache ? `${short(counters.prefix_hit_tokens)} tokens reused` : "the cache is off");
    put("decode", last.decode === null ? "–" : short(last.decode), "tokens/s");
    put("prefill", last.prefill === null ? "–" : short(last.prefill), "tokens/s");
    put("ttft", seconds(window.ttft_s?.p50), `p95 ${seconds(window.ttft_s?.p95)}`);
    put("itl", seconds(window.itl_s?.p50), `p95 ${seconds(window.itl_s?.p95)}`);
    this.summary.textContent = feed.busy
      ? `${model} has been in one step for ${seconds(feed.busy)}`
      : `${model} · ${count(counters.steps)} steps · ${count(counters.generated_tokens)} tokens generated · ${count(counters.preemptions)} preemptions · blocks of ${limits.block_size} tokens`;
    $("step-count").textContent = `the latest ${count(feed.steps.length)} of ${count(counters.steps)}`;
  }
}
