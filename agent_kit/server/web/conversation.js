/** The conversation: its turns, what of it is sent, how it is kept and how it is exported. */

import { answerText, asText, isRunning } from "./answer.js";

/**
 * @typedef {import("./answer.js").Answer} Answer
 * @typedef {{name: string, type: string, data: string}} Attachment `data` is a data: URL of an
 *   image or the text of a file
 * @typedef {{text: string, attachments: Attachment[]}} Question
 * @typedef {{question: Question, answer: Answer}} Turn
 * @typedef {{id: string, isStored: boolean, turns: Turn[]}} Conversation `isStored`: the server
 *   keeps it under this id
 * @typedef {Record<string, any>} Item
 */

/** @returns {Conversation} */
export function newConversation() {
  return { id: `conv-${randomName()}`, isStored: false, turns: [] };
}

function randomName() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * The input of a request: every turn up to and with the last question.
 * @param {Turn[]} turns
 * @returns {Item[]}
 */
export function toInput(turns) {
  const last = turns.length - 1;
  return turns.flatMap(({ question, answer }, index) => [
    questionItem(question),
    ...(index < last ? answerItems(answer) : []),
  ]);
}

/**
 * The part of the input that the server's conversation does not hold: a run that was stopped or
 * failed has left nothing there.
 * @param {Turn[]} turns
 * @returns {Item[]}
 */
export function toNewInput(turns) {
  return toInput(turns.slice(turns.findLastIndex(({ answer }) => answer.isKept) + 1));
}

/**
 * @param {Question} question
 * @returns {Item}
 */
function questionItem({ text, attachments }) {
  if (attachments.length === 0) return { role: "user", content: text };
  const parts = attachments.map(({ name, type, data }) =>
    type.startsWith("image/")
      ? { type: "input_image", image_url: data, detail: "auto" }
      : { type: "input_text", text: `File ${name}:\n\n${data}` },
  );
  const words = text ? [{ type: "input_text", text }] : [];
  return { role: "user", content: [...words, ...parts] };
}

/**
 * What later requests say about an answer: messages and complete pairs of call and result. Ids,
 * states and thoughts belong to the run that is over.
 * @param {Answer} answer
 * @returns {Item[]}
 */
function answerItems({ output }) {
  const items = output.flatMap((item) => (item.type === "mcp_call" ? pairOf(item) : [item]));
  const callIds = (/** @type {string} */ type) =>
    new Set(items.filter((item) => item.type === type).map((item) => item.call_id));
  const [called, answered] = [callIds("function_call"), callIds("function_call_output")];
  return items.flatMap(({ id, status, ...item }) => {
    if (item.type === "message") {
      const content = answerText(/** @type {any} */ ({ output: [item] }));
      return content ? [{ role: "assistant", content }] : [];
    }
    const isPair = called.has(item.call_id) && answered.has(item.call_id);
    return isPair && /^function_call(_output)?$/.test(item.type) ? [item] : [];
  });
}

/**
 * A call that the server has run, as the pair of call and result that every agent takes.
 * @param {Item} item
 * @returns {Item[]}
 */
function pairOf({ call_id, id, name, arguments: args, output, error }) {
  const key = call_id ?? id;
  const call = { type: "function_call", call_id: key, name, arguments: args };
  const result = output ?? error?.content ?? error;
  return result ? [call, { type: "function_call_output", call_id: key, output: result }] : [call];
}

/** Keeps the conversation of this tab across reloads, one for each place the page is served at. */
export class Keeper {
  #key = `agent-kit:conversation:${location.pathname}`;
  #limit = 2_000_000;

  /** @returns {Conversation} the kept conversation, or a new one */
  load() {
    try {
      const kept = JSON.parse(sessionStorage.getItem(this.#key) ?? "null");
      const { version, id, isStored = false, turns } = kept ?? {};
      if (version === 1) return { id, isStored, turns };
    } catch {
      // Storage is blocked or holds something else: start anew.
    }
    return newConversation();
  }

  /**
   * Keep the conversation; of one that is too large, its newest turns.
   * @param {Conversation} conversation
   */
  save({ id, isStored, turns }) {
    for (
      let first = 0;
      first <= turns.length;
      first += Math.ceil((turns.length - first) / 2) || 1
    ) {
      const text = JSON.stringify({ version: 1, id, isStored, turns: turns.slice(first) });
      if (text.length <= this.#limit && this.#store(text)) return;
    }
  }

  /** @param {string} text */
  #store(text) {
    try {
      sessionStorage.setItem(this.#key, text);
      return true;
    } catch {
      return false;
    }
  }
}

/**
 * The whole conversation as JSON.
 * @param {Conversation} conversation
 * @param {object} agent who answered
 */
export function toJson({ id, turns }, agent) {
  const exported = turns.map(({ question, answer }) => ({
    input: questionItem(question),
    output: answer.output,
    status: answer.status,
    error: answer.error,
    model: answer.model,
    usage: answer.usage,
    trace_id: answer.traceId,
    seconds: answer.endedAt && (answer.endedAt - answer.startedAt) / 1000,
    feedback: answer.feedback,
  }));
  return JSON.stringify({ conversation_id: id, agent, turns: exported }, null, 2) + "\n";
}

/**
 * The conversation as a Markdown document.
 * @param {Conversation} conversation
 * @param {string} title
 */
export function toMarkdown({ turns }, title) {
  const parts = turns.flatMap(({ question, answer }) => [
    "## You",
    ...question.attachments.map(({ name }) => `*Attached: ${name}*`),
    question.text,
    `## ${title}`,
    ...answer.output.map(itemMarkdown),
    answer.error ? `> **Error:** ${answer.error.message}` : "",
  ]);
  return [`# ${title}`, ...parts].filter(Boolean).join("\n\n") + "\n";
}

/**
 * @param {Item} item
 * @returns {string}
 */
function itemMarkdown(item) {
  if (item.type === "message") return answerText(/** @type {any} */ ({ output: [item] }));
  if (item.type === "function_call") {
    return `**Tool ${item.name}**\n\n${fence(asText(item.arguments), "json")}`;
  }
  if (item.type === "mcp_call") return pairOf(item).map(itemMarkdown).join("\n\n");
  return item.type === "function_call_output" ? fence(asText(item.output), "text") : "";
}

/**
 * A code block whose fence is longer than any in the text.
 * @param {string} text
 * @param {string} language
 */
function fence(text, language) {
  const runs = text.match(/`{3,}/g) ?? [];
  const marks = "`".repeat(Math.max(2, ...runs.map((run) => run.length)) + 1);
  return `${marks}${language}\n${text}\n${marks}`;
}

/**
 * The last question as an evaluation case: one row of JSON Lines, as `agent-evaluate` reads them.
 * @param {Conversation} conversation
 * @param {Record<string, any>} expectations
 */
export function toCase({ turns }, expectations) {
  const traceId = turns.at(-1)?.answer.traceId;
  const tags = traceId ? { source: "chat page", source_trace: traceId } : { source: "chat page" };
  return JSON.stringify({ inputs: { input: toInput(turns) }, expectations, tags }) + "\n";
}

/**
 * What is going on at the end of the conversation.
 * @param {Conversation} conversation
 * @returns {Answer | null} the answer that is being given
 */
export function runningAnswer({ turns }) {
  const answer = turns.at(-1)?.answer;
  return answer && isRunning(answer) ? answer : null;
}
