// The playground: a conversation, what is sent of it, and how the answer comes in.

import { $, el, say } from "./dom.js";
import { orAborted, ServerError, stream } from "./api.js";
import { MessageView } from "./message.js";
import { FieldProblem, Settings } from "./settings.js";

const narrow = matchMedia("(max-width: 980px)");
const TRIES = ["Hello! What can you do?", "What is 17 + 25?", "Sort these words: pear, apple, fig."];

export class Chat {
  constructor(models) {
    this.models = models;
    this.messages = [];
    this.views = new Map();
    this.running = null;
    this.numbers = 0;
    this.settings = new Settings(() => this.#openSettings(false));
    this.settings.showRequest(() => this.#body());
    this.actions = {
      again: (message) => this.#again(message),
      edited: (message, text) => this.#edited(message, text),
      results: (message, results) => this.#results(message, results),
    };
    const prompt = $("prompt");
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#submit();
    });
    prompt.addEventListener("input", () => this.#fit());
    $("stop-button").addEventListener("click", () => this.running?.abort());
    $("new-button").addEventListener("click", () => this.#clear());
    $("settings-button").addEventListener("click", (event) => {
      event.stopPropagation(); // else it would count as a click beside the settings
      this.#openSettings(!$("settings").classList.contains("open"));
    });
    $("settings").addEventListener("keydown", (event) => {
      if (event.key === "Escape" && narrow.matches) this.#openSettings(false);
    });
    narrow.addEventListener("change", () => {
      $("settings").classList.remove("open");
      document.querySelector(".talk").inert = false;
    });
    $("chat-view").addEventListener("click", (event) => {
      if ($("settings").classList.contains("open") && !$("settings").contains(event.target) && event.target.isConnected) this.#openSettings(false);
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.running && !$("chat-view").hidden && !document.querySelector("dialog[open]")) this.running.abort();
    });
    this.#welcome();
  }

  /** Another model is asked from now on. */
  modelChanged() {
    this.settings.redraw();
  }

  shown() {
    if (!narrow.matches) $("prompt").focus({ preventScroll: true });
  }

  #openSettings(open) {
    $("settings").classList.toggle("open", open);
    document.querySelector(".talk").inert = open && narrow.matches;
    $("settings-button").setAttribute("aria-expanded", String(open));
    if (open) $("settings").querySelector("textarea, input, button").focus({ preventScroll: true });
    else $("settings-button").focus();
  }

  #welcome() {
    const ask = (text) => el("button", { type: "button", class: "quiet", onclick: () => this.#say(text) }, text);
    $("conversation").replaceChildren(el("div", { class: "welcome" },
      el("p", { class: "welcome-title" }, "Talk to the model"),
      el("p", { class: "quiet-text" }, "Every option of the API is in the settings. Each reply can be opened token by token, and its time looked into step by step."),
      el("div", { class: "row tries" }, ...TRIES.map(ask))));
  }

  #clear() {
    this.running?.abort();
    this.messages = [];
    this.views.clear();
    this.#welcome();
    this.settings.redraw();
    $("prompt").focus();
    say("A new chat");
  }

