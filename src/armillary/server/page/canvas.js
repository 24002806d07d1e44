// What all drawings share: a canvas that is as sharp as the screen, and a cursor for mouse, touch and arrow keys.

import { hideCard, say, showCard } from "./dom.js";

/** Size a canvas to its box; returns a context in CSS pixels, cleared. */
export function prepare(canvas) {
  const scale = devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/**
 * Let people point at the things in a drawing.
 * `find(x, y)` gives the place under a point or -1, `move(place, dx, dy)` the next one, `centre(place)` where it is,
 * `tell(place)` the nodes of its card, `choose(place)` what Enter and a click do, `onPlace(place)` redraws.
 */
export function addCursor(canvas, { find, move, centre, tell, choose = () => {}, onPlace }) {
  let place = -1;
  const put = (next, aloud) => {
    if (next !== place) {
      place = next;
      onPlace(place);
    }
    if (place < 0) return hideCard();
    const nodes = tell(place);
    if (!nodes) return hideCard();
    const box = canvas.getBoundingClientRect();
    const { x, y } = centre(place);
    showCard(box.left + x, box.top + y, ...nodes);
    if (aloud) say(nodes.map((node) => node.textContent).join(", "));
  };
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    return find(event.clientX - box.left, event.clientY - box.top);
  };
  canvas.addEventListener("pointermove", (event) => put(under(event), false));
  canvas.addEventListener("pointerleave", () => put(-1, false));
  canvas.addEventListener("click", (event) => {
    const found = under(event);
    if (found >= 0) choose(found);
  });
  canvas.addEventListener("blur", () => put(-1, false));
  canvas.addEventListener("keydown", (event) => {
    const arrow = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (arrow) {
      event.preventDefault();
      put(move(place, ...arrow), true);
    } else if (event.key === "Enter" && place >= 0) choose(place);
    else if (event.key === "Escape") put(-1, false);
  });
  return { get place() { return place; } };
}
