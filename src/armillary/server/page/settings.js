// What is sent beside the messages. An empty field is not sent, so that the model's own default holds.

import { $, copy, el, iconButton, storage, toast } from "./dom.js";
import { key } from "./api.js";

const NUMBERS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, middle: 1, hint: "0 always takes the likeliest token." },
  { name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.01, middle: 1, hint: "Draw from the likeliest tokens that together have this probability." },
  { name: "top_k", label: "Top k", min: 0, max: 200, step: 1, middle: 0, whole: true, hint: "Draw from so many tokens; 0 is no limit." },
  { name: "max_tokens", label: "Max tokens", min: 1, whole: true, hint: "Unset: as many as the context has room for." },
  { name: "seed", label: "Seed", whole: true, hint: "The same seed gives the same reply, bit for bit." },
];
const MORE = [
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, middle: 0, hint: "Leave out tokens less likely than this share of the likeliest." },
  { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.1, middle: 0, hint: "Against tokens that the reply has already." },
  { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.1, middle: 0, hint: "The same, for each time." },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.05, step: 0.05, hint: "1 is off." },
  { name: "min_tokens", label: "Min tokens", min: 0, whole: true, hint: "No end before so many." },
];
const FORMATS = [
  ["text", "Free text"],
  ["json_object", "Any JSON object"],
  ["json_schema", "JSON by a schema"],
  ["regex", "A regular expression"],
  ["choice", "One of several texts"],
  ["grammar", "A grammar (Lark)"],
];
const RULES = {
  regex: ["Expression", "The whole reply matches it.", "[A-Z][a-z]+, [0-9]+"],
  choice: ["Texts", "One a line; the reply is one of them.", "yes\nno"],
  grammar: ["Grammar", "The reply is what its rule `start` allows.", 'start: NAME " lives in " NAME\nNAME: /[A-Z][a-z]+/'],
};
const SCHEMA = `{
  "type": "object",
  "properties": {
    "name": {"type": "string"},
    "population": {"type": "integer"}
  },
  "required": ["name", "population"],
  "additionalProperties": false
}`;
const TOOLS = `[
  {
    "type": "function",
    "function": {
      "name": "get_weather",
      "description": "The weather at a place.",
      "parameters": {
        "type": "object",
        "properties": {"place": {"type": "string"}},
        "required": ["place"]
      }
    }
  }
]`;

/** A field that cannot be sent as it stands. */
export class FieldProblem extends Error {
  constructor(message, name) {
    super(message);
    this.param = name;
  }
}

/** The values of the last visit; none where what is stored is not ours. */
function remembered() {
  try {
    const found = JSON.parse(storage.get("localStorage", "settings") ?? "{}");
    return found !== null && typeof found === "object" ? found : {};
  } catch {
    return {};
  }
}

