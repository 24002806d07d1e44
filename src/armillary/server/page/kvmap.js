// The KV pool as a map: a cell a block, coloured by who holds it, or by how many do.

import { $, colours, el, isDark } from "./dom.js";
import { addCursor, prepare } from "./canvas.js";
import { count } from "./format.js";
import { CACHED, FREE } from "./feed.js";

const GAP_FROM = 5; // cells smaller than this lie without a gap

/** Hues far apart for owners that come one after another: steps of the golden angle. */
export function ownerColour(owner) {
  const hue = (owner * 137.508 + 75) % 360;
  return isDark() ? `oklch(0.74 0.125 ${hue})` : `oklch(0.62 0.135 ${hue})`;
}

export class KvMap {
  constructor(canvas, onChoose) {
    this.canvas = canvas;
    this.mode = "owner";
    this.only = null;
    this.repaint();
    addCursor(canvas, {
      find: (x, y) => this.#at(x, y),
      move: (place, dx, dy) => Math.max(0, Math.min(this.cells - 1, place < 0 ? 0 : place + dx + dy * this.columns)),
      centre: (place) => ({ x: (place % this.columns) * this.size + this.size / 2, y: Math.floor(place / this.columns) * this.size }),
      tell: (place) => this.#tell(place),
      choose: (place) => this.#sequence(this.#block(place)) && onChoose(this.#sequence(this.#block(place)).id),
      onPlace: (place) => {
        const owner = place < 0 ? null : this.feed.owners[this.#block(place)];
        this.only = owner !== null && owner >= 0 ? owner : null;
        this.draw();
      },
    });
  }

  /** Read the theme's colours anew. */
  repaint() {
    [this.free, this.cached, this.ink, this.paper, this.accent, this.line] = colours("free", "cached", "ink", "raised", "accent-fill", "line-strong");
  }

  update(feed) {
    this.feed = feed;
    const { total, used, shared, cached, free } = feed.snapshot.blocks;
    if (document.activeElement !== this.canvas) this.canvas.setAttribute("aria-label", `KV blocks: ${count(total)} in all, ${count(used)} held, of which ${count(shared)} shared, ${count(cached)} cached, ${count(free)} free. The arrow keys go from block to block.`);
    this.draw();
  }

  draw() {
    if (!this.feed?.owners.length || !this.canvas.clientWidth) return;
    const { context, width, height } = prepare(this.canvas);
    this.shown = touched(this.feed.owners);
    this.#layout(this.shown, width, height);
    const gap = this.size >= GAP_FROM ? Math.max(1, Math.round(this.size * 0.12)) : 0;
    const side = this.size - gap;
    const paints = new Map([[FREE, this.free], [CACHED, this.cached]]); // a colour is worked out once a drawing
    for (let cell = 0; cell < this.cells; cell += 1) {
      const block = this.#block(cell);
      const owner = this.feed.owners[block];
      const holders = this.feed.holders[block];
      const x = (cell % this.columns) * this.size;
      const y = Math.floor(cell / this.columns) * this.size;
      context.globalAlpha = this.only !== null && owner !== this.only ? 0.25 : 1;
      const kind = owner < 0 || this.mode === "owner" ? owner : holders;
      if (!paints.has(kind)) paints.set(kind, this.mode === "owner" ? ownerColour(kind) : sharingColour(kind));
      context.fillStyle = paints.get(kind);
      context.fillRect(x, y, side, side);
      if (holders > 1 && this.mode === "owner" && side >= 4) {
        const dot = Math.max(2, Math.round(side * 0.36));
        context.fillStyle = this.paper;
        context.fillRect(x + (side - dot) / 2, y + (side - dot) / 2, dot, dot);
      }
    }
    context.globalAlpha = 1;
  }

  /** The largest cells with which all blocks fit; where even the smallest do not, several blocks to a cell. */
  #layout(total, width, height) {
    let size = 34;
    while (size > 2 && Math.floor(width / size) * Math.floor(height / size) < total) size -= 1;
    this.size = size;
    this.columns = Math.max(1, Math.floor(width / size));
    this.group = Math.max(1, Math.ceil(total / (this.columns * Math.floor(height / size))));
    this.cells = Math.ceil(total / this.group);
  }

  #at(x, y) {
    if (!this.size) return -1;
    const column = Math.floor(x / this.size);
    const cell = Math.floor(y / this.size) * this.columns + column;
    return column >= 0 && column < this.columns && y >= 0 && cell < this.cells ? cell : -1;
  }

  /** The block that stands for a cell: the first that somebody holds, else the first. */
  #block(cell) {
    const from = cell * this.group;
    const until = Math.min(from + this.group, this.shown);
    for (let block = from; block < until; block += 1) if (this.feed.owners[block] >= 0) return block;
    return from;
  }

  #sequence(block) {
    const owner = this.feed.owners[block];
    return owner >= 0 ? this.feed.snapshot.sequences.find((each) => each.owner === owner) : null;
  }

  #tell(cell) {
    if (!this.feed?.snapshot) return null;
    const block = this.#block(cell);
    const owner = this.feed.owners[block];
    const holders = this.feed.holders[block];
    const name = `Block ${count(block)}`;
    if (owner === FREE) return [el("div", {}, `${name}: free`)];
    if (owner === CACHED) return [el("div", {}, `${name}: cached`), el("div", { class: "quiet-text" }, "Nobody holds it; its prefix can be found again.")];
    const swatch = el("i", { class: "swatch" });
    swatch.style.background = ownerColour(owner);
    return [
      el("div", {}, `${name}: held by ${holders === 1 ? "one sequence" : `${holders} sequences`}`),
      el("div", { class: "swatch-row" }, swatch, el("code", {}, this.#sequence(block)?.id ?? `sequence ${owner}`)),
    ];
  }
}

/** Blocks worth drawing: all up to the last that is not free, with room to grow, so that a young pool is seen large. */
function touched(owners) {
  let last = owners.length - 1;
  while (last >= 0 && owners[last] === FREE) last -= 1;
  let shown = 512;
  while (shown < (last + 1) * 1.1) shown *= 2;
  return Math.min(owners.length, shown);
}

/** One holder is quiet; the more there are, the brighter. */
export function sharingColour(holders) {
  const level = Math.min(4, holders) - 1;
  return isDark() ? `oklch(${0.46 + level * 0.13} ${0.05 + level * 0.03} 80)` : `oklch(${0.8 - level * 0.13} ${0.06 + level * 0.025} 75)`;
}

/** What the colours mean, under the map. */
export function drawLegend(mode, blocks, shown) {
  const entry = (background, text, dotted) => {
    const swatch = el("i", { class: dotted ? "swatch dotted" : "swatch" });
    swatch.style.background = background;
    return el("li", {}, swatch, text);
  };
  const rest = [entry("var(--cached)", `cached ${count(blocks.cached)}`), entry("var(--free)", `free ${count(blocks.free)}`)];
  const held = mode === "owner"
    ? [entry("linear-gradient(90deg, oklch(0.68 0.13 75), oklch(0.68 0.13 200), oklch(0.68 0.13 320))", `held ${count(blocks.used)}, a colour an owner`), entry(ownerColour(1), `shared ${count(blocks.shared)}`, true)]
    : [1, 2, 3, 4].map((holders) => entry(sharingColour(holders), holders === 1 ? "1 holder" : holders === 4 ? "4 or more" : `${holders}`));
  if (shown < blocks.total) rest.push(el("li", { class: "rest" }, `drawn: the first ${count(shown)} of ${count(blocks.total)}; the rest is free`));
  $("kv-legend").replaceChildren(...held, ...rest);
}
