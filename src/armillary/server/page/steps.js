// The latest steps, one column each: prefill tokens, decode tokens and duration in three lanes over one axis.

import { colours, el } from "./dom.js";
import { addCursor, prepare } from "./canvas.js";
import { count, seconds, short } from "./format.js";

const LANES = [
  { name: "prefill tokens", colour: "prefill", value: (step) => step.prefill_tokens, show: short, share: 0.36 },
  { name: "decode tokens", colour: "decode", value: (step) => step.decode_tokens, show: short, share: 0.36 },
  { name: "duration", colour: "third", value: (step) => step.ended_s - step.started_s, show: seconds, share: 0.28 },
];
const LEFT = 6;
const TOP = 17;

export class Steps {
  constructor(canvas) {
    this.canvas = canvas;
    this.steps = [];
    this.place = -1;
    this.repaint();
    addCursor(canvas, {
      find: (x) => {
        const place = Math.floor((x - LEFT) / this.width);
        return place >= 0 && place < this.steps.length ? place : -1;
      },
      move: (place, dx) => (place < 0 ? this.steps.length - 1 : Math.max(0, Math.min(this.steps.length - 1, place + dx))),
      centre: (place) => ({ x: LEFT + (place + 0.5) * this.width, y: 4 }),
      tell: (place) => this.#tell(this.steps[place]),
      onPlace: (place) => {
        this.place = place;
        this.draw();
      },
    });
  }

  repaint() {
    [this.soft, this.line, this.bad, this.ink, ...this.lanes] = colours("soft", "line", "bad", "ink", ...LANES.map((lane) => lane.colour));
    this.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  }

  update(feed) {
    this.steps = feed.steps;
    const last = this.steps.at(-1);
    if (document.activeElement !== this.canvas) this.canvas.setAttribute("aria-label", last
      ? `The latest ${this.steps.length} steps; the last is ${last.index} with ${last.prefill_tokens} prefill and ${last.decode_tokens} decode tokens. The arrow keys go from step to step.`
      : "No step yet.");
    this.draw();
  }

  draw() {
    if (!this.canvas.clientWidth) return;
    const { context, width, height } = prepare(this.canvas);
    const room = width - LEFT * 2;
    this.width = Math.max(2, Math.min(14, room / Math.max(60, this.steps.length)));
    const shown = this.steps.length * this.width > room ? this.steps.slice(-Math.floor(room / this.width)) : this.steps;
    this.steps = shown;
    context.font = this.font;
    let base = 0;
    for (const [number, lane] of LANES.entries()) {
      const tall = height * lane.share;
      base += tall;
      const most = Math.max(...shown.map(lane.value), 0);
      context.fillStyle = this.soft;
      context.textAlign = "left";
      context.fillText(lane.name, LEFT, base - tall + 12);
      context.textAlign = "right";
      if (most > 0) context.fillText(`up to ${lane.show(most)}`, width - LEFT, base - tall + 12);
      context.fillStyle = this.line;
      context.fillRect(LEFT, base - 1, room, 1);
      for (const [place, step] of shown.entries()) {
        const value = lane.value(step);
        if (!(value > 0)) continue;
        const high = Math.max(1.5, (value / most) * (tall - TOP - 3));
        context.globalAlpha = this.place < 0 || this.place === place ? 1 : 0.4;
        context.fillStyle = this.lanes[number];
        const left = Math.round(LEFT + place * this.width);
        const right = Math.round(LEFT + (place + 1) * this.width);
        context.fillRect(left, base - 1 - high, right - left - (this.width >= 4 ? 1 : 0), high);
      }
      context.globalAlpha = 1;
    }
    context.fillStyle = this.bad;
    for (const [place, step] of shown.entries()) {
      if (step.preempted) context.fillRect(LEFT + place * this.width, height - 3, Math.max(2, this.width - 1), 3);
    }
  }

  #tell(step) {
    if (!step) return null;
    const tokens = [step.prefill_tokens ? `${count(step.prefill_tokens)} prefill` : "", step.decode_tokens ? `${count(step.decode_tokens)} decode` : ""].filter(Boolean);
    return [
      el("div", {}, `Step ${count(step.index)}: ${tokens.join(" + ") || "no"} tokens`),
      el("div", { class: "quiet-text" }, [`${step.sequences} sequence${step.sequences === 1 ? "" : "s"}`, seconds(step.ended_s - step.started_s), step.admitted ? `${step.admitted} admitted` : "", step.preempted ? `${step.preempted} preempted` : ""].filter(Boolean).join(" · ")),
    ];
  }
}
