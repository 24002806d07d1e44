// The part of Markdown that models write, made of elements and text nodes. Markup in the text stays text; links lead
// to http and https only.

import { copy, el, iconButton } from "./dom.js";

/** Show text in a container. Blocks that have not changed since the last call keep their elements. */
export function renderMarkdown(container, text) {
  const blocks = split(text);
  const old = container.blocks ?? [];
  let same = 0;
  while (same < blocks.length && same < old.length && blocks[same].key === old[same].key) same += 1;
  for (const gone of old.slice(same)) gone.node.remove();
  const fresh = blocks.slice(same).map((block) => ({ key: block.key, node: make(block) }));
  container.append(...fresh.map((block) => block.node));
  container.blocks = [...old.slice(0, same), ...fresh];
}

const LIST = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const RULE = /^\s*([-*_])(\s*\1){2,}\s*$/;
const ROW = /^\s*\|.*\|\s*$/;

function split(text) {
  const lines = text.split("\n");
  const blocks = [];
  let at = 0;
  const take = (kind, test, extra = {}) => {
    const from = at;
    while (at < lines.length && test(lines[at], at - from)) at += 1;
    const taken = lines.slice(from, at);
    blocks.push({ kind, lines: taken, ...extra, key: `${kind}\n${taken.join("\n")}` });
  };
  while (at < lines.length) {
    const line = lines[at];
    const fence = /^\s*(```+|~~~+)\s*([\w+#.-]*)/.exec(line);
    const heading = /^(#{1,6})\s+(.*)$/.exec(line);
    if (fence) {
      const from = (at += 1);
      while (at < lines.length && !lines[at].trimStart().startsWith(fence[1])) at += 1;
      const taken = lines.slice(from, at);
      const closed = at < lines.length;
      if (closed) at += 1;
      blocks.push({ kind: "code", lines: taken, language: fence[2], key: `code ${fence[2]} ${closed}\n${taken.join("\n")}` });
    } else if (!line.trim()) at += 1;
    else if (heading) take("heading", (_, place) => place === 0, { level: heading[1].length, text: heading[2] });
    else if (RULE.test(line)) take("rule", (_, place) => place === 0);
    else if (LIST.test(line)) take("list", (each) => LIST.test(each) || /^\s{2,}\S/.test(each));
    else if (line.startsWith(">")) take("quote", (each) => each.startsWith(">"));
    else if (ROW.test(line) && /^\s*\|[\s:|-]+\|\s*$/.test(lines[at + 1] ?? "")) take("table", (each) => ROW.test(each));
    else take("paragraph", (each, place) => place === 0 || (each.trim() && !/^\s*(```|~~~|#{1,6}\s|>)/.test(each) && !LIST.test(each)));
  }
  return blocks;
}

function make(block) {
  switch (block.kind) {
    case "code": {
      const source = block.lines.join("\n");
      return el("div", { class: "code-block" },
        el("div", { class: "code-head" }, el("span", {}, block.language || "text"), iconButton("copy", "Copy the code", () => copy(source, "Code"))),
        el("pre", { tabIndex: 0 }, el("code", {}, source)));
    }
    case "heading":
      return el(`h${Math.min(6, block.level + 2)}`, {}, ...inline(block.text));
    case "rule":
      return el("hr");
    case "list":
      return list(block.lines);
    case "quote": {
      const quote = el("blockquote");
      renderMarkdown(quote, block.lines.map((line) => line.replace(/^>\s?/, "")).join("\n"));
      return quote;
    }
    case "table":
      return table(block.lines);
    default:
      return el("p", {}, ...block.lines.flatMap((line, place) => (place ? [el("br"), ...inline(line)] : inline(line))));
  }
}

function list(lines) {
  const root = el("div");
  const open = [];
  for (const line of lines) {
    const found = LIST.exec(line);
    if (!found) {
      open.at(-1)?.last.append(el("br"), ...inline(line.trim()));
      continue;
    }
    const depth = found[1].length;
    while (open.length && open.at(-1).depth > depth) open.pop();
    if (!open.length || open.at(-1).depth < depth) {
      const numbered = /\d/.test(found[2]);
      const node = el(numbered ? "ol" : "ul", numbered ? { start: parseInt(found[2], 10) } : {});
      (open.at(-1)?.last ?? root).append(node);
      open.push({ depth, node, last: node });
    }
    open.at(-1).last = el("li", {}, ...inline(found[3]));
    open.at(-1).node.append(open.at(-1).last);
  }
  return root;
}

function table(lines) {
  const cells = (line) => line.trim().slice(1, -1).split("|").map((cell) => inline(cell.trim()));
  const [head, , ...rows] = lines;
  return el("div", { class: "table-scroll", tabIndex: 0 }, el("table", {},
    el("thead", {}, el("tr", {}, ...cells(head).map((cell) => el("th", {}, ...cell)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row).map((cell) => el("td", {}, ...cell)))))));
}

const INLINE = /(`+)([^`]|[^`].*?[^`])\1(?!`)|\*\*(\S(?:.*?\S)?)\*\*|\*(\S(?:[^*]*?\S)?)\*|\[([^\]\n]{1,300})\]\((https?:\/\/[^\s)]{1,2000})\)/;

function inline(text) {
  const nodes = [];
  let rest = text;
  for (;;) {
    const found = INLINE.exec(rest);
    if (!found) break;
    if (found.index) nodes.push(rest.slice(0, found.index));
    if (found[1]) nodes.push(el("code", {}, found[2]));
    else if (found[3]) nodes.push(el("strong", {}, ...inline(found[3])));
    else if (found[4]) nodes.push(el("em", {}, ...inline(found[4])));
    else nodes.push(el("a", { href: found[6], rel: "noopener noreferrer nofollow", target: "_blank" }, found[5]));
    rest = rest.slice(found.index + found[0].length);
  }
  if (rest) nodes.push(rest);
  return nodes;
}
