// Where one request's time went: its phases as a bar with numbers, and every step on an axis.

import { $, colours, el, fill, iconButton } from "./dom.js";
import { getJson, ServerError } from "./api.js";
import { addCursor, prepare } from "./canvas.js";
import { count, nanoseconds, percent } from "./format.js";
import { colourOf, order, PHASES, phaseBar } from "./phases.js";

const LANE = 34;

export class Timeline {
  constructor() {
    this.dialog = $("timeline-dialog");
    this.dialog.addEventListener("close", () => {
      clearTimeout(this.due);
      this.id = null;
      this.onClose?.();
      this.onClose = null;
    });
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
    document.addEventListener("theme", () => this.found && this.dialog.open && this.#draw(this.found));
  }

  open(id, onClose) {
    this.onClose = onClose;
    this.found = null;
    this.id = id;
    this.#frame(el("p", { class: "quiet-text" }, "Asking the server…"));
    if (!this.dialog.open) this.dialog.showModal();
    this.#load(id);
  }

  close() {
    this.onClose = null;
    if (this.dialog.open) this.dialog.close();
  }

  async #load(id) {
    clearTimeout(this.due);
    try {
      const found = await getJson(`v1/requests/${encodeURIComponent(id)}/timeline`);
      if (this.id !== id) return;
      this.found = found;
      this.#draw(found);
      if (found.state !== "ended") this.due = setTimeout(() => this.#load(id), 700);
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      if (this.id === id) this.#frame(el("p", { class: "problem", role: "alert" }, error.message));
    }
  }

  #frame(...content) {
    const had = this.dialog.contains(document.activeElement) && document.activeElement.dataset.keep;
    fill(
      this.dialog,
      el("div", { class: "timeline-head" }, el("h2", { id: "timeline-title" }, "Timeline of a request"), iconButton("close", "Close", () => this.dialog.close(), { "data-keep": "close" })),
      ...content);
    if (had) this.dialog.querySelector(`[data-keep="${had}"]`)?.focus();
  }

  #draw(found) {
    const whole = Math.max(1, found.wall_ns);
    const state = found.state === "ended" ? (found.finish_reason ?? "ended") : found.state;
    const pill = el("span", { class: `pill ${found.state === "ended" ? (found.finish_reason === "error" ? "bad" : "") : "live"}` }, state);
    const facts = el("p", { class: "timeline-facts" }, pill, el("code", {}, found.id ?? found.request_id), el("span", { class: "quiet-text" }, `${found.model ?? "no model"} · ${found.endpoint} · ${new Date(found.created * 1000).toLocaleTimeString()}`));
    const rows = order(found.phases_ns).map((name) => {
      const swatch = el("i", { class: "swatch" });
      swatch.style.background = colourOf(name);
      return el("tr", {}, el("th", { scope: "row" }, swatch, PHASES[name]?.[0] ?? name), el("td", { class: "num" }, nanoseconds(found.phases_ns[name])), el("td", { class: "num" }, percent(found.phases_ns[name] / whole, 1)), el("td", { class: "quiet-text" }, PHASES[name]?.[2] ?? ""));
    });
    this.#frame(
      facts,
      el("p", { class: "timeline-sum" }, el("b", { class: "num" }, nanoseconds(found.wall_ns)), found.state === "ended" ? " from arrival to the end" : " until now", found.detokenise_ns ? el("span", { class: "quiet-text" }, ` · ${nanoseconds(found.detokenise_ns)} of it making text, mostly beside steps`) : null),
      phaseBar(found.phases_ns, whole),
      el("div", { class: "table-scroll" }, el("table", { class: "phases" },
        el("thead", { class: "sr" }, el("tr", {}, el("th", {}, "Phase"), el("th", {}, "Time"), el("th", {}, "Share"), el("th", {}, "Meaning"))), el("tbody", {}, ...rows))),
      found.complete === false ? el("p", { class: "quiet-text" }, "It began before the oldest step that is remembered, so the first part has no detail.") : null,
      ...(found.choices ?? []).map((choice) => this.#choice(choice, whole, found.choices.length > 1)));
    for (const lane of this.dialog.querySelectorAll("canvas")) lane.draw();
  }

  #choice(choice, whole, several) {
    const canvas = el("canvas", { class: "lane", role: "img", tabIndex: 0, "data-keep": `lane-${choice.index}` });
    const columns = Object.fromEntries(choice.columns.map((name, place) => [name, place]));
    const spans = choice.spans.map((span) => ({ phase: span[columns.phase], start: span[columns.start_ns], end: span[columns.end_ns], step: span[columns.step], tokens: span[columns.tokens] }));
    const steps = spans.filter((span) => span.step !== null).length;
    canvas.setAttribute("aria-label", `${spans.length} spans over ${nanoseconds(whole)}; the arrow keys go from one to the next.`);
    const x = (at) => (at / whole) * canvas.clientWidth;
    let marked = -1;
    canvas.draw = () => {
      const { context, width } = prepare(canvas);
      const [soft, line] = colours("soft", "line-strong");
      for (const [place, span] of spans.entries()) {
        context.globalAlpha = marked < 0 || marked === place ? 1 : 0.35;
        context.fillStyle = colourOf(span.phase);
        const left = x(span.start);
        const inset = span.step === null ? 8 : 0; // steps stand taller than what lies between them
        context.fillRect(left, inset, Math.max(x(span.end) - left - (x(span.end) - left > 3 ? 0.7 : 0), 0.6), LANE - inset * 2);
      }
      context.globalAlpha = 1;
      context.fillStyle = line;
      context.fillRect(0, LANE + 2, width, 1);
      context.fillStyle = soft;
      context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
      context.fillText("0", 0, LANE + 15);
      context.textAlign = "center";
      context.fillText(nanoseconds(whole / 2), width / 2, LANE + 15);
      context.textAlign = "right";
      context.fillText(nanoseconds(whole), width, LANE + 15);
      context.textAlign = "left";
    };
    addCursor(canvas, {
      find: (at) => spans.findLastIndex((span) => x(span.start) <= at),
      move: (place, dx, dy) => Math.max(0, Math.min(spans.length - 1, place + dx + dy)),
      centre: (place) => ({ x: (x(spans[place].start) + x(spans[place].end)) / 2, y: 0 }),
      tell: (place) => {
        const span = spans[place];
        return [
          el("div", {}, `${PHASES[span.phase]?.[0] ?? span.phase}: ${nanoseconds(span.end - span.start)}`),
          el("div", { class: "quiet-text" }, [`from ${nanoseconds(span.start)}`, span.step === null ? "" : `step ${count(span.step)}`, span.tokens ? `${count(span.tokens)} token${span.tokens === 1 ? "" : "s"}` : ""].filter(Boolean).join(" · ")),
        ];
      },
      onPlace: (place) => {
        marked = place;
        canvas.draw();
      },
    });
    return el("section", { class: "choice" },
      el("h3", {}, several ? `Choice ${choice.index}` : "Step by step"),
      el("p", { class: "quiet-text num" }, `${count(choice.prompt_tokens)} prompt tokens, ${count(choice.cached_tokens)} of them cached · ${count(choice.generated_tokens)} generated · ${count(steps)} steps`),
      canvas);
  }
}
