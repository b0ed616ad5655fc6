/** The list of earlier conversations, in a panel at the side. */

import { find, h, iconButton } from "./dom.js";
import { deleteConversation, listConversations } from "./history.js";

/**
 * @typedef {import("./history.js").Summary} Summary
 * @typedef {import("./stream.js").Problem} Problem
 */

export class Drawer {
  #dialog = find("#drawer");
  #list = find("#conversations");
  #more = find("#more-conversations");

  /**
   * @param {(id: string) => void} onOpen
   * @param {() => string} currentId of the conversation that is shown
   * @param {(error: unknown) => void} onProblem
   */
  constructor(onOpen, currentId, onProblem) {
    this.onOpen = onOpen;
    this.currentId = currentId;
    this.onProblem = onProblem;
    find("#history").addEventListener("click", () => this.#open());
    find("#close-drawer").addEventListener("click", () => this.close());
    this.#more.addEventListener("click", () => this.#load());
    this.#dialog.addEventListener("click", (/** @type {Event} */ event) => {
      if (event.target === this.#dialog) this.close();
    });
  }

  close() {
    this.#dialog.close();
  }

  #open() {
    this.#list.replaceChildren();
    this.#dialog.showModal();
    this.#load();
  }

  async #load() {
    this.#more.hidden = true;
    const last = /** @type {HTMLElement?} */ (this.#list.lastElementChild);
    try {
      const { data, has_more } = await listConversations(last?.dataset.id);
      this.#list.append(...data.map((summary) => this.#entry(summary)));
      this.#more.hidden = !has_more;
      find("#no-conversations").hidden = this.#list.childElementCount > 0;
    } catch (error) {
      if (last && /** @type {Problem} */ (error).status === 404) {
        // Somebody deleted it in another window: this list is out of date.
        this.#list.replaceChildren();
        return this.#load();
      }
      this.close();
      this.onProblem(error);
    }
  }

  /** @param {Summary} summary */
  #entry({ id, title, metadata, updated_at }) {
    const isCurrent = id === this.currentId();
    const name = title || metadata.title || "Without a title";
    const open = h(
      "button",
      {
        type: "button",
        class: "conversation",
        "aria-current": isCurrent && "true",
        onclick: () => {
          this.close();
          if (!isCurrent) this.onOpen(id);
        },
      },
      h("span", { class: "conversation-title", dir: "auto" }, name),
      h("span", { class: "conversation-time" }, when(updated_at * 1000)),
    );
    const remove = iconButton("trash", `Delete ${name}`, async () => {
      try {
        await deleteConversation(id);
        entry.remove();
        find("#no-conversations").hidden = this.#list.childElementCount > 0;
      } catch (error) {
        this.close();
        this.onProblem(error);
      }
    });
    const entry = h("li", { "data-id": id }, open, remove);
    return entry;
  }
}

const UNITS = /** @type {const} */ ([
  ["day", 86_400_000],
  ["hour", 3_600_000],
  ["minute", 60_000],
]);

/** @param {number} time milliseconds since 1970 */
function when(time) {
  const ago = Date.now() - time;
  if (ago > 7 * 86_400_000) return new Date(time).toLocaleDateString("en", { dateStyle: "medium" });
  const format = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  const [unit, length] = UNITS.find(([, length]) => ago >= length) ?? [];
  return unit ? format.format(-Math.floor(ago / length), unit) : "just now";
}
