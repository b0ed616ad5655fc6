/**
 * An answer: what the events of a stream add up to.
 *
 * An answer is plain JSON, so that it can be kept across a reload. Servers differ in how much they
 * send: one sends every event of the Responses API, another `response.output_item.done` alone.
 * Both end as the same list of items.
 */

import { DONE, Problem } from "./stream.js";

/**
 * @typedef {Record<string, any>} Item an output item of the Responses API
 * @typedef {"running" | "completed" | "incomplete" | "failed" | "stopped"} Status
 * @typedef {{from: number, to?: number}} Clock milliseconds since 1970
 *
 * @typedef {object} Answer
 * @property {Status} status
 * @property {Item[]} output
 * @property {string | null} id of the response
 * @property {number | null} cursor the sequence number of the last event
 * @property {boolean} background whether the run goes on without a connection
 * @property {string | null} traceId
 * @property {string | null} model
 * @property {Record<string, any> | null} usage
 * @property {{kind: string, message: string, code?: string | null, status?: number} | null} error
 * @property {string | null} reason why it is incomplete
 * @property {number} startedAt
 * @property {number | null} firstAt when its first content arrived; 0 where nobody saw it
 * @property {number | null} endedAt
 * @property {Record<string, Clock>} clocks of tool calls and reasoning, by call id or item id
 * @property {{value: boolean, comment: string} | null} feedback
 * @property {boolean} isKept whether the server's conversation holds it
 */

/**
 * @param {{background?: boolean}} [options]
 * @returns {Answer}
 */
export function newAnswer({ background = false } = {}) {
  return {
    status: "running",
    output: [],
    id: null,
    cursor: null,
    background,
    traceId: null,
    model: null,
    usage: null,
    error: null,
    reason: null,
    startedAt: Date.now(),
    firstAt: null,
    endedAt: null,
    clocks: {},
    feedback: null,
    isKept: false,
  };
}

/** @param {Answer} answer */
export function isRunning(answer) {
  return answer.status === "running";
}

/**
 * Add an event to the answer.
 * @param {Answer} answer
 * @param {any} event its JSON, or DONE
 */
export function applyEvent(answer, event) {
  if (event === DONE) {
    finish(answer, "completed");
    return;
  }
  if (event === null || typeof event !== "object") return;
  if (Number.isInteger(event.sequence_number)) answer.cursor = event.sequence_number;
  if (typeof event.trace_id === "string") answer.traceId = event.trace_id;
  if (event.response) readResponse(answer, event.response);
  const handle = HANDLERS[event.type];
  if (handle) handle(answer, event);
  else if (event.error) HANDLERS.error(answer, event);
  if (answer.output.length && answer.firstAt === null) answer.firstAt = Date.now();
}

/** @type {Record<string, (answer: Answer, event: any) => void>} */
const HANDLERS = {
  "response.output_item.added": (answer, { item, output_index }) =>
    placeItem(answer, { status: "in_progress", ...item }, output_index),
  "response.output_item.done": (answer, { item, output_index }) =>
    placeItem(answer, { ...item, status: doneStatus(item) }, output_index),
  "response.content_part.added": (answer, event) => setPart(answer, event, event.part),
  "response.content_part.done": (answer, event) => setPart(answer, event, event.part),
  "response.output_text.delta": (answer, event) => growPart(answer, event, "output_text", "text"),
  "response.output_text.done": (answer, event) =>
    setPart(answer, event, { type: "output_text", text: event.text }),
  "response.refusal.delta": (answer, event) => growPart(answer, event, "refusal", "refusal"),
  "response.reasoning_text.delta": (answer, event) =>
    growPart(answer, event, "reasoning_text", "text"),
  "response.reasoning_summary_text.delta": (answer, event) =>
    growPart(answer, event, "summary_text", "text"),
  "response.function_call_arguments.delta": growArguments,
  "response.mcp_call_arguments.delta": growArguments,
  "response.output_text.annotation.added": (answer, event) => {
    const part = findPart(answer, event, "output_text");
    part.annotations = [...(part.annotations ?? []), event.annotation];
  },
  "response.completed": (answer) => finish(answer, "completed"),
  "response.incomplete": (answer) => finish(answer, "incomplete"),
  "response.failed": (answer, event) => failAnswer(answer, asProblem(event.response?.error)),
  error: (answer, event) => failAnswer(answer, asProblem(event.error ?? event)),
};

/**
 * End the answer with a problem.
 * @param {Answer} answer
 * @param {Problem} problem
 */
export function failAnswer(answer, problem) {
  const { kind, message, code, status } = problem;
  answer.error = { kind, message, code, status };
  finish(answer, "failed");
}

/**
 * End the answer; the first end counts, as `[DONE]` follows every other one.
 * @param {Answer} answer
 * @param {Status} status
 */
export function finish(answer, status) {
  if (!isRunning(answer)) return;
  answer.status = status;
  answer.endedAt = Date.now();
  const itemStatus = status === "completed" ? "completed" : "incomplete";
  for (const item of answer.output) {
    if (item.status === "in_progress") item.status = itemStatus;
  }
}

/**
 * End an answer whose stream has ended. A server that announced the response also says how it
 * ended; one that sends items alone just stops.
 * @param {Answer} answer
 */
export function finishAtEnd(answer) {
  const isWhole = answer.output.length > 0 && answer.output.every(isDone);
  if (answer.id === null && isWhole) finish(answer, "completed");
  if (isRunning(answer)) {
    throw new Problem("cut", "The connection was cut before the answer was complete.");
  }
}

/** @param {Item} item */
function isDone(item) {
  return item.status !== "in_progress";
}

