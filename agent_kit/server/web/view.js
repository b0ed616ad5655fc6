/** The transcript: questions, answers, tool calls and thoughts as elements of the page. */

import { answerText, asText, isRunning, messageText, reasoningText } from "./answer.js";
import { copyText, h, icon, iconButton } from "./dom.js";
import { codeBlock, MarkdownView } from "./markdown.js";

/**
 * @typedef {import("./answer.js").Answer} Answer
 * @typedef {import("./answer.js").Item} Item
 * @typedef {import("./conversation.js").Turn} Turn
 *
 * @typedef {object} Actions what the transcript asks of the page
 * @property {(turn: Turn) => void} retry
 * @property {(turn: Turn, text: string) => void} edit
 * @property {(turn: Turn, value: boolean, comment: string) => Promise<void>} rate
 * @property {() => boolean} isBusy whether an answer is being given
 */

/** One question and its answer. */
export class TurnView {
  #answer;
  #question;

  /**
   * @param {Turn} turn
   * @param {Actions} actions
   * @param {{title: string, canRate: boolean}} agent
   */
  constructor(turn, actions, agent) {
    this.turn = turn;
    this.#question = questionView(turn, actions);
    this.#answer = new AnswerView(turn, actions, agent);
    this.element = h("section", { class: "turn" }, this.#question, this.#answer.element);
    this.update();
  }

  update() {
    this.#answer.update();
  }
}

/**
 * @param {Turn} turn
 * @param {Actions} actions
 */
function questionView(turn, actions) {
  const { text, attachments } = turn.question;
  const bubble = h("div", { class: "bubble", dir: "auto" }, text);
  const copy = iconButton("copy", "Copy question", () => copyText(text, copy));
  const edit = iconButton("edit", "Edit question", () => {
    if (!actions.isBusy()) element.replaceWith(editor(turn, actions, element));
  });
  const element = h(
    "div",
    { class: "question" },
    h("h2", { class: "for-readers" }, "You"),
    attachments.length > 0 && h("div", { class: "chips" }, ...attachments.map(attachmentChip)),
    h("div", { class: "said" }, h("div", { class: "actions" }, copy, edit), text && bubble),
  );
  return element;
}

/**
 * @param {import("./conversation.js").Attachment} attachment
 */
export function attachmentChip({ name, type, data }) {
  const picture = type.startsWith("image/")
    ? h("img", { src: data, alt: "", class: "thumbnail" })
    : icon("file");
  return h("span", { class: "chip" }, picture, h("span", {}, name));
}

/**
 * @param {Turn} turn
 * @param {Actions} actions
 * @param {HTMLElement} question is shown again when editing is given up
 */
function editor(turn, actions, question) {
  const field = h("textarea", { "aria-label": "Edit question", rows: 3, dir: "auto" });
  field.value = turn.question.text;
  const close = () => form.replaceWith(question);
  const send = (/** @type {Event} */ event) => {
    event.preventDefault();
    if (field.value.trim()) actions.edit(turn, field.value.trim());
  };
  const onkeydown = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Escape") close();
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
  };
  const form = h(
    "form",
    { class: "editor", onsubmit: send, onkeydown },
    field,
    h("p", { class: "hint" }, "Sending it removes what came after it."),
    h("button", { type: "button", class: "button", onclick: close }, "Cancel"),
    h("button", { type: "submit", class: "button primary" }, "Send"),
  );
  requestAnimationFrame(() => field.focus());
  return form;
}

/** @typedef {{kind: keyof typeof ROWS, item: Item, result?: Item}} Row */

/** An answer, row by row; rows that are complete are left as they are. */
class AnswerView {
  #rows = h("div", { class: "rows" });
  #waiting = h("p", { class: "waiting" }, h("span", {}), h("span", {}), h("span", {}));
  #end = h("div", { class: "end" });
  /** @type {{kind: keyof typeof ROWS, view: RowView}[]} */
  #views = [];

