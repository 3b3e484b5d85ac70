// What the page asks of its server: models, answers as they are written, the live state.

/** A request that the server refused, or that did not reach it. */
export class ServerError extends Error {
  constructor(message, status = 0, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

// Keys live as long as the tab: session storage only, or memory where there is none.
const memory = new Map();
export const keys = {
  read(name) {
    try { return sessionStorage.getItem(name) ?? ""; } catch { return memory.get(name) ?? ""; }
  },
  keep(name, key) {
    try { sessionStorage.setItem(name, key); } catch { memory.set(name, key); }
  },
};
export const USER = "laura-key", ADMIN = "laura-admin-key";

async function request(path, keyName, options = {}) {
  const key = keys.read(keyName);
  const headers = { ...options.headers };
  // Other signs cannot stand in a header; the server would not know such a key either.
  if (/^[\x21-\x7e]+$/.test(key)) headers.Authorization = "Bearer " + key;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let found = {};
  try { found = (await response.json()).error ?? {}; } catch { /* no JSON: the status must do */ }
  let message = found.message ?? "The server answered " + response.status + ".";
  const wait = response.headers.get("retry-after");
  if (response.status === 429 && wait) message = message.replace(/\.$/, "") + "; try again in " + wait + " s.";
  return new ServerError(message, response.status, found.code ?? "");
}

export async function models() {
  return (await (await request("/v1/models", USER)).json()).data;
}

export async function state() {
  return (await request("/admin/state", ADMIN)).json();
}

/**
 * One answer, as it is written: yields {text}, {finish} and {tokens}.
 *
 * A base without a chat template cannot chat: it is asked to go on with the last question
 * alone, which is also how `laura chat` asks it.
 */
export async function* answer(model, messages, settings, signal) {
  const wanted = { model, ...settings, stream: true, stream_options: { include_usage: true } };
  let response, path = "/v1/chat/completions";
  const ask = (body) => request(path, USER, {
    method: "POST", signal, headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...wanted, ...body }),
  });
  try {
    response = await ask({ messages });
  } catch (error) {
    if (error.code !== "no_chat_template") throw error;
    path = "/v1/completions";
    response = await ask({ prompt: messages.at(-1).content + "\n\n" });
  }
  let whole = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      whole = true;
      break;
    }
    const found = JSON.parse(data);
    if (found.error) throw new ServerError(found.error.message, 200, found.error.code);
    const choice = found.choices?.[0];
    const text = choice?.delta?.content ?? choice?.text;
    if (text) yield { text };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (found.usage) yield { tokens: found.usage.completion_tokens };
  }
  if (!whole) throw new ServerError("The answer broke off: the server went away.");
}

// The data of server-sent events; one event ends with an empty line.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The answer broke off: the connection was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
