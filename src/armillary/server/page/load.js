// Some requests at once, so that there is something to watch: they share the beginning of their prompt.

import { stream } from "./api.js";

const OPENING = "You are a patient guide to an archipelago. Answer in plain words, take your time, and say what you are unsure of.";
const QUESTIONS = ["Tell me about the largest island.", "Who lives by the sea?", "What grows there?", "How does one get from island to island?", "Name the harbours.", "What is traded?", "Which island is the oldest?", "Describe a journey."];

const FOR_MS = 30_000;

/** Keeps so many requests in flight for half a minute, or until it is told to stop. */
export class Load {
  constructor(onChange) {
    this.onChange = onChange;
    this.control = null;
    this.inFlight = 0;
    this.failed = null;
  }

  get on() {
    return this.control !== null;
  }

  start(model, streams) {
    this.stop();
    const control = (this.control = new AbortController());
    this.failed = null;
    const each = Array.from({ length: streams }, (_, number) => this.#one(model, number, control.signal));
    Promise.allSettled(each).then(() => this.control === control && this.stop());
    this.onChange(this);
  }

  stop() {
    this.control?.abort();
    this.control = null;
    this.onChange(this);
  }

  async #one(model, number, signal) {
    const until = performance.now() + FOR_MS;
    for (let turn = 0; performance.now() < until && !signal.aborted; turn += 1) {
      const question = QUESTIONS[(number + turn * 3) % QUESTIONS.length];
      const body = {
        model, stream: true, ignore_eos: true, max_tokens: 48 + ((number * 29 + turn * 17) % 80), temperature: 1,
        messages: [{ role: "system", content: OPENING }, { role: "user", content: `${question} (${number + 1}.${turn + 1})` }],
      };
      this.inFlight += 1;
      this.onChange(this);
      try {
        for await (const _ of stream("v1/chat/completions", { body, signal })); // the tokens are for the engine's view
      } catch (error) {
        if (!signal.aborted) {
          this.failed = error;
          return;
        }
      } finally {
        this.inFlight -= 1;
        this.onChange(this);
      }
    }
  }
}
