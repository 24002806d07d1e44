// Making and finding elements. Text becomes text nodes, always: nothing here takes markup.

export const $ = (id) => document.getElementById(id);

/** Make an element. `on*` are listeners, `class` and `data` as named; what is a property is set as one. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && !name.startsWith("aria")) node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...present(children));
  return node;
}

const present = (children) => children.filter((child) => child !== null && child !== undefined && child !== false);

/** Put these in the place of what a node holds; what is absent is left out. */
export function fill(node, ...children) {
  node.replaceChildren(...present(children));
}

const SVG = "http://www.w3.org/2000/svg";

/** One of the symbols in index.html. */
export function icon(name) {
  const node = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  node.setAttribute("class", "icon");
  node.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  node.append(use);
  return node;
}

/** A button that shows a symbol and says its name. */
export function iconButton(name, label, onclick, extra = {}) {
  return el("button", { type: "button", class: "plain", title: label, "aria-label": label, onclick, ...extra }, icon(name));
}

/** Tell who listens to the page instead of looking at it. */
export function say(text) {
  $("said").textContent = text;
}

/** Run at most once a frame, however often asked. */
export function onFrame(work) {
  let due = false;
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      work();
    });
  };
}

/** Show the floating card beside a point, inside the window. */
export function showCard(x, y, ...children) {
  const card = $("card");
  card.replaceChildren(...children);
  card.hidden = false;
  const { width, height } = card.getBoundingClientRect();
  const left = Math.max(8, Math.min(x - width / 2, innerWidth - width - 8));
  const above = y - height - 12;
  card.style.transform = `translate(${Math.round(left)}px, ${Math.round(above < 8 ? y + 22 : above)}px)`;
}

export function hideCard() {
  $("card").hidden = true;
}

export async function copy(text, what) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    done = copyOldStyle(text); // plain http from another machine has no clipboard
  }
  toast(done ? `${what} copied` : "The browser does not allow copying here");
}

function copyOldStyle(text) {
  const focused = document.activeElement;
  const area = el("textarea", { class: "sr", value: text, readOnly: true });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus({ preventScroll: true });
  return done;
}

let fading = null;

/** Tell everybody, for a moment. */
export function toast(text) {
  say(text);
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => ($("toast").hidden = true), 2200);
}

/** The value of a colour of base.css under the theme of the moment, for canvases. */
export function colours(...names) {
  const probe = el("i");
  document.body.append(probe);
  const found = names.map((name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  });
  probe.remove();
  return found;
}

export function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Storage that may be refused by the browser. */
export const storage = {
  get(kind, name) {
    try {
      return window[kind].getItem(`armillary.${name}`);
    } catch {
      return null;
    }
  },
  set(kind, name, value) {
    try {
      if (value === null) window[kind].removeItem(`armillary.${name}`);
      else window[kind].setItem(`armillary.${name}`, value);
    } catch {
      // Then it lasts as long as the page.
    }
  },
};