export class Settings {
  constructor(onClose) {
    this.inputs = {};
    this.saved = remembered();
    this.#build(onClose);
    this.form.addEventListener("input", () => this.#changed());
    this.#changed();
  }

  value(name) {
    const input = this.inputs[name];
    return input.type === "checkbox" ? input.checked : input.value;
  }

  /** The body of a request, without model and messages. Throws FieldProblem. */
  body() {
    const body = {};
    for (const { name, label, whole } of [...NUMBERS, ...MORE]) {
      const text = this.value(name).trim();
      if (this.inputs[name].validity.badInput) throw new FieldProblem(`${label} must be a number.`, name);
      if (text) body[name] = whole && !/^-?\d+$/.test(text) ? Number.NaN : Number(text);
      if (Number.isNaN(body[name])) throw new FieldProblem(`${label} must be a whole number, given ${text}.`, name);
    }
    const stops = this.value("stop").split("\n").filter(Boolean).map((line) => line.replaceAll("\\n", "\n"));
    if (stops.length) body.stop = stops;
    if (this.value("logprobs")) Object.assign(body, { logprobs: true, top_logprobs: Number(this.value("top_logprobs") || 0) });
    const format = this.value("response_format");
    if (format === "json_object") body.response_format = { type: format };
    if (format === "json_schema") {
      body.response_format = { type: format, json_schema: { name: "reply", strict: true, schema: this.#json("schema", "The JSON schema") } };
    }
    if (RULES[format]) {
      const rule = this.value("rule").trim();
      if (!rule) throw new FieldProblem(`${RULES[format][0]} must not be empty.`, "rule");
      body.structured_outputs = { [format]: format === "choice" ? rule.split("\n").filter(Boolean) : rule };
    }
    if (this.value("use_tools")) {
      body.tools = this.#json("tools", "The list of tools");
      if (!Array.isArray(body.tools)) throw new FieldProblem("The list of tools must be a JSON list.", "tools");
      const choice = this.value("tool_choice").trim();
      if (choice && choice !== "auto") {
        body.tool_choice = ["none", "required"].includes(choice) ? choice : { type: "function", function: { name: choice } };
      }
      if (!this.value("parallel")) body.parallel_tool_calls = false;
    }
    if (this.value("extra").trim()) {
      const extra = this.#json("extra", "More fields");
      if (typeof extra !== "object" || Array.isArray(extra)) throw new FieldProblem("More fields must be a JSON object.", "extra");
      Object.assign(body, extra);
    }
    return body;
  }

  get system() {
    return this.value("system").trim();
  }

  /** Mark the field that a refusal is about; the part of a path before the first dot names it. */
  mark(param, message) {
    this.clearMarks();
    const name = { max_completion_tokens: "max_tokens", structured_outputs: "rule", response_format: this.value("response_format") === "json_schema" ? "schema" : "response_format" };
    const input = param && this.inputs[name[param.split(/[.[]/)[0]] ?? param.split(/[.[]/)[0]];
    if (!input) return false;
    input.setAttribute("aria-invalid", "true");
    const note = el("p", { class: "field-error", id: `${input.id}-error` }, message);
    input.setAttribute("aria-describedby", note.id);
    input.closest(".field").append(note);
    input.closest("details")?.setAttribute("open", "");
    return true;
  }

  clearMarks() {
    for (const note of this.form.querySelectorAll(".field-error")) note.remove();
    for (const input of this.form.querySelectorAll("[aria-invalid]")) {
      input.removeAttribute("aria-invalid");
      input.removeAttribute("aria-describedby");
    }
  }

  /** What shows the request as it would be sent now. */
  showRequest(makeBody) {
    const draw = () => {
      let text;
      try {
        text = JSON.stringify(makeBody(), null, 2);
      } catch (problem) {
        text = problem.message;
      }
      this.preview.textContent = text;
    };
    this.previewBox.addEventListener("toggle", draw);
    this.redraw = () => this.previewBox.open && draw();
    this.form.addEventListener("input", () => this.redraw());
    this.curl.addEventListener("click", () => {
      try {
        const quoted = JSON.stringify(makeBody()).replaceAll("'", "'\\''");
        const auth = key.get() ? ' -H "Authorization: Bearer $KEY"' : "";
        copy(`curl -N ${new URL("v1/chat/completions", document.baseURI)}${auth} -H 'Content-Type: application/json' -d '${quoted}'`, "Command");
      } catch (problem) {
        toast(problem.message);
      }
    });
  }

  #json(name, label) {
    try {
      return JSON.parse(this.value(name));
    } catch (error) {
      throw new FieldProblem(`${label} must be JSON: ${error.message}.`, name);
    }
  }

  #changed() {
    this.clearMarks();
    for (const [name, input] of Object.entries(this.inputs)) this.saved[name] = input.type === "checkbox" ? input.checked : input.value;
    storage.set("localStorage", "settings", JSON.stringify(this.saved));
    this.schemaField.hidden = this.value("response_format") !== "json_schema";
    const rule = RULES[this.value("response_format")];
    this.ruleField.hidden = !rule;
    if (rule) {
      [this.ruleField.querySelector("label").textContent, this.ruleField.querySelector("p").textContent, this.inputs.rule.placeholder] = rule;
    }
    this.toolFields.hidden = !this.value("use_tools");
    this.topField.hidden = !this.value("logprobs");
    for (const [range, input, middle] of this.ranges) {
      range.value = input.value === "" ? middle : input.value;
      range.classList.toggle("unset", input.value === "");
    }
    let names = [];
    try {
      names = JSON.parse(this.value("tools")).map((tool) => tool.function.name).filter((name) => typeof name === "string");
    } catch {
      // Said when it is sent.
    }
    this.toolNames.replaceChildren(...["auto", "none", "required", ...names].map((name) => el("option", { value: name })));
  }

  #input(name, node, initial) {
    node.id = `set-${name}`;
    node.name = name;
    this.inputs[name] = node;
    const value = this.saved[name] ?? initial;
    if (node.type === "checkbox") node.checked = Boolean(value);
    else if (value !== undefined) node.value = value;
    return node;
  }

  #number({ name, label, min, max, step, middle, whole, hint }) {
    const input = this.#input(name, el("input", { type: "number", min, max, step: step ?? 1, placeholder: "default", inputMode: whole ? "numeric" : "decimal" }));
    let range = null;
    if (middle !== undefined) {
      range = el("input", { type: "range", min, max, step, value: middle, "aria-label": `${label}, slider`, tabIndex: -1,
        oninput: () => {
          input.value = range.value;
        } });
      this.ranges.push([range, input, middle]);
    }
    return el("div", { class: "field" },
      el("div", { class: "number-row" }, el("label", { htmlFor: input.id, title: hint }, label), range, input),
      el("p", { class: "field-hint" }, hint));
  }

  #field(label, node, hint) {
    return el("div", { class: "field" }, el("label", { htmlFor: node.id }, label), node, hint && el("p", { class: "field-hint" }, hint));
  }

