/** The page: learns who the agent is, and joins message box, runs and transcript. */

import { answerText, failAnswer, newAnswer } from "./answer.js";
import { Composer } from "./composer.js";
import * as conversations from "./conversation.js";
import { Drawer } from "./drawer.js";
import { createConversation, readConversation, shortenConversation } from "./history.js";
import { announce, copyText, download, find, h, icon } from "./dom.js";
import { Run } from "./run.js";
import { call, Problem } from "./stream.js";
import { TurnView } from "./view.js";

/**
 * @typedef {import("./conversation.js").Turn} Turn
 * @typedef {import("./conversation.js").Conversation} Conversation
 * @typedef {import("./conversation.js").Question} Question
 */

/** What `agent/info` says; these stand in until it has, or where it says nothing. */
const agent = {
  name: "agent",
  title: "Agent",
  greeting: "What can I do for you?",
  icon: "",
  version: "",
  model: "",
  task: "",
  example_prompts: /** @type {string[]} */ ([]),
  features: { background: false, feedback: false, conversations: false },
};

class Page {
  #scroller = find("#scroller");
  #turns = find("#turns");
  #toBottom = find("#to-bottom");
  #keeper = new conversations.Keeper();
  #conversation = this.#keeper.load();
  /** @type {TurnView[]} */
  #views = [];
  /** @type {Run | null} */
  #run = null;
  #composer = new Composer(
    (question) => this.#ask(question),
    () => this.#stop(),
    (message) => toast(message),
  );
  #actions = {
    retry: (/** @type {Turn} */ turn) => this.#retry(turn),
    edit: (/** @type {Turn} */ turn, /** @type {string} */ text) => this.#edit(turn, text),
    rate: this.#rate.bind(this),
    isBusy: () => this.#run !== null,
  };

  constructor() {
    this.#scroller.addEventListener("scroll", () => this.#showToBottom(), { passive: true });
    this.#toBottom.addEventListener("click", () => this.#scrollToEnd("smooth"));
    find("#new-chat").addEventListener("click", () => this.#startAnew());
    find("#theme").addEventListener("click", switchTheme);
    document.addEventListener("keydown", (event) => this.#onKey(event));
    addEventListener("pagehide", () => this.#keeper.save(this.#conversation));
    this.#listenToExports();
    this.#offerConversations();
    this.#showAll();
    this.#pickUp();
    this.#composer.focus();
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    const isElsewhere = document.querySelector("dialog[open], :popover-open, .editor:focus-within");
    if (event.key === "Escape" && this.#run && !isElsewhere) this.#stop();
  }

  /** Show the whole conversation; the agent's greeting where there is none. */
  #showAll() {
    const { turns } = this.#conversation;
    this.#views = turns.map((turn) => this.#newView(turn));
    this.#turns.replaceChildren(...this.#views.map(({ element }) => element));
    this.#showEmpty();
    this.#scrollToEnd();
  }

  #showEmpty() {
    const isEmpty = this.#conversation.turns.length === 0;
    find("#welcome").hidden = !isEmpty;
    find("#new-chat").disabled = find("#export").disabled = isEmpty;
  }

  /** @param {Turn} turn */
  #newView(turn) {
    const { title, features } = agent;
    return new TurnView(turn, this.#actions, { title, canRate: features.feedback });
  }

  /** @param {Question} question */
  #ask(question) {
    const turn = { question, answer: newAnswer({ background: agent.features.background }) };
    this.#conversation.turns.push(turn);
    const view = this.#newView(turn);
    this.#views.push(view);
    this.#turns.append(view.element);
    this.#showEmpty();
    this.#scrollToEnd();
    const conversation = this.#conversation;
    this.#follow(view, (run) => run.start(() => this.#request(conversation)));
  }

  /** Changes of the server's conversation, one after the other; the next request waits for them. */
  #changes = Promise.resolve();

  /** @param {Conversation} conversation */
  async #request(conversation) {
    await this.#changes;
    if (agent.features.conversations && !conversation.isStored) {
      conversation.id = await createConversation(conversation.turns[0].question.text);
      conversation.isStored = true;
    }
    const { id, isStored, turns } = conversation;
    const context = { conversation_id: id };
    if (!isStored) return { input: conversations.toInput(turns), context };
    return { conversation: id, input: conversations.toNewInput(turns), context };
  }

  /**
   * Take turns out of the server's conversation.
   * @param {number} index of the first turn that goes
   */
  #cutStored(index) {
    const { id, isStored, turns } = this.#conversation;
    if (!isStored || !turns.slice(index).some(({ answer }) => answer.isKept)) return;
    this.#changes = this.#changes
      .then(() => shortenConversation(id, index))
      .catch((error) => toast(error.message));
  }

  #offerConversations() {
    find("#history").hidden = !agent.features.conversations;
    const onProblem = (/** @type {any} */ error) => toast(error.message);
    const open = async (/** @type {string} */ id) => {
      try {
        const conversation = await readConversation(id);
        this.#leave();
        find("#toast").hidden = true;
        this.#replace(conversation);
        this.#pickUp();
      } catch (error) {
        onProblem(error);
      }
    };
    new Drawer(open, () => this.#conversation.id, onProblem);
  }

  /** Turn to another conversation; a run in the background goes on. */
  #leave() {
    this.#run?.leave();
    this.#run = null;
    this.#composer.setBusy(false);
  }

  /** Go on with an answer that a reload of the page has interrupted. */
  #pickUp() {
    const answer = conversations.runningAnswer(this.#conversation);
    if (!answer) return;
    const view = this.#views[this.#views.length - 1];
    if (answer.background && answer.id) this.#follow(view, (run) => run.resume());
    else this.#breakOff(view);
  }

  /**
   * Say that an answer cannot go on: the server gave it to a page that is no more.
   * @param {TurnView} view
   */
  #breakOff(view) {
    const message = "The page was closed or reloaded before the answer was complete.";
    failAnswer(view.turn.answer, new Problem("cut", message));
    view.update();
    this.#keeper.save(this.#conversation);
  }

  /**
   * @param {TurnView} view
   * @param {(run: Run) => Promise<void>} begin
   */
  async #follow(view, begin) {
    const { answer } = view.turn;
    const painter = new Painter(() => this.#paint(view));
    const run = new Run(answer, () => painter.ask());
    this.#run = run;
    this.#composer.setBusy(true);
    announce("The agent is working.");
    await begin(run);
    painter.paintNow();
    if (this.#run !== run) return;
    this.#note(answer);
    this.#run = null;
    this.#composer.setBusy(false);
    this.#keeper.save(this.#conversation);
    announce(answer.error ? answer.error.message : answerText(answer) || "The agent is done.");
  }

  /**
   * Note what the server's conversation holds now: all up to an answer that came to its end.
   * @param {import("./answer.js").Answer} answer
   */
  #note({ status, error }) {
    const { turns } = this.#conversation;
    if (this.#conversation.isStored && ["completed", "incomplete"].includes(status)) {
      for (const turn of turns) turn.answer.isKept = true;
    }
    if (error?.code !== "conversation_not_found") return;
    this.#conversation.isStored = false;
    for (const turn of turns) turn.answer.isKept = false;
  }

  #savedAt = 0;

  /** @param {TurnView} view */
  #paint(view) {
    const wasAtEnd = this.#isAtEnd();
    view.update();
    if (wasAtEnd) this.#scrollToEnd();
    this.#showToBottom();
    if (Date.now() - this.#savedAt < 1000) return;
    this.#savedAt = Date.now();
    this.#keeper.save(this.#conversation);
  }

  #stop() {
    this.#run?.stop();
  }

  /**
   * Ask a turn's question again.
   * @param {Turn} turn
   */
  #retry({ question }) {
    if (this.#run) return;
    this.#cutFrom(this.#conversation.turns.findIndex((turn) => turn.question === question));
    this.#ask(question);
  }

  /**
   * Ask another question in the place of a turn's.
   * @param {Turn} turn
   * @param {string} text
   */
  #edit({ question }, text) {
    if (this.#run) return;
    const { turns } = this.#conversation;
    const index = turns.findIndex((turn) => turn.question === question);
    if (index < turns.length - 1) this.#offerUndo("Later messages were removed", index);
    this.#cutFrom(index);
    this.#ask({ ...question, text });
    this.#composer.focus();
  }

  /** @param {number} index of the first turn that goes */
  #cutFrom(index) {
    this.#cutStored(index);
    this.#conversation.turns.splice(index);
    for (const { element } of this.#views.splice(index)) element.remove();
  }

  #startAnew() {
    this.#leave();
    this.#offerUndo("A new chat has begun", Infinity);
    this.#replace(conversations.newConversation());
  }

  /** @param {Conversation} conversation */
  #replace(conversation) {
    this.#conversation = conversation;
    this.#keeper.save(conversation);
    this.#showAll();
    this.#composer.focus();
  }

  /**
   * @param {string} message
   * @param {number} index of the first turn that the server's conversation loses
   */
  #offerUndo(message, index) {
    const before = { ...this.#conversation, turns: [...this.#conversation.turns] };
    toast(message, "Undo", () => {
      this.#stop();
      if (this.#conversation.id === before.id) this.#cutStored(index);
      for (const { answer } of before.turns.slice(index)) answer.isKept = false;
      this.#replace(before);
      this.#pickUp();
    });
  }

  /**
   * @param {Turn} turn
   * @param {boolean} value
   * @param {string} comment
   */
  #rate(turn, value, comment) {
    this.#ratings = this.#ratings.then(() => this.#sendRating(turn, value, comment));
    turn.answer.feedback = { value, comment };
    return this.#ratings;
  }

  /** Ratings go to the server one after the other, so that the last one stays. */
  #ratings = Promise.resolve();

  /**
   * @param {Turn} turn
   * @param {boolean} value
   * @param {string} comment
   */
  async #sendRating({ answer }, value, comment) {
    const body = { trace_id: answer.traceId, value, ...(comment && { comment }) };
    try {
      await call("agent/feedback", { body });
      if (comment) toast("Thank you");
    } catch (error) {
      answer.feedback = null;
      toast(/** @type {Error} */ (error).message);
    }
    this.#keeper.save(this.#conversation);
  }

  #isAtEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    return scrollHeight - scrollTop - clientHeight < 48;
  }

  /** @param {ScrollBehavior} [behavior] */
  #scrollToEnd(behavior = "instant") {
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const how = isCalm ? "instant" : behavior;
    this.#scroller.scrollTo({ top: this.#scroller.scrollHeight, behavior: how });
  }

  #showToBottom() {
    this.#toBottom.hidden = this.#isAtEnd();
  }

  #listenToExports() {
    const menu = find("#export-menu");
    const name = () => `chat-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}`;
    const choices = {
      "#export-json": () => {
        const text = conversations.toJson(this.#conversation, agent);
        download(`${name()}.json`, text, "application/json");
      },
      "#export-markdown": () => {
        const text = conversations.toMarkdown(this.#conversation, agent.title);
        download(`${name()}.md`, text, "text/markdown");
      },
      "#export-case": () => this.#openCase(),
    };
    for (const [selector, choose] of Object.entries(choices)) {
      find(selector).addEventListener("click", () => {
        menu.hidePopover();
        choose();
      });
    }
    find("#expectation").addEventListener("change", () => this.#offerExpectation());
    find("#case-form").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      this.#saveCase(event.submitter?.id ?? "");
    });
  }

  #openCase() {
    find("#expectation").value = "expected_facts";
    find("#expected").value = "";
    find("#case-dialog").showModal();
  }

  /** Where the very words count, the answer that was given is there to start from. */
  #offerExpectation() {
    const answer = this.#conversation.turns.at(-1)?.answer;
    const said = answer ? answerText(answer) : "";
    const isResponse = find("#expectation").value === "expected_response";
    const field = find("#expected");
    if (["", said].includes(field.value)) field.value = isResponse ? said : "";
  }

  /** @returns {Record<string, any>} */
  #expectations() {
    const kind = find("#expectation").value;
    const text = find("#expected").value.trim();
    if (!text) return {};
    if (kind === "expected_response") return { [kind]: text };
    const lines = text.split("\n").map((/** @type {string} */ line) => line.trim());
    return { [kind]: lines.filter(Boolean) };
  }

  /** @param {string} how the id of the button that was pressed */
  #saveCase(how) {
    const row = conversations.toCase(this.#conversation, this.#expectations());
    if (how === "case-copy") copyText(row, find("#case-copy"));
    if (how === "case-download") download("case.jsonl", row, "application/jsonl");
    if (how !== "case-copy") find("#case-dialog").close();
  }
}

