/** Conversations that the server keeps: making, reading and shortening them, and their list. */

import { newAnswer } from "./answer.js";
import { call } from "./stream.js";

/**
 * @typedef {import("./conversation.js").Conversation} Conversation
 * @typedef {import("./conversation.js").Turn} Turn
 * @typedef {import("./conversation.js").Item} Item
 * @typedef {{id: string, title: string, updated_at: number}} Summary
 */

const PAGE = 100;

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
 * @returns {Promise<string>} its id
 */
export async function createConversation() {
  return (await (await call("v1/conversations", { body: {} })).json()).id;
}

/**
 * @param {string} id
 * @returns {Promise<Item[]>} everything in it, the oldest first
 */
async function readItems(id) {
  const items = [];
  for (let after = "", isMore = true; isMore; ) {
    const reply = await call(`${path(id)}/items?order=asc&limit=${PAGE}${after}`);
    const { data, has_more, last_id } = await reply.json();
    items.push(...data);
    after = `&after=${encodeURIComponent(last_id)}`;
    isMore = has_more;
  }
  return items;
}

/**
 * Read a conversation as the turns it came from.
 * @param {string} id
 * @returns {Promise<Conversation>}
 */
export async function readConversation(id) {
  /** @type {Turn[]} */
  const turns = [];
  for (const item of await readItems(id)) {
    if (item.role === "user") turns.push(newTurn(item));
    else if (item.role !== "system" && item.role !== "developer") addItem(turns.at(-1), item);
  }
  return { id, isStored: true, turns };
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
  const answer = { ...newAnswer(), status: /** @type {const} */ ("stopped"), isKept: true };
  return { question, answer };
}

/**
 * @param {Turn | undefined} turn
 * @param {Item} item
 */
function addItem(turn, item) {
  if (!turn) return;
  const done = { ...item, status: item.status ?? "completed" };
  turn.answer.output.push(done);
  turn.answer.status = "completed";
}

/**
 * Take the last turns out of a conversation on the server.
 * @param {string} id
 * @param {number} count of the turns that stay
 */
export async function shortenConversation(id, count) {
  const items = await readItems(id);
  const starts = items.flatMap((item, index) => (item.role === "user" ? [index] : []));
  const surplus = count < starts.length ? items.slice(starts[count]) : [];
  for (const item of surplus.reverse()) {
    await call(`${path(id)}/items/${encodeURIComponent(item.id)}`, { method: "DELETE" });
  }
}