  #check(name, label, initial) {
    const box = this.#input(name, el("input", { type: "checkbox" }), initial);
    return el("div", { class: "field" }, el("label", { class: "check" }, box, label));
  }

  #group(title, open, ...children) {
    return el("details", { open }, el("summary", {}, title), el("div", { class: "group" }, ...children));
  }

  #build(onClose) {
    this.ranges = [];
    const area = (name, rows, placeholder, code, initial) =>
      this.#input(name, el("textarea", { rows, placeholder, spellcheck: !code, class: code ? "code" : "" }), initial);
    const select = (name, options) =>
      this.#input(name, el("select", {}, ...options.map(([value, label]) => el("option", { value }, label))), options[0][0]);

    this.topField = this.#number({ name: "top_logprobs", label: "Alternatives", min: 0, max: 20, whole: true, hint: "How many other tokens to list at each place." });
    if (!this.inputs.top_logprobs.value) this.inputs.top_logprobs.value = this.saved.top_logprobs ?? 5;
    this.schemaField = this.#field("Schema", area("schema", 9, "", true, SCHEMA), "The reply will be JSON that this schema allows, or the request is refused.");
    this.ruleField = this.#field("Rule", area("rule", 4, "", true), "…");
    this.toolNames = el("datalist", { id: "tool-names" });
    const choice = this.#input("tool_choice", el("input", { type: "text", placeholder: "auto", autocomplete: "off", spellcheck: false }), "");
    choice.setAttribute("list", "tool-names");
    this.toolFields = el("div", {},
      this.#field("Tools", area("tools", 11, "", true, TOOLS)),
      this.#field("Choice", choice, "auto, none, required, or a tool's name."), this.toolNames,
      this.#check("parallel", "Several calls in one reply", true));
    this.preview = el("pre", { class: "preview", tabIndex: 0 });
    this.curl = el("button", { type: "button", class: "quiet" }, "Copy as curl");
    this.previewBox = this.#group("Request as sent", false, this.preview, this.curl);
    this.form = el("form", { onsubmit: (event) => event.preventDefault() },
      el("div", { class: "settings-head" }, el("h2", {}, "Settings"), iconButton("close", "Close the settings", onClose, { class: "plain only-narrow" })),
      this.#field("System prompt", area("system", 2, "None", false)),
      this.#group("Sampling", true, ...NUMBERS.map((each) => this.#number(each)),
        this.#field("Stop", area("stop", 2, "One string per line", true), "The reply ends before any of these; \\n is a line end."),
        this.#group("More", false, ...MORE.map((each) => this.#number(each)))),
      this.#group("Token probabilities", true, this.#check("logprobs", "Show them in the reply", false), this.topField),
      this.#group("Format of the reply", false, this.#field("Format", select("response_format", FORMATS)), this.schemaField, this.ruleField),
      this.#group("Tools", false, this.#check("use_tools", "Offer tools to the model", false), this.toolFields),
      this.#group("More fields", false, this.#field("JSON object", area("extra", 3, '{"chat_template_kwargs": {…}}', true), "Goes into the request as it stands.")),
      this.previewBox,
      el("div", { class: "row" }, el("button", { type: "button", class: "quiet", onclick: () => this.#reset() }, "Reset all")));
    $("settings").append(this.form);
  }

  #reset() {
    storage.set("localStorage", "settings", null);
    for (const [name, input] of Object.entries(this.inputs)) {
      if (input.type === "checkbox") input.checked = name === "parallel";
      else input.value = { schema: SCHEMA, tools: TOOLS, top_logprobs: 5, response_format: "text" }[name] ?? "";
    }
    this.#changed();
    toast("All settings are back to their defaults");
  }
}