/** Draws at most once a frame, however fast the events come. */
class Painter {
  #frame = 0;

  /** @param {() => void} paint */
  constructor(paint) {
    this.paint = paint;
  }

  ask() {
    this.#frame ||= requestAnimationFrame(() => this.paintNow());
  }

  paintNow() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.paint();
  }
}

let toastTimer = 0;

/**
 * Say something for a few seconds, with one thing to do about it.
 * @param {string} message
 * @param {string} [action]
 * @param {() => void} [onAction]
 */
function toast(message, action, onAction) {
  const element = find("#toast");
  const hide = () => (element.hidden = true);
  const act = () => {
    hide();
    onAction?.();
  };
  const button = action && h("button", { type: "button", onclick: act }, action);
  element.replaceChildren(...[message, button].filter(Boolean));
  element.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(hide, 8000);
}

/** Go from light to dark or back, and remember it. */
function switchTheme() {
  const root = document.documentElement;
  const isDark =
    getComputedStyle(root).colorScheme === "dark" || (!root.dataset.theme && prefersDark());
  root.dataset.theme = isDark ? "light" : "dark";
  try {
    localStorage.setItem("agent-kit:theme", root.dataset.theme);
  } catch {
    // Storage is blocked: the choice lasts until the page is closed.
  }
}

