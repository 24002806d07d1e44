// The engine as the stream tells it: the latest snapshot, the blocks kept up to date, and a history for the charts.

import { ServerError, stream } from "./api.js";

const HISTORY = 240;
const STEPS = 240;
export const FREE = -1;
export const CACHED = -2;

/** Watches one engine; calls `onChange` after each event and `onTrouble` with a message, or null when it is over. */
export class Feed {
  constructor(onChange, onTrouble) {
    this.onChange = onChange;
    this.onTrouble = onTrouble;
    this.#forget();
  }

  start(model) {
    this.stop();
    this.control = new AbortController();
    this.#watch(model, this.control.signal);
  }

  stop() {
    this.control?.abort();
    this.control = null;
  }

  #forget() {
    this.snapshot = null;
    this.owners = new Int32Array(0);
    this.holders = new Int32Array(0);
    this.steps = [];
    this.history = [];
    this.busy = 0;
  }

  async #watch(model, signal) {
    let wait = 500;
    while (!signal.aborted) {
      let trouble = null;
      try {
        const path = `v1/engine/stream?interval=0.5${model ? `&model=${encodeURIComponent(model)}` : ""}`;
        for await (const event of stream(path, { signal })) {
          if (event.object === "engine.busy") this.busy = event.progress_s;
          else this.#take(event);
          this.onTrouble(null);
          this.onChange(this);
          wait = 500;
        }
      } catch (error) {
        if (signal.aborted || error.name === "AbortError") return;
        if (!(error instanceof ServerError)) throw error;
        trouble = error;
      }
      if (signal.aborted) return;
      if (trouble) this.onTrouble(trouble);
      if (trouble?.status === 401) return; // a new key starts it anew
      await new Promise((done) => setTimeout(done, wait));
      wait = Math.min(wait * 2, 8000);
    }
  }

  #take(event) {
    const before = this.snapshot;
    if (before && before.engine !== event.engine) this.#forget();
    this.busy = 0;
    const { map, changes, total } = event.blocks;
    if (map) {
      this.owners = new Int32Array(total);
      this.holders = new Int32Array(total);
      for (let at = 0, block = 0; at < map.length; at += 3) {
        this.owners.fill(map[at + 1], block, block + map[at]);
        this.holders.fill(map[at + 2], block, block + map[at]);
        block += map[at];
      }
    }
    for (let at = 0; at < (changes?.length ?? 0); at += 3) {
      this.owners[changes[at]] = changes[at + 1];
      this.holders[changes[at]] = changes[at + 2];
    }
    const last = this.steps.at(-1)?.index ?? -1;
    const names = event.steps.columns;
    const fresh = event.steps.rows
      .map((row) => Object.fromEntries(names.map((name, place) => [name, row[place]])))
      .filter((step) => step.index > last);
    this.steps = [...this.steps, ...fresh].slice(-STEPS);
    this.#remember(event, this.snapshot, fresh);
    this.snapshot = event;
  }

  #remember(event, before, fresh) {
    const { counters } = event;
    const span = before ? event.clock_s - before.clock_s : 0;
    const rate = (value) => (span > 0 ? value / span : null);
    const took = fresh.map((step) => step.ended_s - step.started_s).sort((a, b) => a - b);
    const queried = before ? counters.prefix_query_tokens - before.counters.prefix_query_tokens : 0;
    this.history.push({
      at: event.clock_s,
      prefill: rate(fresh.reduce((sum, step) => sum + step.prefill_tokens, 0)),
      decode: rate(fresh.reduce((sum, step) => sum + step.decode_tokens, 0)),
      stepMid: took.length && before ? took[took.length >> 1] : null,
      stepMax: took.length && before ? took.at(-1) : null,
      itl50: event.window.itl_s?.p50 ?? null,
      itl95: event.window.itl_s?.p95 ?? null,
      ttft50: event.window.ttft_s?.p50 ?? null,
      ttft95: event.window.ttft_s?.p95 ?? null,
      running: event.running,
      waiting: event.waiting,
      used: event.blocks.used,
      shared: event.blocks.shared,
      hits: queried > 0 ? (counters.prefix_hit_tokens - before.counters.prefix_hit_tokens) / queried : null,
      allHits: counters.prefix_query_tokens ? counters.prefix_hit_tokens / counters.prefix_query_tokens : null,
    });
    this.history = this.history.slice(-HISTORY);
  }
}
