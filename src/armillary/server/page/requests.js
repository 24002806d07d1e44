// The requests in flight and the latest that ended; each leads to its timeline.

import { el, icon } from "./dom.js";
import { getJson, ServerError } from "./api.js";
import { count, seconds } from "./format.js";
import { ownerColour } from "./kvmap.js";

const EVERY_MS = 1000;
const SHOWN = 40;
const BAD = new Set(["error", "refused"]);

export class Requests {
  constructor(body, empty) {
    this.body = body;
    this.empty = empty;
    this.rows = new Map();
    this.owners = new Map();
  }

  start(model) {
    this.stop();
    const turn = (this.turn = {});
    const again = async () => {
      if (this.turn !== turn) return;
      try {
        if (!document.hidden && !this.paused) {
          const found = await getJson(`v1/requests?limit=${SHOWN}${model ? `&model=${encodeURIComponent(model)}` : ""}`);
          if (this.turn === turn) this.#draw(found.data);
        }
      } catch (error) {
        if (!(error instanceof ServerError)) throw error;
        if (error.status === 401) return;
      }
      setTimeout(again, EVERY_MS);
    };
    again();
  }

  stop() {
    this.turn = null;
  }

  /** Who holds which blocks, and how far the running ones are, from the engine's stream. */
  update(sequences) {
    this.owners = new Map(sequences.map((each) => [each.id, each]));
    for (const [name, row] of this.rows) {
      const sequence = this.owners.get(name);
      this.#mark(row, sequence);
      if (sequence && row.found.choices === 1) this.#progress(row, sequence.generated_tokens, sequence.max_tokens);
    }
  }

  #draw(data) {
    const seen = new Set();
    for (const found of data) {
      const name = found.id ?? found.request_id;
      seen.add(name);
      if (!this.rows.has(name)) this.rows.set(name, this.#row(name));
      this.#fill(this.rows.get(name), found);
    }
    for (const [name, row] of this.rows) {
      if (seen.has(name)) continue;
      row.node.remove();
      this.rows.delete(name);
    }
    const wanted = data.map((found) => this.rows.get(found.id ?? found.request_id).node);
    if (wanted.some((node, place) => this.body.children[place] !== node)) {
      const focused = this.body.contains(document.activeElement) ? document.activeElement : null;
      this.body.replaceChildren(...wanted);
      focused?.focus({ preventScroll: true });
    }
    this.empty.hidden = data.length > 0;
  }

  #row(name) {
    const cell = (kind = "") => el("td", { class: kind });
    const row = {
      swatch: el("i", { class: "swatch" }),
      state: el("span", { class: "pill" }),
      cells: { prompt: cell("num"), cached: cell("num"), out: cell("num out"), first: cell("num"), itl: cell("num"), wall: cell("num") },
      fill: el("i"),
      text: el("span"),
    };
    row.cells.out.append(row.text, el("span", { class: "bar" }, row.fill));
    const link = el("a", { href: `#/request/${encodeURIComponent(name)}`, "aria-label": `Timeline of request ${name}` }, row.swatch, el("code", {}, name.slice(-10)), icon("clock"));
    row.node = el("tr", {}, el("th", { scope: "row" }, link), el("td", {}, row.state), ...Object.values(row.cells));
    return row;
  }

  #fill(row, found) {
    row.found = found;
    const live = found.state !== "ended";
    const state = live ? found.state : found.finish_reason === "refused" ? (found.error ?? "refused") : (found.finish_reason ?? "ended");
    row.state.textContent = state;
    row.state.className = `pill ${live ? "live" : BAD.has(found.finish_reason) ? "bad" : ""}`;
    row.node.title = found.error ? `${state}: ${found.error}` : "";
    row.cells.prompt.textContent = count(found.prompt_tokens);
    row.cells.cached.textContent = count(found.cached_tokens);
    row.cells.first.textContent = seconds(found.ttft_s);
    row.cells.itl.textContent = seconds(found.itl_s);
    row.cells.wall.textContent = seconds(found.wall_s);
    this.#progress(row, found.completion_tokens, found.max_tokens && found.max_tokens * (found.choices ?? 1));
    this.#mark(row, this.owners.get(found.id));
  }

  #progress(row, done, most) {
    row.text.textContent = count(done);
    row.fill.style.width = most ? `${Math.min(100, (100 * (done ?? 0)) / most)}%` : "0";
  }

  #mark(row, sequence) {
    row.swatch.style.background = sequence ? ownerColour(sequence.owner) : "transparent";
  }
}