  #fit() {
    const prompt = $("prompt");
    prompt.style.height = "auto";
    prompt.style.height = `${Math.min(prompt.scrollHeight + 2, innerHeight * 0.35)}px`;
  }

  #submit() {
    const text = $("prompt").value.trim();
    if (!text || this.running) return;
    if (this.#say(text)) {
      $("prompt").value = "";
      this.#fit();
    }
  }

  /** Say something as the user and have it answered. */
  #say(text) {
    if (this.running) return false;
    this.#closeCalls();
    this.#add({ role: "user", content: text });
    this.#answer();
    return true;
  }

  #add(message) {
    if (!this.messages.length) $("conversation").replaceChildren();
    message.number = this.numbers += 1;
    this.messages.push(message);
    const view = new MessageView(message, this.actions);
    this.views.set(message, view);
    $("conversation").append(view.node);
    this.settings.redraw();
    this.#toEnd(true);
    return view;
  }

  /** Forget everything from a message on. */
  #cut(message) {
    const at = this.messages.indexOf(message);
    for (const gone of this.messages.splice(at)) {
      this.views.get(gone).node.remove();
      this.views.delete(gone);
    }
  }

  #again(message) {
    if (this.running) return;
    this.#cut(message);
    this.#answer();
  }

  #edited(message, text) {
    if (this.running) return;
    this.#cut(message);
    this.#say(text);
  }

  #results(message, results) {
    if (this.running) return;
    message.open = false;
    this.views.get(message).refresh();
    for (const [place, call] of message.calls.entries()) {
      this.#add({ role: "tool", toolCallId: call.id, name: call.name, content: results[place].trim() || "null" });
    }
    this.#answer();
  }

  /** Calls that nobody answered stay calls, but can no longer be answered. */
  #closeCalls() {
    for (const message of this.messages.filter((each) => each.open)) {
      message.open = false;
      this.views.get(message).refresh();
      for (const call of message.calls) this.#add({ role: "tool", toolCallId: call.id, name: call.name, content: "null" });
    }
  }

  #body() {
    const system = this.settings.system;
    const messages = system ? [{ role: "system", content: system }] : [];
    for (const message of this.messages) {
      if (message.live || message.error) continue;
      if (message.role === "tool") messages.push({ role: "tool", tool_call_id: message.toolCallId, content: message.content });
      else if (message.calls?.length && message.ended === "tool_calls") {
        const calls = message.calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } }));
        messages.push({ role: "assistant", content: message.content || null, tool_calls: calls });
      } else if (message.content) messages.push({ role: message.role, content: message.content });
    }
    return { model: this.models.chosen, messages, stream: true, stream_options: { include_usage: true }, ...this.settings.body() };
  }

  async #answer() {
    this.settings.clearMarks();
    const message = { role: "assistant", content: "", reasoning: "", calls: [], live: true, pieces: 0 };
    const view = this.#add(message);
    const control = (this.running = new AbortController());
    this.#busy(true);
    const began = performance.now();
    try {
      await orAborted(this.models.known, control.signal); // who is quick to type must not ask a model that is gone
      const body = this.#body();
      for await (const chunk of stream("v1/chat/completions", { body, signal: control.signal, mustEnd: true })) {
        this.#take(message, view, chunk, (performance.now() - began) / 1000);
        view.refresh();
        this.#toEnd(false);
      }
      say(`The model: ${(message.content || "asks for a tool").slice(0, 600)}`);
    } catch (error) {
      if (error.name === "AbortError") {
        message.ended = "stopped";
        say("Stopped");
      } else if (error instanceof ServerError || error instanceof FieldProblem) {
        message.error = error;
        this.#tell(error);
      } else throw error;
    } finally {
      message.live = false;
      message.took = (performance.now() - began) / 1000;
      message.open = message.calls.length > 0 && message.ended === "tool_calls";
      this.running = null;
      this.#busy(false);
      view.draw();
      this.settings.redraw();
      this.#toEnd(false);
    }
  }

  #take(message, view, chunk, at) {
    message.id = chunk.id ?? message.id;
    if (chunk.usage) message.usage = chunk.usage;
    for (const choice of chunk.choices ?? []) {
      if (choice.index !== 0) continue; // one reply is shown; n comes in through "More fields" only
      const delta = choice.delta ?? {};
      const thought = delta.reasoning_content ?? delta.reasoning ?? "";
      if (delta.content || thought || delta.tool_calls) {
        message.pieces += 1;
        message.ttft ??= at;
      }
      message.content += delta.content ?? "";
      message.reasoning += thought;
      if (choice.logprobs?.content?.length) view.addTokens(choice.logprobs.content);
      for (const piece of delta.tool_calls ?? []) {
        const call = (message.calls[piece.index] ??= { id: "", name: "", arguments: "" });
        call.id = piece.id ?? call.id;
        call.name += piece.function?.name ?? "";
        call.arguments += piece.function?.arguments ?? "";
      }
      if (choice.finish_reason) message.ended = choice.finish_reason;
    }
  }

  #tell(error) {
    if (this.settings.mark(error.param, error.message) && !narrow.matches) {
      this.settings.form.querySelector("[aria-invalid]").closest(".field").scrollIntoView({ block: "nearest" });
    }
  }

  #busy(busy) {
    const stopHadFocus = document.activeElement === $("stop-button");
    const sendHadFocus = document.activeElement === $("send-button");
    $("send-button").hidden = busy;
    $("stop-button").hidden = !busy;
    $("composer-hint").textContent = busy ? "Esc stops" : "Enter sends · Shift+Enter starts a line";
    if (busy && sendHadFocus) $("stop-button").focus();
    if (!busy && stopHadFocus) $("prompt").focus();
  }

  /** Follow the reply, unless the reader has scrolled away from the end. */
  #toEnd(always) {
    const box = $("conversation");
    const near = box.scrollHeight - box.scrollTop - box.clientHeight < 120;
    if (always || near) requestAnimationFrame(() => box.scrollTo({ top: box.scrollHeight }));
  }
}