  /**
   * @param {Turn} turn
   * @param {Actions} actions
   * @param {{title: string, canRate: boolean}} agent
   */
  constructor(turn, actions, agent) {
    this.turn = turn;
    this.actions = actions;
    this.agent = agent;
    const heading = h("h2", { class: "for-readers" }, agent.title);
    const children = [heading, this.#rows, this.#waiting, this.#end];
    this.element = h("div", { class: "answer" }, ...children);
  }

  update() {
    const { answer } = this.turn;
    rowsOf(answer).forEach((row, index, all) => {
      this.#viewAt(index, row.kind).update(row.item, answer, row.result);
      if (index === all.length - 1) this.#dropAfter(index);
    });
    this.element.classList.toggle("running", isRunning(answer));
    this.#waiting.hidden = !isRunning(answer) || hasOpenItem(answer);
    if (!isRunning(answer) && !this.#end.hasChildNodes()) {
      this.#end.append(...endOf(this.turn, this.actions, this.agent));
    }
  }

  /**
   * @param {number} index
   * @param {keyof typeof ROWS} kind
   * @returns {RowView}
   */
  #viewAt(index, kind) {
    const known = this.#views[index];
    if (known?.kind === kind) return known.view;
    const view = new ROWS[kind]();
    this.#views[index] = { kind, view };
    if (known) known.view.element.replaceWith(view.element);
    else this.#rows.append(view.element);
    return view;
  }

  /** @param {number} index */
  #dropAfter(index) {
    for (const { view } of this.#views.splice(index + 1)) view.element.remove();
  }
}

/**
 * What is shown of an answer: a call and its result are one row.
 * @param {Answer} answer
 * @returns {Row[]}
 */
function rowsOf({ output }) {
  const isResult = (/** @type {Item} */ item) => item.type === "function_call_output";
  const calls = new Set(output.filter((item) => item.type === "function_call").map(callId));
  const results = new Map(output.filter(isResult).map((item) => [callId(item), item]));
  /** @type {Row[]} */
  const rows = [];
  for (const item of output) {
    if (item.type === "message") rows.push({ kind: "message", item });
    else if (item.type === "reasoning") rows.push({ kind: "reasoning", item });
    else if (!isResult(item)) rows.push({ kind: "tool", item, result: results.get(callId(item)) });
    else if (!calls.has(callId(item))) rows.push({ kind: "tool", item, result: item });
  }
  return rows.filter(({ kind, item }) => kind !== "reasoning" || reasoningText(item));
}

/** @param {Item} item */
function callId(item) {
  return item.call_id;
}

/**
 * Whether something on the page already shows that the agent is at work.
 * @param {Answer} answer
 */
function hasOpenItem({ output }) {
  const last = output.at(-1);
  return last?.status === "in_progress" || last?.type === "function_call";
}

/**
 * @typedef {object} RowView
 * @property {HTMLElement} element
 * @property {(item: Item, answer: Answer, result?: Item) => void} update
 */

