/** Conversations that the server keeps: making, reading and shortening them, and their list. */

import { newAnswer, readResponse } from "./answer.js";
import { call } from "./stream.js";

/**
 * @typedef {import("./conversation.js").Conversation} Conversation
 * @typedef {import("./conversation.js").Turn} Turn
 * @typedef {import("./conversation.js").Item} Item
 * @typedef {{id: string, title: string, metadata: {title?: string}, updated_at: number}} Summary
 */

/** @param {string} id */
function path(id) {
  return `v1/conversations/${encodeURIComponent(id)}`;
}

/**
 * One page of the list, the conversation used last first.
 * @param {string} [after] the id of the last one known
 * @returns {Promise<{data: Summary[], has_more: boolean}>}
 */
export async function listConversations(after) {
  const behind = after ? `&after=${encodeURIComponent(after)}` : "";
  return (await call(`agent/conversations?limit=50${behind}`)).json();
}

/** @param {string} id */
export async function deleteConversation(id) {
  await call(path(id), { method: "DELETE" });
}

/**
 * Begin a conversation on the server.
 * @param {string} question it begins with; the server knows it once it is answered
 * @returns {Promise<string>} its id
 */
export async function createConversation(question) {
  const body = { metadata: { title: question.trim().slice(0, 80) } };
  return (await (await call("v1/conversations", { body })).json()).id;
}

/**
 * @param {string} id
 * @returns {Promise<{items: Item[], responses: Record<string, any>[]}>} everything in it, the
 *   oldest first, and what made it
 */
async function readAll(id) {
  return (await call(`agent/conversations/${encodeURIComponent(id)}`)).json();
}

/**
 * Read a conversation as the turns it came from; the last one may still be running.
 * @param {string} id
 * @returns {Promise<Conversation>}
 */
export async function readConversation(id) {
  const { items, responses } = await readAll(id);
  const byId = new Map(responses.map((response) => [response.id, response]));
  const turns = toTurns(items, (item) => byId.get(item.response_id));
  const running = responses.find(({ status }) => status === "queued" || status === "in_progress");
  if (running) turns.push(...(await readRunning(running)));
  return { id, isStored: true, turns };
}

/**
 * What a response that is under way was asked: the conversation does not hold it yet.
 * @param {Record<string, any>} response
 * @returns {Promise<Turn[]>}
 */
async function readRunning(response) {
  const path = `v1/responses/${encodeURIComponent(response.id)}/input_items`;
  const { data } = await (await call(`${path}?order=asc&limit=100`)).json();
  const turns = toTurns(data, () => undefined);
  for (const { answer } of turns) answer.isKept = false;
  const last = turns.at(-1);
  if (last) last.answer = runningAnswer(response);
  return turns;
}

/**
 * @param {Item[]} items
 * @param {(item: Item) => Record<string, any> | undefined} responseOf what made an item
 */
function toTurns(items, responseOf) {
  /** @type {Turn[]} */
  const turns = [];
  for (const item of items) {
    if (item.role === "user") turns.push(newTurn(item));
    else if (item.role !== "system" && item.role !== "developer") {
      addItem(turns.at(-1), item, responseOf(item));
    }
  }
  return turns;
}

/**
 * @param {Item} item a question
 * @returns {Turn}
 */
function newTurn({ content }) {
  const parts = typeof content === "string" ? [{ type: "input_text", text: content }] : content;
  const attachments = [];
  const words = [];
  for (const { type, text = "", image_url: image } of parts) {
    const [, name, data] = /^File ([^\n]+):\n\n([^]*)$/.exec(text) ?? [];
    if (name) attachments.push({ name, type: "text/plain", data });
    else if (text) words.push(text);
    if (type === "input_image" && /^data:image\//.test(image)) {
      attachments.push({ name: "Picture", type: "image/*", data: image });
    }
  }
  const question = { text: words.join("\n\n"), attachments };
  return { question, answer: { ...newAnswer(), status: "stopped", isKept: true } };
}

/**
 * @param {Turn | undefined} turn
 * @param {Item} item
 * @param {Record<string, any>} [response] that made it
 */
function addItem(turn, item, response) {
  if (!turn) return;
  const { answer } = turn;
  answer.output.push({ ...item, status: item.status ?? "completed" });
  answer.status = "completed";
  if (!response) return;
  readResponse(answer, response);
  answer.status = response.status;
  answer.startedAt = response.created_at * 1000;
  answer.endedAt = response.completed_at * 1000;
}

/**
 * An answer that another page, or another window, has asked for.
 * @param {Record<string, any>} response
 */
function runningAnswer(response) {
  const answer = newAnswer({ background: true });
  readResponse(answer, response);
  // Nobody here saw when its first words came.
  return { ...answer, startedAt: response.created_at * 1000, firstAt: 0 };
}

/**
 * Take the last turns out of a conversation on the server.
 * @param {string} id
 * @param {number} count of the turns that stay
 */
export async function shortenConversation(id, count) {
  const { items } = await readAll(id);
  const starts = items.flatMap((item, index) => (item.role === "user" ? [index] : []));
  const surplus = count < starts.length ? items.slice(starts[count]) : [];
  for (const item of surplus.reverse()) {
    await call(`${path(id)}/items/${encodeURIComponent(item.id)}`, { method: "DELETE" });
  }
}
