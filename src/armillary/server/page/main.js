// The frame of the page: which view is shown, which model is asked, key, theme and health.

import { $, el, fill, isDark, storage, toast } from "./dom.js";
import { getJson, key, ServerError } from "./api.js";
import { Chat } from "./chat.js";
import { EngineView } from "./engine.js";
import { Timeline } from "./timeline.js";

let know = null;

/** While not learned from the server, `chosen` is only what was chosen on the last visit. `known` says when that ends. */
const models = {
  learned: false,
  known: new Promise((done) => (know = done)),
  learn,
  chosen: storage.get("localStorage", "model") ?? "",
  cards: [],
  card: () => models.cards.find((card) => card.id === models.chosen),
};

const chat = new Chat(models);
const engine = new EngineView(models);
const timeline = new Timeline();
let view = null;

/** `#/chat`, `#/engine`, or `#/request/ID` over the view that was there. */
function route() {
  const [, name, id] = /^#\/(\w+)(?:\/(.+))?$/.exec(location.hash) ?? [null, "chat"];
  if (name === "request" && id) {
    if (view === null) show("engine");
    timeline.open(decoded(id), () => (location.hash = `#/${view}`));
    return;
  }
  timeline.close();
  show(name === "engine" ? "engine" : "chat");
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // not encoded by us: the server will not know it
  }
}

function show(name) {
  if (view === name) return;
  view = name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  $("chat-view").hidden = name !== "chat";
  $("engine-view").hidden = name !== "engine";
  document.title = name === "chat" ? "Armillary" : "Armillary · Engine";
  if (name === "engine") engine.start();
  else engine.stop();
  if (name === "chat") chat.shown();
}

let due = null;
let asked = 0;

/** Learn which models there are; while there are none, or no server, ask again. Only the latest answer counts. */
async function learn() {
  clearTimeout(due);
  const turn = (asked += 1);
  const before = models.learned ? models.chosen : null;
  try {
    const { data } = await getJson("v1/models");
    if (turn !== asked) return;
    models.cards = data;
    if (!models.card()) models.chosen = (models.cards.find(awake) ?? models.cards[0])?.id ?? "";
    const card = models.card();
    const state = card ? (card.state ?? "ready") : "no model";
    health(state === "ready" ? "ready" : "trouble", state);
    banner(state === "ready" ? "" : card ? `${card.id} is ${state}.` : "No model is loaded.", state === "sleeping" ? card.id : null);
    due = setTimeout(learn, state === "ready" ? 15000 : 2000);
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    if (turn !== asked) return;
    health("trouble", error.status === 401 ? "key wanted" : error.status === 503 ? "not ready" : "unreachable");
    if (error.status !== 401) {
      banner(error.message);
      due = setTimeout(learn, 2000);
    }
  }
  const shown = models.cards.map((card) => (awake(card) ? card.id : `${card.id} (${card.state})`));
  const options = models.cards.map((card, place) => el("option", { value: card.id }, shown[place]));
  const names = shown.join("\n");
  if ($("model").dataset.names !== names) {
    $("model").replaceChildren(...options);
    $("model").dataset.names = names;
  }
  $("model").value = models.chosen;
  if (models.cards.length ? models.chosen !== before : before) chosenAnew();
}

/** Requests, and what is watched, go to another model from now on. */
function chosenAnew() {
  models.learned = models.chosen !== "";
  know();
  chat.modelChanged();
  if (view === "engine") engine.restart();
}

function health(state, text) {
  $("health").dataset.state = state;
  if ($("health").textContent !== text) $("health").replaceChildren(el("span", {}, text));
  $("health").title = `The server: ${text}`;
}

const awake = (card) => (card.state ?? "ready") === "ready";

/** What everybody should know; with a sleeping model, the way to wake it. */
function banner(text, asleep = null) {
  const said = `${text}${asleep ?? ""}`;
  if ($("banner").dataset.said === said) return;
  $("banner").dataset.said = said;
  fill($("banner"), text, asleep && el("button", { type: "button", class: "quiet", onclick: () => wake(asleep) }, "Wake it"));
  $("banner").hidden = !text;
}

async function wake(model) {
  try {
    await getJson("v1/models/wake", { body: { model } });
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    banner(error.message);
  }
  learn();
}

function askForKey(error) {
  const dialog = $("key-dialog");
  if (dialog.open) return;
  $("key-why").textContent = error
    ? `${error.message}. It is kept in this tab only, until it is closed.`
    : "Sent with every request to this server. Kept in this tab only, until it is closed.";
  $("key-input").value = key.get();
  dialog.showModal();
  $("key-input").select();
}

$("key-button").addEventListener("click", () => askForKey(null));
document.addEventListener("key-wanted", (event) => askForKey(event.detail));
$("key-dialog").addEventListener("close", () => {
  if ($("key-dialog").returnValue !== "save") return;
  key.set($("key-input").value.trim());
  $("key-dialog").returnValue = "";
  learn();
  if (view === "engine") engine.restart();
});
$("key-forget").addEventListener("click", () => {
  key.set("");
  $("key-input").value = "";
  $("key-dialog").close();
  toast("The key is forgotten");
});

$("model").addEventListener("change", () => {
  models.chosen = $("model").value;
  storage.set("localStorage", "model", models.chosen);
  chosenAnew();
  learn();
});

const THEMES = ["system", "light", "dark"];

function theme(chosen) {
  if (chosen === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  storage.set("localStorage", "theme", chosen === "system" ? null : chosen);
  $("theme-label").textContent = `Theme: ${chosen}`;
  $("theme-button").title = `Theme: ${chosen}`;
  document.dispatchEvent(new CustomEvent("theme"));
}

// From the system's choice, the first press shows the other one: a press that changes nothing looks broken.
$("theme-button").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "system";
  const order = matchMedia("(prefers-color-scheme: dark)").matches ? ["system", "light", "dark"] : ["system", "dark", "light"];
  const next = order[(order.indexOf(now) + 1) % THEMES.length];
  theme(next);
  toast(`Theme: ${next}, which is ${isDark() ? "dark" : "light"}`);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new CustomEvent("theme")));
theme(document.documentElement.dataset.theme ?? "system");

$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});
addEventListener("hashchange", route);
route();
learn();
