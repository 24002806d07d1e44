// How one message looks: text, reasoning, tokens, tool calls, errors, and what it cost.

import { copy, el, icon, iconButton, onFrame } from "./dom.js";
import { renderMarkdown } from "./markdown.js";
import { TokenView } from "./tokens.js";
import { count, seconds, short } from "./format.js";

const WHY = { stop: "", length: "cut at the token limit", tool_calls: "asks for tools", content_filter: "filtered", deadline: "ran out of time" };

/** The view of one message of the conversation. `actions` are what its buttons do. */
export class MessageView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.body = el("div", { class: "body" });
    this.text = el("div", { class: "text" });
    this.calls = el("div", { class: "calls" });
    this.foot = el("div", { class: "foot" });
    this.node = el("article", { class: `message ${message.role}`, "aria-label": message.role === "user" ? "You" : message.role === "tool" ? "Tool result" : "Model" }, this.body, this.foot);
    this.refresh = onFrame(() => this.draw());
    this.draw();
  }

  /** Entries of `logprobs.content`, as they come. */
  addTokens(entries) {
    if (!this.tokens) {
      this.tokens = new TokenView();
      this.asTokens = true;
    }
    this.tokens.add(entries);
  }

  draw() {
    const { message } = this;
    if (message.role === "assistant") this.#assistant();
    else this.#plain();
    this.node.classList.toggle("live", Boolean(message.live));
    this.node.setAttribute("aria-busy", String(Boolean(message.live)));
    this.#foot();
  }

  #plain() {
    if (this.editing) return;
    const { message } = this;
    const head = message.role === "tool" ? [el("p", { class: "call-head" }, icon("tool"), el("code", {}, message.name ?? "tool"), " answered")] : [];
    this.text.textContent = message.content;
    this.body.replaceChildren(...head, this.text);
  }

  #assistant() {
    const { message } = this;
    if (message.reasoning && !this.reasoning) {
      this.thought = el("div", { class: "thought" });
      this.reasoning = el("details", { class: "reasoning" }, (this.thoughtHead = el("summary", {})), this.thought);
    }
    if (this.reasoning) {
      this.thoughtHead.textContent = message.live && !message.content ? "Reasoning…" : `Reasoning${message.usage?.completion_tokens_details?.reasoning_tokens ? ` · ${count(message.usage.completion_tokens_details.reasoning_tokens)} tokens` : ""}`;
      this.thought.textContent = message.reasoning;
    }
    if (!this.asTokens) renderMarkdown(this.text, message.content);
    this.#drawCalls();
    if (!message.live && !message.content && !message.calls?.length && !message.error) this.nothing ??= el("p", { class: "quiet-text" }, message.ended === "stopped" ? "Stopped before the first word." : "The model ended at once, with nothing to say.");
    const wanted = [this.nothing, this.reasoning, this.asTokens ? this.tokens.node : this.text, message.calls?.length ? this.calls : null, message.error ? this.#error() : null].filter(Boolean);
    if (wanted.length !== this.body.childNodes.length || wanted.some((node, place) => node !== this.body.childNodes[place])) this.body.replaceChildren(...wanted);
  }

  #error() {
    if (this.errorFor === this.message.error) return this.errorNode;
    const { error } = this.message;
    const facts = [error.status ? `status ${error.status}` : null, error.code, error.param ? `field ${error.param}` : null, error.retryAfter ? `try again in ${error.retryAfter} s` : null, error.requestId].filter(Boolean);
    this.errorFor = error;
    this.errorNode = el("div", { class: "problem", role: "alert" }, el("p", {}, error.message), facts.length ? el("p", { class: "facts" }, facts.join(" · ")) : null,
      el("button", { type: "button", class: "quiet", onclick: () => this.actions.again(this.message) }, icon("again"), "Try again"));
    return this.errorNode;
  }

  #drawCalls() {
    const { message } = this;
    this.callViews ??= [];
    for (const [place, call] of (message.calls ?? []).entries()) {
      const view = (this.callViews[place] ??= this.#makeCall(place));
      view.name.textContent = call.name;
      let shown = call.arguments;
      if (!message.live) {
        try {
          shown = JSON.stringify(JSON.parse(call.arguments), null, 2);
        } catch {
          // Shown as it came.
        }
      }
      view.given.textContent = shown;
      view.answer.hidden = Boolean(message.live) || !message.open;
    }
    if (message.open && !message.live && message.calls?.length) {
      this.sendResults ??= el("button", { type: "button", class: "primary", onclick: () => this.actions.results(message, this.callViews.map((view) => view.result.value)) }, "Send results");
      this.calls.append(this.sendResults);
    } else this.sendResults?.remove();
  }

  #makeCall(place) {
    const id = `call-${this.message.number}-${place}`;
    const view = {
      name: el("code", {}),
      given: el("pre", { tabIndex: 0 }),
      result: el("textarea", { id, rows: 2, class: "code", spellcheck: false, placeholder: '{"result": …}' }),
    };
    view.answer = el("div", { class: "field" }, el("label", { htmlFor: id }, "Result"), view.result);
    this.calls.append(el("div", { class: "call" }, el("p", { class: "call-head" }, icon("tool"), view.name), view.given, view.answer));
    return view;
  }

  #foot() {
    const { message, actions } = this;
    const state = `${message.live} ${message.ended} ${this.asTokens} ${this.editing} ${Boolean(message.error)} ${message.live ? message.pieces : ""} ${message.usage?.completion_tokens}`;
    if (state === this.footState) return;
    this.footState = state;
    const buttons = [];
    if (this.editing) buttons.length = 0;
    else if (message.role === "user") {
      buttons.push(iconButton("edit", "Edit and send again", () => this.#edit()), iconButton("copy", "Copy the message", () => copy(message.content, "Message")));
    } else if (message.role === "assistant" && !message.live) {
      if (!message.error) buttons.push(iconButton("again", "Regenerate", () => actions.again(message)));
      if (message.content) buttons.push(iconButton("copy", "Copy the reply", () => copy(message.content, "Reply")));
      if (this.tokens) buttons.push(iconButton("tokens", this.asTokens ? "Show as text" : "Show as tokens", () => this.#toggleTokens(), { "aria-pressed": String(Boolean(this.asTokens)) }));
      if (message.id) buttons.push(el("a", { class: "plain", href: `#/request/${encodeURIComponent(message.id)}`, title: "Where its time went", "aria-label": "Timeline of this reply" }, icon("clock")));
    }
    this.foot.replaceChildren(el("span", { class: "actions" }, ...buttons), el("span", { class: "cost num" }, this.#cost()));
  }

  #cost() {
    const { message } = this;
    if (message.role !== "assistant") return "";
    if (message.live) return message.pieces ? `${seconds(message.ttft)} to the first token` : "waiting…";
    const facts = [];
    const usage = message.usage;
    if (usage) {
      const cached = usage.prompt_tokens_details?.cached_tokens;
      facts.push(`${count(usage.prompt_tokens)} in${cached ? ` (${count(cached)} cached)` : ""}`, `${count(usage.completion_tokens)} out`);
    }
    if (message.ttft) facts.push(`first after ${seconds(message.ttft)}`);
    if (usage?.completion_tokens > 1 && message.took > message.ttft) facts.push(`${short((usage.completion_tokens - 1) / (message.took - message.ttft))} tokens/s`);
    if (message.ended === "stopped") facts.push("stopped");
    else if (WHY[message.ended] ?? message.ended) facts.push(WHY[message.ended] ?? message.ended);
    return facts.join(" · ");
  }

  #toggleTokens() {
    this.asTokens = !this.asTokens;
    this.draw();
    this.foot.querySelector("[aria-pressed]")?.focus();
  }

  #edit() {
    this.editing = true;
    const area = el("textarea", { rows: Math.min(10, this.message.content.split("\n").length + 1), value: this.message.content, "aria-label": "Edit the message" });
    const done = (text) => {
      this.editing = false;
      this.draw();
      if (text !== null) this.actions.edited(this.message, text);
      else this.foot.querySelector("button")?.focus();
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") done(null);
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (area.value.trim()) done(area.value.trim());
      }
    });
    this.body.replaceChildren(area, el("div", { class: "row end" },
      el("button", { type: "button", class: "quiet", onclick: () => done(null) }, "Cancel"),
      el("button", { type: "button", class: "primary", onclick: () => area.value.trim() && done(area.value.trim()) }, "Send again")));
    this.#foot();
    area.focus();
  }
}