class MessageRow {
  #markdown = new MarkdownView();
  #sources = h("ol", { class: "sources", "aria-label": "Sources", hidden: true });
  element = h("div", { class: "message" }, this.#markdown.element, this.#sources);
  #isDone = false;

  /** @param {Item} item */
  update(item) {
    if (this.#isDone) return;
    this.#markdown.update(messageText(item));
    this.#isDone = item.status !== "in_progress";
    if (!this.#isDone) return;
    this.#markdown.finish();
    this.#showSources(item);
  }

  /** @param {Item} item */
  #showSources({ content }) {
    const cited = content.flatMap((/** @type {any} */ part) => part.annotations ?? []);
    const links = cited.flatMap((/** @type {any} */ { url, title }) => {
      if (!/^https?:/.test(URL.parse(url ?? "")?.protocol ?? "")) return [];
      const attributes = { href: url, target: "_blank", rel: "noopener noreferrer" };
      return [h("li", {}, h("a", attributes, title || url))];
    });
    this.#sources.replaceChildren(...links);
    this.#sources.hidden = links.length === 0;
  }
}

class ReasoningRow {
  #markdown = new MarkdownView();
  #title = h("span", {}, "Thinking");
  element = h(
    "details",
    { class: "reasoning" },
    h("summary", {}, icon("chevron"), this.#title),
    this.#markdown.element,
  );

  /**
   * @param {Item} item
   * @param {Answer} answer
   */
  update(item, answer) {
    this.#markdown.update(reasoningText(item));
    const isOpen = item.status === "in_progress";
    const time = duration(answer.clocks[item.id], 1000);
    this.element.classList.toggle("running", isOpen);
    this.#title.textContent = isOpen ? "Thinking" : time ? `Thought for ${time}` : "Thought";
  }
}

/** A tool call: what was called with what, what came back, how long it took. */
class ToolRow {
  #status = h("span", { class: "tool-status" });
  #head = h("summary");
  #body = h("div", { class: "tool-body" });
  element = h("details", { class: "tool" }, this.#head, this.#body);
  #shown = "";

  /**
   * @param {Item} item
   * @param {Answer} answer
   * @param {Item} [result]
   */
  update(item, answer, result) {
    const parts = toolParts(item, result);
    const state = toolState(item, answer, result);
    const shown = `${state} ${parts.name} ${parts.args.length} ${parts.output?.length}`;
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.element.dataset.state = state;
    this.#showHead(parts, state, duration(answer.clocks[item.call_id ?? item.id], 1));
    this.#body.replaceChildren(
      ...argumentsView(parts.args),
      ...(parts.output === null ? [] : [label("Result"), resultView(parts.output)]),
    );
    if (state === "done" || state === "failed") this.#unfoldOnce(parts);
  }

  /**
   * @param {ToolParts} parts
   * @param {keyof typeof STATES} state
   * @param {string} time
   */
  #showHead({ name, args, output }, state, time) {
    const preview = h("span", { class: "tool-preview" }, previewOf(args, output));
    this.#status.replaceChildren(
      ...(state === "running" ? [h("span", { class: "spinner" })] : [icon(STATES[state].icon)]),
      h("span", {}, state === "done" && time ? time : STATES[state].label),
    );
    const title = h("span", { class: "tool-name" }, name);
    this.#head.replaceChildren(icon("chevron"), icon("tool"), title, preview, this.#status);
  }

  #isSettled = false;

  /** @param {ToolParts} parts a short call is shown at once, a long one stays folded */
  #unfoldOnce({ args, output }) {
    if (this.#isSettled) return;
    this.#isSettled = true;
    const length = args.length + (output ?? "").length;
    const lines = (args.match(/\\n/g) ?? []).length + (output ?? "").split("\n").length;
    if (length <= 400 && lines <= 10) /** @type {any} */ (this.element).open = true;
  }
}

const ROWS = { message: MessageRow, reasoning: ReasoningRow, tool: ToolRow };

/** @type {Record<string, {icon: any, label: string}>} */
const STATES = {
  running: { icon: "tool", label: "Running" },
  done: { icon: "check", label: "Done" },
  failed: { icon: "warning", label: "Failed" },
  unanswered: { icon: "stop", label: "No result" },
};

/**
 * @typedef {{name: string, args: string, output: string | null}} ToolParts
 * @param {Item} item
 * @param {Item} [result]
 * @returns {ToolParts}
 */
function toolParts(item, result) {
  if (item.type === "function_call" || item.type === "mcp_call") {
    const output = result?.output ?? item.output ?? item.error?.content ?? item.error ?? null;
    return {
      name: item.name ?? item.type,
      args: asText(item.arguments),
      output: output && asText(output),
    };
  }
  if (item.type === "function_call_output") {
    return { name: "result", args: "", output: asText(item.output) };
  }
  const { id, type, status, ...rest } = item;
  return { name: String(type).replaceAll("_", " "), args: asText(rest), output: null };
}

/**
 * @param {Item} item
 * @param {Answer} answer
 * @param {Item} [result]
 */
function toolState(item, answer, result) {
  const isFailed = item.error || item.status === "failed" || result?.status === "incomplete";
  if (isFailed) return "failed";
  const isOpen = ["in_progress", "incomplete"].includes(item.status);
  const isAnswered = item.type === "function_call" ? result : !isOpen;
  if (isAnswered) return "done";
  return isRunning(answer) ? "running" : "unanswered";
}

/**
 * @param {string} args
 * @param {string | null} output
 */
function previewOf(args, output) {
  const parsed = parseObject(args);
  const said = parsed ? Object.values(parsed).map(asText).join(" · ") : args;
  const came = output === null || output.length > 60 ? "" : ` → ${output}`;
  return `${said.slice(0, 200)}${came}`.replace(/\s+/g, " ").trim();
}

/** @param {string} text */
function parseObject(text) {
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}

/** Arguments that are programs, and the language they are in. */
/** @type {Record<string, string>} */
const PROGRAMS = { code: "python", python: "python", query: "sql", sql: "sql", command: "shell" };

/**
 * @param {string} args
 * @returns {Node[]}
 */
function argumentsView(args) {
  const parsed = parseObject(args);
  if (!parsed) return args ? [label("Arguments"), codeBlock(args, "json")] : [];
  const entries = Object.entries(parsed);
  const isProgram = entries.length === 1 && typeof entries[0][1] === "string";
  if (isProgram && entries[0][0] in PROGRAMS) {
    return [label("Arguments"), codeBlock(entries[0][1], PROGRAMS[entries[0][0]])];
  }
  return entries.length ? [label("Arguments"), codeBlock(jsonText(parsed), "json")] : [];
}

/** @param {string} output */
function resultView(output) {
  const parsed = /^\s*[[{]/.test(output) ? parseObject(output) : null;
  return parsed ? codeBlock(jsonText(parsed), "json") : codeBlock(output, "");
}

/**
 * JSON on one line where it fits there.
 * @param {object} value
 */
function jsonText(value) {
  const spread = JSON.stringify(value, null, 1);
  const line = spread.replace(/\n\s*/g, " ");
  return line.length <= 76 && !/\\n/.test(line) ? line : JSON.stringify(value, null, 2);
}

/** @param {string} text */
function label(text) {
  return h("h3", { class: "label" }, text);
}

/**
 * @param {import("./answer.js").Clock} [clock]
 * @param {number} [least] milliseconds; a shorter time is not worth a word
 * @returns {string} such as "0.4 s", or nothing where it was not measured
 */
function duration(clock, least = 0) {
  return clock?.to && clock.to - clock.from >= least ? seconds(clock.to - clock.from) : "";
}

/** @param {number} milliseconds */
function seconds(milliseconds) {
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  const value = milliseconds / 1000;
  if (value >= 60) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return `${Number(value.toFixed(value < 10 ? 1 : 0))} s`;
}

/**
 * What follows an answer that is over: how it ended, what can be done with it, what it took.
 * @param {Turn} turn
 * @param {Actions} actions
 * @param {{canRate: boolean}} agent
 * @returns {Node[]}
 */
function endOf(turn, actions, { canRate }) {
  const { answer } = turn;
  const text = answerText(answer);
  const copy = iconButton("copy", "Copy answer", () => copyText(text, copy));
  const retry = !answer.error && iconButton("retry", "Answer again", () => actions.retry(turn));
  if (retry) retry.classList.add("retry");
  const rating = canRate && answer.traceId ? ratingView(turn, actions) : null;
  const tools = h("div", { class: "actions" }, text && copy, retry, ...(rating?.buttons ?? []));
  const bar = h("div", { class: "bar" }, tools, metricsView(answer));
  const ending = answer.error ? errorView(turn, actions) : endingNote(answer);
  return [ending, bar, rating?.comment].filter((node) => node instanceof Node);
}

/** @type {Record<string, string>} */
const REASONS = {
  max_output_tokens: "The answer stops here: it reached its token limit.",
  content_filter: "The answer stops here: a content filter cut it off.",
};

/** @param {Answer} answer */
function endingNote({ status, reason }) {
  if (status === "stopped") return h("p", { class: "note" }, "Stopped");
  if (status !== "incomplete") return null;
  const said = REASONS[reason ?? ""] ?? `The answer is incomplete${reason ? ` (${reason})` : ""}.`;
  return h("p", { class: "note" }, said);
}

/**
 * @param {Turn} turn
 * @param {Actions} actions
 */
function errorView(turn, actions) {
  const { error, id, traceId } = turn.answer;
  if (!error) return null;
  const isSignedOut = error.kind === "signed-out";
  const act = isSignedOut ? () => location.reload() : () => actions.retry(turn);
  const details = [
    error.status && `HTTP ${error.status}`,
    error.code && `code ${error.code}`,
    id && `response ${id}`,
    traceId && `trace ${traceId}`,
  ].filter(Boolean);
  return h(
    "div",
    { class: "problem" },
    icon("warning"),
    h("div", {}, h("p", {}, error.message), details.length > 0 && detailsView(details)),
    h(
      "button",
      { type: "button", class: isSignedOut ? "button" : "button retry", onclick: act },
      isSignedOut ? "Reload" : "Retry",
    ),
  );
}

/** @param {(string | 0 | null | undefined | false)[]} details */
function detailsView(details) {
  return h("details", {}, h("summary", {}, icon("chevron"), "Details"), h("code", {}, details.join(" · ")));
}

/** @param {Answer} answer */
function metricsView({ startedAt, firstAt, endedAt, usage, model }) {
  const metrics = [
    firstAt && `${seconds(firstAt - startedAt)} to first token`,
    endedAt && `${total(endedAt - startedAt)} total`,
    usage?.total_tokens > 0 && tokens(usage),
  ].filter(Boolean);
  return h("p", { class: "metrics", title: model && `Model: ${model}` }, metrics.join(" · "));
}

/** @param {Record<string, any>} usage */
function tokens({ input_tokens: asked = 0, output_tokens: said = 0 }) {
  return `${asked.toLocaleString("en")} tokens in, ${said.toLocaleString("en")} out`;
}

/**
 * @param {number} milliseconds in whole seconds where the server has measured them
 */
function total(milliseconds) {
  return milliseconds === 0 ? "under 1 s" : seconds(milliseconds);
}

/**
 * Thumbs, and a comment once one of them is chosen.
 * @param {Turn} turn
 * @param {Actions} actions
 */
function ratingView(turn, actions) {
  const up = iconButton("thumb-up", "Good answer", () => rate(true));
  const down = iconButton("thumb-down", "Bad answer", () => rate(false));
  const field = h("input", {
    "aria-label": "Comment on the answer",
    placeholder: "What makes you say so? (optional)",
  });
  const send = h("button", { class: "button" }, "Send");
  const onsubmit = (/** @type {Event} */ event) => {
    event.preventDefault();
    rate(turn.answer.feedback?.value ?? true, field.value.trim());
    comment.hidden = true;
  };
  const comment = h("form", { class: "comment", hidden: true, onsubmit }, field, send);

  const show = () => {
    up.setAttribute("aria-pressed", String(turn.answer.feedback?.value === true));
    down.setAttribute("aria-pressed", String(turn.answer.feedback?.value === false));
  };
  const rate = (/** @type {boolean} */ value, text = "") => {
    comment.hidden = false;
    comment.scrollIntoView({ block: "nearest" });
    actions.rate(turn, value, text).finally(show);
    show();
  };
  show();
  return { buttons: [up, down], comment };
}
