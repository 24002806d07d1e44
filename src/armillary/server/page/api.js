// Talking to the server: errors as the server tells them, streams as they come. Paths are relative, so that the page
// works behind a proxy that serves it under another path.

import { storage } from "./dom.js";

/** What a request ended with instead of an answer. */
export class ServerError extends Error {
  constructor(message, { status = 0, code = null, param = null, requestId = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, requestId, retryAfter });
  }
}

let unlisted = null;

/** The key lives in this tab's session storage, nowhere else. */
export const key = {
  get: () => unlisted ?? storage.get("sessionStorage", "key") ?? "",
  set(value) {
    unlisted = value || null;
    storage.set("sessionStorage", "key", value || null);
  },
};

async function open(path, { body, signal, method } = {}) {
  const headers = {};
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "same-origin",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached.", { code: "unreachable" });
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let told = null;
  try {
    told = (await response.json()).error;
  } catch {
    // Not ours: a proxy's page, perhaps.
  }
  const error = new ServerError(told?.message ?? `The server answered with status ${response.status}.`, {
    status: response.status,
    code: told?.code ?? null,
    param: told?.param ?? null,
    requestId: response.headers.get("x-request-id"),
    retryAfter: response.headers.get("retry-after"),
  });
  if (response.status === 401) document.dispatchEvent(new CustomEvent("key-wanted", { detail: error }));
  return error;
}

export async function getJson(path, options) {
  const response = await open(path, options);
  return parse(await response.text(), response.headers.get("x-request-id"));
}

function parse(data, requestId) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ServerError(`The stream held something that is no JSON: ${data.slice(0, 200)}`, { code: "broken", requestId });
  }
}

/** What a promise gives, unless the signal comes first. */
export function orAborted(promise, signal) {
  const aborted = new Promise((_, fail) => {
    signal.addEventListener("abort", () => fail(signal.reason), { once: true });
  });
  return Promise.race([promise, aborted]);
}

/** The events of a stream, parsed. `onOpen` is handed the response first. */
export async function* stream(path, { onOpen = () => {}, mustEnd = false, ...options } = {}) {
  const response = await open(path, options);
  onOpen(response);
  const requestId = response.headers.get("x-request-id");
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      let piece;
      try {
        piece = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ServerError("The connection broke before the answer was complete.", { code: "broken", requestId });
      }
      if (piece.done) break;
      held += piece.value;
      const events = held.split(/\r?\n\r?\n/);
      held = events.pop();
      for (const event of events) {
        const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
        if (!data) continue;
        if (data === "[DONE]") return;
        const parsed = parse(data, requestId);
        if (parsed.error) throw new ServerError(parsed.error.message, { ...parsed.error, requestId });
        yield parsed;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  if (mustEnd) throw new ServerError("The connection closed before the answer was complete.", { code: "broken", requestId });
}