function prefersDark() {
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Learn who the agent is; the page works without, under a plain name. */
async function learnAgent() {
  try {
    const info = await (await call("agent/info")).json();
    Object.assign(agent, info, { features: { ...agent.features, ...info.features } });
  } catch (error) {
    toast(/** @type {Error} */ (error).message, "Reload", () => location.reload());
  }
}

/** An icon is an emoji or the address of a picture. */
function showAgent() {
  document.title = agent.title;
  find("#title").textContent = agent.title;
  find("#model").textContent = agent.model;
  find("#greeting").textContent = agent.greeting;
  const isPicture = /[./:]/.test(agent.icon);
  for (const place of document.querySelectorAll(".agent-icon")) {
    const picture = isPicture ? h("img", { src: agent.icon, alt: "" }) : agent.icon;
    if (agent.icon) place.replaceChildren(picture);
  }
  if (agent.icon) find("#favicon").href = isPicture ? agent.icon : "agent/icon.svg";
}

function showExamples() {
  const field = find("#message");
  const chips = agent.example_prompts.map((prompt) => {
    const onclick = () => {
      field.value = prompt;
      find("#composer").requestSubmit();
    };
    return h("button", { type: "button", class: "example", onclick }, h("span", {}, prompt));
  });
  find("#examples").replaceChildren(...chips);
}

for (const place of document.querySelectorAll("[data-icon]")) {
  place.prepend(icon(/** @type {any} */ (place).dataset.icon));
}
await learnAgent();
showAgent();
showExamples();
new Page();
document.documentElement.classList.add("ready");
