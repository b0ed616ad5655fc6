/** Talking to the server: requests, errors that people can read, and server-sent events. */

import { askToken, needsToken, tokenHeader } from "./token.js";

/**
 * Something went wrong, said so that the reader knows what to do.
 *
 * `kind` is "offline", "unreachable", "signed-out", "refused" (an HTTP error), "cut" (a stream
 * that stopped before its end) or "failed" (the agent said so).
 */
export class Problem extends Error {
  /**
   * @param {string} kind
   * @param {string} message
   * @param {{status?: number, code?: string | null}} [details]
   */
  constructor(kind, message, { status, code } = {}) {
    super(message);
    this.kind = kind;
    this.status = status;
    this.code = code;
  }
}

const SIGNED_OUT = "You are signed out. Reload the page to sign in again; your chat is kept.";
const CUT = "The connection was cut before the answer was complete.";

/**
 * Call the server, by a relative address so that the page works under any prefix.
 * @param {string} path such as "v1/responses"
 * @param {{body?: object, method?: string, signal?: AbortSignal}} [options] `body` goes as JSON
 * @returns {Promise<Response>}
 * @throws {Problem} for every answer that is not a success, and for none at all
 */
export async function call(path, { body, method = body ? "POST" : "GET", signal } = {}) {
  const headers = { ...tokenHeader(), ...(body && { "Content-Type": "application/json" }) };
  const content = body && JSON.stringify(body);
  let reply;
  try {
    // A redirect is never the API's: it leads to the login page of a proxy in front of it.
    reply = await fetch(path, { method, headers, body: content, signal, redirect: "manual" });
  } catch (error) {
    if (signal?.aborted) throw error;
    if (!navigator.onLine)
      throw new Problem("offline", "You are offline. Try again once you are back.");
    throw new Problem("unreachable", "The server cannot be reached. Is it running?");
  }
  if (needsToken(reply)) {
    await askToken();
    return call(path, { body, method, signal });
  }
  const isPage = reply.headers.get("content-type")?.startsWith("text/html");
  if (reply.type === "opaqueredirect" || reply.status === 401 || (reply.ok && isPage)) {
    throw new Problem("signed-out", SIGNED_OUT, { status: reply.status });
  }
  if (!reply.ok) throw await readError(reply);
  return reply;
}

/** @param {Response} reply */
async function readError(reply) {
  const body = await reply.json().catch(() => null);
  const error = body?.error ?? body?.detail;
  const message = typeof error === "string" ? error : error?.message;
  const fallback = `The server answered with an error (HTTP ${reply.status}).`;
  const details = { status: reply.status, code: error?.code };
  return new Problem("refused", String(message || fallback), details);
}

/** Cuts server-sent events out of text that arrives in pieces of any size. */
export class EventParser {
  #rest = "";
  /** @type {string[]} */
  #data = [];

  /**
   * Take the next piece of text.
   * @param {string} text
   * @returns {string[]} the data of each event that is complete now
   */
  push(text) {
    let buffer = this.#rest + text;
    // A carriage return at the end may be the first half of a line's end.
    const held = buffer.endsWith("\r") ? "\r" : "";
    if (held) buffer = buffer.slice(0, -1);
    const lines = buffer.split(/\r\n|\n|\r/);
    this.#rest = lines.pop() + held;
    return lines.flatMap((line) => this.#takeLine(line));
  }

  /** @param {string} line */
  #takeLine(line) {
    if (line.startsWith("data:")) this.#data.push(line.slice(line[5] === " " ? 6 : 5));
    if (line !== "" || this.#data.length === 0) return [];
    const event = this.#data.join("\n");
    this.#data = [];
    return [event];
  }
}

/** The end of a stream: `data: [DONE]`. */
export const DONE = "[DONE]";

/**
 * Read a stream of events.
 * @param {Response} reply
 * @returns {AsyncGenerator<any>} each event's JSON, and DONE as it is
 * @throws {Problem} when the connection breaks or what arrives is no event
 */
export async function* readEvents(reply) {
  if (!reply.body) throw new Problem("cut", CUT);
  const reader = reply.body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(whenBroken);
      if (done) return;
      for (const data of parser.push(decoder.decode(value, { stream: true }))) {
        yield data === DONE ? DONE : parseEvent(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * @param {Error} error
 * @returns {never}
 */
function whenBroken(error) {
  throw error.name === "AbortError" ? error : new Problem("cut", CUT);
}

/** @param {string} data */
function parseEvent(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new Problem("failed", "The server sent an event that cannot be read.");
  }
}
