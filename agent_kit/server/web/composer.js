/** Where the user writes: the message box, its attachments, Send and Stop. */

import { find, h, icon } from "./dom.js";
import { attachmentChip } from "./view.js";

/**
 * @typedef {import("./conversation.js").Attachment} Attachment
 * @typedef {import("./conversation.js").Question} Question
 */

/** Larger pictures are made smaller, as models do themselves: longest side in pixels. */
const LARGEST_SIDE = 1568;
const LARGEST_TEXT = 200_000;

export class Composer {
  #form = find("#composer");
  #field = find("#message");
  #button = find("#send");
  #chips = find("#attachments");
  #picker = find("#picker");
  /** @type {Attachment[]} */
  #attachments = [];
  #isBusy = false;

  /**
   * @param {(question: Question) => void} onSend
   * @param {() => void} onStop
   * @param {(message: string) => void} onProblem
   */
  constructor(onSend, onStop, onProblem) {
    this.onSend = onSend;
    this.onStop = onStop;
    this.onProblem = onProblem;
    this.#listen();
    this.setBusy(false);
  }

  #listen() {
    this.#form.addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      if (this.#isBusy) this.onStop();
      else this.#send();
    });
    this.#field.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      // While a character is being composed (Japanese, Chinese, accents) Enter chooses it.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.#isBusy) this.#send();
    });
    this.#field.addEventListener("input", () => this.#show());
    this.#field.addEventListener("paste", (/** @type {ClipboardEvent} */ event) => {
      if (event.clipboardData?.files.length) event.preventDefault();
      this.#attach(event.clipboardData?.files);
    });
    this.#form.addEventListener("dragover", (/** @type {DragEvent} */ event) => {
      event.preventDefault();
    });
    this.#form.addEventListener("drop", (/** @type {DragEvent} */ event) => {
      event.preventDefault();
      this.#attach(event.dataTransfer?.files);
    });
    find("#attach").addEventListener("click", () => this.#picker.click());
    this.#picker.addEventListener("change", async () => {
      await this.#attach(this.#picker.files);
      this.#picker.value = "";
    });
  }

  /** @param {boolean} isBusy whether an answer is being given: Send is then Stop */
  setBusy(isBusy) {
    this.#isBusy = isBusy;
    const name = isBusy ? "Stop" : "Send";
    this.#button.setAttribute("aria-label", name);
    this.#button.title = isBusy ? "Stop (Esc)" : "Send (Enter)";
    this.#button.replaceChildren(icon(isBusy ? "stop" : "arrow-up"));
    this.#show();
  }

  focus() {
    this.#field.focus();
  }

  #send() {
    const text = this.#field.value.trim();
    const attachments = this.#attachments;
    if (!text && attachments.length === 0) return;
    this.#field.value = "";
    this.#attachments = [];
    this.#show();
    this.onSend({ text, attachments });
  }

  #show() {
    this.#fit();
    const isEmpty = !this.#field.value.trim() && this.#attachments.length === 0;
    this.#button.disabled = isEmpty && !this.#isBusy;
    this.#chips.hidden = this.#attachments.length === 0;
    this.#chips.replaceChildren(...this.#attachments.map((each) => this.#removable(each)));
  }

  /** Grow with the text, where the browser does not do it by itself. */
  #fit() {
    if (CSS.supports("field-sizing", "content")) return;
    const { style } = this.#field;
    style.height = "auto";
    style.height = `${this.#field.scrollHeight}px`;
  }

  /** @param {Attachment} attachment */
  #removable(attachment) {
    const name = `Remove ${attachment.name}`;
    const onclick = () => {
      this.#attachments = this.#attachments.filter((each) => each !== attachment);
      this.#show();
      this.focus();
    };
    const remove = h("button", { type: "button", "aria-label": name, onclick }, icon("close"));
    const chip = attachmentChip(attachment);
    chip.append(remove);
    return chip;
  }

  /** @param {FileList | null | undefined} files */
  async #attach(files) {
    for (const file of files ?? []) {
      try {
        this.#attachments.push(await readFile(file));
      } catch {
        this.onProblem(`${file.name} is no picture and no text, or it is too large.`);
      }
    }
    this.#show();
  }
}

/**
 * @param {File} file
 * @returns {Promise<Attachment>}
 */
async function readFile(file) {
  const { name } = file;
  if (/^image\/(png|jpeg|gif|webp)$/.test(file.type)) {
    return { name, type: file.type, data: await readImage(file) };
  }
  if (file.size > LARGEST_TEXT) throw new RangeError("too large");
  const bytes = await file.arrayBuffer();
  const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  if (text.includes("\0")) throw new TypeError("no text");
  return { name, type: "text/plain", data: text };
}

/**
 * @param {File} file
 * @returns {Promise<string>} a data: URL
 */
async function readImage(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  canvas.getContext("2d")?.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL(file.type === "image/png" ? "image/png" : "image/jpeg", 0.85);
}
