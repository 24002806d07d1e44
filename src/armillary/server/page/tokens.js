// A reply token by token: tinted where the model was unsure, with the alternatives on hover, focus and tap.

import { el, hideCard, say, showCard } from "./dom.js";
import { probability, spelling } from "./format.js";

const FLOOR = -9999; // stands for minus infinity

/** Shows the tokens of one reply; `add` takes entries of `logprobs.content` as they come. */
export class TokenView {
  constructor() {
    this.entries = [];
    this.active = 0;
    this.decoder = new TextDecoder();
    this.node = el("div", {
      class: "tokens", tabIndex: 0, role: "group",
      "aria-label": "Tokens of the reply with their probabilities; the arrow keys go from one to the next",
      onkeydown: (event) => this.#key(event),
      onfocus: () => this.#show(this.active, true),
      onblur: () => this.#leave(),
      onpointerover: (event) => this.#point(event),
      onpointerdown: (event) => this.#point(event),
      onpointerleave: () => this.#leave(),
    });
  }

  add(entries) {
    for (const entry of entries) {
      // A character may be spread over tokens: its bytes are shown with the last of them.
      const text = entry.bytes ? this.decoder.decode(new Uint8Array(entry.bytes), { stream: true }) : entry.token;
      const share = entry.logprob <= FLOOR ? 0 : Math.exp(entry.logprob);
      const node = el("span", { class: "token", data: { at: String(this.entries.length) } }, text);
      if (!text) node.classList.add("part");
      node.style.setProperty("--doubt", String(Math.round((1 - share) * 100) / 100));
      this.entries.push({ entry, share, node, text });
      this.node.append(node);
    }
  }

  #point(event) {
    const at = event.target.closest?.(".token")?.dataset.at;
    if (at !== undefined) this.#show(Number(at), false);
  }

  #key(event) {
    const move = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") hideCard();
    if (move === undefined) return;
    event.preventDefault();
    this.#show(Math.max(0, Math.min(this.entries.length - 1, this.active + move)), true);
  }

  #show(at, aloud) {
    const shown = this.entries[at];
    if (!shown) return;
    this.entries[this.active]?.node.classList.remove("active");
    this.active = at;
    shown.node.classList.add("active");
    const { left, width, top } = shown.node.getBoundingClientRect();
    showCard(left + width / 2, top, ...this.#card(shown));
    if (aloud) say(`${spelling(shown.text || shown.entry.token)}, ${probability(shown.share)}`);
  }

  #leave() {
    this.entries[this.active]?.node.classList.remove("active");
    hideCard();
  }

  #card({ entry, share }) {
    const bar = (token, value, chosen) => {
      const fill = el("i");
      fill.style.width = `${Math.round(value * 1000) / 10}%`;
      return el("li", { class: chosen ? "chosen" : "" },
        el("code", {}, spelling(token)), el("span", { class: "bar" }, fill), el("span", { class: "num" }, probability(value)));
    };
    const top = (entry.top_logprobs ?? []).map((each) => ({ token: each.token, value: each.logprob <= FLOOR ? 0 : Math.exp(each.logprob) }));
    const rows = top.map((each) => bar(each.token, each.value, each.token === entry.token));
    if (!top.some((each) => each.token === entry.token)) rows.push(bar(entry.token, share, true));
    return [
      el("div", { class: "card-head" }, el("code", {}, spelling(entry.token)), el("span", { class: "num" }, `logprob ${entry.logprob <= FLOOR ? "−∞" : String(Number(entry.logprob.toPrecision(3))).replace("-", "−")}`)),
      el("ul", { class: "odds" }, ...rows),
    ];
  }
}
