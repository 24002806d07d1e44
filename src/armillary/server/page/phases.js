// The phases of a request's time: their names, colours and meanings.

import { el } from "./dom.js";
import { nanoseconds } from "./format.js";

export const PHASES = {
  received: ["Received", "oklch(0.66 0.04 250)", "at the server, not yet with the engine: body, template, tokenisation, grammar"],
  queued: ["Queued", "oklch(0.62 0.11 330)", "in the engine's queue, never admitted yet"],
  prefill: ["Prefill", "oklch(0.66 0.12 240)", "in a step that computes its prompt"],
  waiting: ["Waiting for budget", "oklch(0.63 0.14 300)", "admitted, while a step ran without it"],
  preempted: ["Preempted", "oklch(0.62 0.19 27)", "back in the queue, because its blocks were needed"],
  recompute: ["Recompute", "oklch(0.68 0.16 48)", "computing again what a preemption threw away"],
  decode: ["Decode", "oklch(0.76 0.13 83)", "in a step that computes its newest tokens"],
  between: ["Between steps", "oklch(0.62 0.015 250)", "scheduling, the journal, handing out tokens"],
  delivery: ["Delivery", "oklch(0.68 0.11 155)", "complete in the engine, while the last text is made and sent"],
  unrecorded: ["Not recorded", "oklch(0.5 0.01 250)", "before the oldest step that is remembered"],
};

export const colourOf = (phase) => PHASES[phase]?.[1] ?? "gray";

/** A bar of phases in the order in which they usually come. */
export function phaseBar(phases, whole) {
  const bar = el("div", { class: "phase-bar", role: "img" });
  const told = [];
  for (const name of order(phases)) {
    const part = el("span", { title: `${PHASES[name]?.[0] ?? name}: ${nanoseconds(phases[name])}` });
    part.style.background = colourOf(name);
    part.style.flexGrow = String(phases[name] / whole);
    bar.append(part);
    told.push(`${PHASES[name]?.[0] ?? name} ${nanoseconds(phases[name])}`);
  }
  bar.setAttribute("aria-label", `Where the time went: ${told.join(", ") || "nowhere yet"}`);
  return bar;
}

export function order(phases) {
  const known = Object.keys(PHASES);
  return Object.keys(phases).filter((name) => phases[name] > 0).sort((a, b) => (known.indexOf(a) + 1 || 99) - (known.indexOf(b) + 1 || 99));
}
