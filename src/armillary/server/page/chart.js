// A small line chart over the last two minutes. The latest numbers stand beside the names, as text.

import { colours, el } from "./dom.js";
import { prepare } from "./canvas.js";

const MOST_S = 120;
const LEAST_S = 20;

export class Chart {
  /** `lines`: name, colour of base.css, and `value(point)`. `most` fixes the top of the axis. */
  constructor(title, lines, show, most = null) {
    Object.assign(this, { lines, show, most, points: [] });
    this.canvas = el("canvas", { class: "chart", role: "img", "aria-label": title });
    this.readouts = lines.map(() => el("b", { class: "num" }, "–"));
    this.node = el("figure", { class: "panel chart-panel" },
      el("figcaption", {}, el("h3", {}, title), el("ul", { class: "legend" }, ...lines.map((line, place) => {
        const swatch = el("i", { class: "swatch line" });
        swatch.style.background = `var(--${line.colour})`;
        return el("li", {}, swatch, line.name, " ", this.readouts[place]);
      }))),
      this.canvas);
    this.title = title;
    this.pointer = null;
    this.canvas.addEventListener("pointermove", (event) => {
      this.pointer = event.offsetX;
      this.draw();
    });
    this.canvas.addEventListener("pointerleave", () => {
      this.pointer = null;
      this.draw();
    });
    this.repaint();
  }

  repaint() {
    [this.soft, this.grid, ...this.colours] = colours("soft", "line", ...this.lines.map((line) => line.colour));
    this.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  }

  update(points) {
    this.points = points;
    this.draw();
    this.canvas.setAttribute("aria-label", `${this.title}: ${this.lines.map((line, place) => `${line.name} ${this.readouts[place].textContent}`).join(", ")}`);
  }

  draw() {
    const { points } = this;
    if (!this.canvas.clientWidth || !points.length) return;
    const { context, width, height } = prepare(this.canvas);
    const now = points.at(-1).at;
    const span = Math.max(LEAST_S, Math.min(MOST_S, Math.ceil((now - points[0].at) / 10) * 10));
    const seen = points.filter((point) => point.at >= now - span);
    const peak = Math.max(...this.lines.flatMap((line) => seen.map((point) => line.value(point) ?? 0)), 0);
    const top = this.most ?? nice(peak);
    const foot = height - 16;
    const x = (at) => width - 1 - ((now - at) / span) * (width - 2);
    const y = (value) => foot - (Math.min(value, top) / top) * (foot - 16);
    context.font = this.font;
    for (const share of [0, 0.5, 1]) {
      context.fillStyle = this.grid;
      context.fillRect(0, Math.round(y(top * share)), width, 1);
      context.fillStyle = this.soft;
      if (share) context.fillText(this.show(top * share), 0, y(top * share) - 4);
    }
    context.fillText(span < MOST_S ? `${span} s ago` : "2 min ago", 0, height - 2);
    context.textAlign = "right";
    context.fillText("now", width, height - 2);
    context.textAlign = "left";
    context.lineWidth = 1.7;
    context.lineJoin = "round";
    for (const [place, line] of this.lines.entries()) this.#line(context, seen, line, this.colours[place], x, y, foot, place === 0);
    let at = seen.length - 1;
    if (this.pointer !== null) {
      at = seen.reduce((best, point, index) => (Math.abs(x(point.at) - this.pointer) < Math.abs(x(seen[best].at) - this.pointer) ? index : best), 0);
      context.fillStyle = this.soft;
      context.fillRect(Math.round(x(seen[at].at)), 10, 1, foot - 10);
    }
    for (const [place, line] of this.lines.entries()) {
      const value = line.value(seen[at]);
      this.readouts[place].textContent = value === null ? "–" : this.show(value);
    }
  }

  #line(context, points, line, colour, x, y, foot, filled) {
    let run = [];
    const finish = () => {
      if (run.length > 1) {
        context.beginPath();
        for (const [px, py] of run) context.lineTo(px, py);
        context.strokeStyle = colour;
        context.stroke();
        if (filled) {
          context.lineTo(run.at(-1)[0], foot);
          context.lineTo(run[0][0], foot);
          context.globalAlpha = 0.13;
          context.fillStyle = colour;
          context.fill();
          context.globalAlpha = 1;
        }
      } else if (run.length) {
        context.fillStyle = colour;
        context.fillRect(run[0][0] - 1.5, run[0][1] - 1.5, 3, 3);
      }
      run = [];
    };
    for (const point of points) {
      const value = line.value(point);
      if (value === null) finish();
      else run.push([x(point.at), y(value)]);
    }
    finish();
  }
}

/** The next round number above. */
function nice(peak) {
  if (!(peak > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(peak));
  return [1, 1.5, 2, 3, 4, 5, 7.5, 10].map((step) => step * unit).find((step) => step >= peak * 1.05) ?? unit * 10;
}