/** @param {any} error */
function asProblem(error) {
  const said = typeof error === "string" ? error : error?.message;
  const message = said || "The agent failed on this request.";
  return new Problem("failed", String(message), { code: error?.code });
}

/**
 * Note what a response tells of itself.
 * @param {Answer} answer
 * @param {any} response
 */
export function readResponse(answer, response) {
  answer.id = response.id ?? answer.id;
  answer.model = response.model ?? answer.model;
  answer.usage = response.usage ?? answer.usage;
  answer.traceId = response.trace_id ?? answer.traceId;
  answer.reason = response.incomplete_details?.reason ?? null;
  if (Array.isArray(response.output) && response.output.length > 0) {
    answer.output = response.output.map(normalise);
  }
}

/**
 * Bring an item into the form that the rest of the page relies on.
 * @param {Item} item
 * @returns {Item}
 */
function normalise(item) {
  const type = item.type ?? "message";
  if (type !== "message") return { ...item, type };
  const { content } = item;
  const parts = typeof content === "string" ? [{ type: "output_text", text: content }] : content;
  return { ...item, type, content: Array.isArray(parts) ? parts : [] };
}

/** @param {Item} item */
function doneStatus(item) {
  return item?.status && item.status !== "in_progress" ? item.status : "completed";
}

/**
 * @param {Answer} answer
 * @param {Item} item
 * @param {number} [position]
 */
function placeItem(answer, item, position) {
  const placed = normalise(item);
  const index = findIndex(answer, placed, position);
  answer.output[index] = placed;
  keepTime(answer, placed);
}

/**
 * Where an item belongs: in the place of its id, in the place it names, or at the end. A message
 * that never got an id takes the place of the one that its deltas began.
 * @param {Answer} answer
 * @param {Item} item
 * @param {number} [position]
 */
function findIndex({ output }, item, position) {
  const known = output.findIndex((each) => item.id && each.id === item.id);
  if (known >= 0) return known;
  if (position !== undefined && Number.isInteger(position) && position >= 0) {
    // Some servers give every item the same place; what is done already is not overwritten.
    const isTaken = output[position] && isDone(output[position]);
    return isTaken ? output.length : Math.min(position, output.length);
  }
  const last = output.length - 1;
  const begun = last >= 0 && !isDone(output[last]) && output[last].type === item.type;
  return begun ? last : output.length;
}

/**
 * @param {Answer} answer
 * @param {Item} item
 */
function keepTime(answer, item) {
  const key = item.call_id ?? item.id;
  if (!key || item.type === "message") return;
  const clock = (answer.clocks[key] ??= { from: Date.now() });
  const ends = ["function_call_output", "mcp_call", "reasoning"].includes(item.type);
  if (ends && isDone(item)) clock.to ??= Date.now();
}

/**
 * Find the item an event speaks of; a delta without one begins it.
 * @param {Answer} answer
 * @param {any} event
 * @param {string} type of an item that begins
 * @returns {Item}
 */
function findItem(answer, event, type) {
  const { item_id: id, output_index: position } = event;
  const wanted = { id, type, status: "in_progress" };
  const index = findIndex(answer, wanted, position);
  if (!answer.output[index]) placeItem(answer, wanted, position);
  return answer.output[index];
}

/**
 * Find the part of a message or of reasoning that an event speaks of.
 * @param {Answer} answer
 * @param {any} event
 * @param {string} type of a part that begins
 * @returns {Record<string, any>}
 */
function findPart(answer, event, type) {
  const isThought = type === "reasoning_text" || type === "summary_text";
  const item = findItem(answer, event, isThought ? "reasoning" : "message");
  const field = type === "summary_text" ? "summary" : "content";
  if (!Array.isArray(item[field])) item[field] = [];
  const parts = item[field];
  const index = Math.min(event.content_index ?? event.summary_index ?? 0, parts.length);
  return (parts[index] ??= { type });
}

/**
 * @param {Answer} answer
 * @param {any} event
 * @param {any} part
 */
function setPart(answer, event, part) {
  if (part?.type) Object.assign(findPart(answer, event, part.type), part);
}

/**
 * @param {Answer} answer
 * @param {any} event
 * @param {string} type of the part
 * @param {string} field that grows
 */
function growPart(answer, event, type, field) {
  const part = findPart(answer, event, type);
  part[field] = (part[field] ?? "") + (event.delta ?? "");
}

/**
 * @param {Answer} answer
 * @param {any} event
 */
function growArguments(answer, event) {
  const item = findItem(answer, event, "function_call");
  item.arguments = (item.arguments ?? "") + (event.delta ?? "");
}

/**
 * The answer's words, without its tools and thoughts.
 * @param {Answer} answer
 */
export function answerText(answer) {
  const messages = answer.output.filter((item) => item.type === "message");
  return messages.map(messageText).filter(Boolean).join("\n\n");
}

/**
 * @param {Item} item a message
 * @returns {string}
 */
export function messageText(item) {
  return item.content.map((/** @type {any} */ part) => part.text ?? part.refusal ?? "").join("");
}

/**
 * @param {Item} item
 * @returns {string} what a model said it was thinking
 */
export function reasoningText(item) {
  const parts = item.summary?.length ? item.summary : (item.content ?? []);
  return parts.map((/** @type {any} */ part) => part.text ?? "").join("\n\n");
}

/**
 * Any value as text: a tool's result may be a string, a list of parts or something else.
 * @param {any} value
 * @returns {string}
 */
export function asText(value) {
  if (typeof value === "string") return value;
  if (value === undefined || value === null) return "";
  const isParts = Array.isArray(value) && value.every((part) => typeof part?.text === "string");
  if (isParts) return value.map((part) => part.text).join("");
  return JSON.stringify(value, null, 2);
}
