// Some requests at once, so that there is something to watch: they share the beginning of their prompt.

import { orAborted, stream } from "./api.js";

const OPENING = "You are a patient guide to an archipelago. Answer in plain words, take your time, and say what you are unsure of.";
const QUESTIONS = ["Tell me about the largest island.", "Who lives by the sea?", "What grows there?", "How does one get from island to island?", "Name the harbours.", "What is traded?", "Which island is the oldest?", "Describe a journey."];

const FOR_MS = 30_000;

const STREAMS = 4; // browsers open six connections to a host, and the live view needs two of them

/** Keeps so many sequences in flight for half a minute, or until it is told to stop: few requests, of several choices. */
export class Load {
  constructor(onChange) {
    this.onChange = onChange;
    this.control = null;
    this.failed = null;
  }

  get on() {
    return this.control !== null;
  }

  start(models, sequences) {
    this.stop();
    const control = (this.control = new AbortController());
    this.failed = null;
    const choices = Math.max(1, Math.round(sequences / STREAMS));
    const each = Array.from({ length: STREAMS }, (_, number) => this.#one(models, number, choices, control.signal));
    Promise.allSettled(each).then(() => this.control === control && this.stop());
    this.onChange(this);
  }

  stop() {
    this.control?.abort();
    this.control = null;
    this.onChange(this);
  }

  async #one(models, number, choices, signal) {
    await orAborted(models.known, signal); // a load that is stopped ends here
    const until = performance.now() + FOR_MS;
    for (let turn = 0; performance.now() < until && !signal.aborted; turn += 1) {
      const question = QUESTIONS[(number + turn * 3) % QUESTIONS.length];
      const body = {
        model: models.chosen, n: choices, stream: true, ignore_eos: true, max_tokens: 48 + ((number * 29 + turn * 17) % 80), temperature: 1,
        messages: [{ role: "system", content: OPENING }, { role: "user", content: `${question} (${number + 1}.${turn + 1})` }],
      };
      try {
        for await (const _ of stream("v1/chat/completions", { body, signal })); // the tokens are for the engine's view
      } catch (error) {
        if (!signal.aborted) {
          this.failed = error;
          this.onChange(this);
        }
        return;
      }
    }
  }
}
