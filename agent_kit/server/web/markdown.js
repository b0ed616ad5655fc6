/**
 * Markdown from a model, shown so that it can do no harm.
 *
 * What a model writes is hostile until shown otherwise: it may repeat what a web page told it.
 * HTML in it is shown as text, DOMPurify takes out whatever the parser let through, and the page's
 * Content-Security-Policy is the third wall.
 */

import { copyText, h, iconButton } from "./dom.js";
import { highlight } from "./highlight.js";
import { Marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js";

const { DOMPurify } = /** @type {any} */ (globalThis);

const ALLOWED = {
  ALLOWED_TAGS: (
    "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr img input li ol p pre strong " +
    "table tbody td th thead tr ul"
  ).split(" "),
  ALLOWED_ATTR: "align alt checked data-language disabled href src start title type".split(" "),
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** @param {string} text */
function escapeText(text) {
  return h("i", {}, text).innerHTML.replaceAll('"', "&quot;");
}

/** @type {Record<string, (token: any) => string>} */
const renderer = {
  html: ({ text }) => escapeText(text),
  image: ({ href, text }) => `<img src="${escapeText(href)}" alt="${escapeText(text)}">`,
  code: ({ text, lang }) => {
    const language = escapeText(lang?.split(/\s/)[0] ?? "");
    return `<pre data-language="${language}"><code>${escapeText(text)}</code></pre>`;
  },
};

const marked = new Marked({ gfm: true, breaks: true, renderer });

/**
 * Render blocks of Markdown.
 * @param {any[]} tokens of the parser's lexer
 * @returns {DocumentFragment}
 */
function render(tokens) {
  const fragment = DOMPurify.sanitize(marked.parser(tokens), ALLOWED);
  for (const image of fragment.querySelectorAll("img")) settleImage(image);
  for (const link of fragment.querySelectorAll("a")) settleLink(link);
  for (const block of fragment.querySelectorAll("pre")) {
    block.replaceWith(codeBlock(block.textContent, block.dataset.language));
  }
  for (const table of fragment.querySelectorAll("table")) {
    const region = { class: "table", role: "region", "aria-label": "Table", tabindex: 0 };
    const around = h("div", region);
    table.replaceWith(around);
    around.append(table);
  }
  for (const block of fragment.children) /** @type {HTMLElement} */ (block).dir ||= "auto";
  return fragment;
}

/**
 * Where an address leads to from this page.
 * @param {string | null} address
 */
function resolve(address) {
  return URL.parse(address ?? "", document.baseURI);
}

/**
 * Links lead to the web and to mail, in a new tab that knows nothing of this one.
 * @param {HTMLAnchorElement} link
 */
function settleLink(link) {
  const address = link.getAttribute("href");
  const url = address && resolve(address);
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) {
    link.replaceWith(...link.childNodes);
    return;
  }
  link.target = "_blank";
  link.rel = "noopener noreferrer";
}

/**
 * An image from elsewhere would tell its server who reads this: it is offered as a link.
 * @param {HTMLImageElement} image
 */
function settleImage(image) {
  const source = image.getAttribute("src") ?? "";
  if (/^data:image\/(png|jpeg|gif|webp);/.test(source) || isOwn(source)) {
    image.loading = "lazy";
    return;
  }
  const link = h("a", { href: source }, `Image: ${image.alt || source}`);
  image.replaceWith(link);
}

/** @param {string} source */
function isOwn(source) {
  return resolve(source)?.origin === location.origin;
}

/**
 * A block of code with its language, where it is known, and a button that copies it.
 * @param {string} code
 * @param {string} [language]
 */
export function codeBlock(code, language = "") {
  const copy = iconButton("copy", "Copy code", () => copyText(code, copy));
  const shown = code.length > MUCH ? `${code.slice(0, LITTLE)}…` : code;
  const inner = h("code", {}, ...highlight(shown, language));
  const pre = h("pre", { tabindex: 0 }, inner);
  const name = language && h("span", { class: "language" }, language);
  return h("div", { class: "code", dir: "ltr" }, name, copy, pre, shown !== code && rest(inner, code));
}

/** Text longer than MUCH characters would hold up the page: its first LITTLE ones are shown. */
const MUCH = 50_000;
const LITTLE = 10_000;

/**
 * A button that shows the whole of a long text.
 * @param {HTMLElement} place
 * @param {string} text
 */
function rest(place, text) {
  const onclick = () => {
    place.textContent = text;
    button.remove();
  };
  const size = Math.round(text.length / 1000).toLocaleString("en");
  const label = `Show all ${size},000 characters`;
  const button = h("button", { type: "button", class: "button rest", onclick }, label);
  return button;
}

/** Shows Markdown that grows; blocks that are complete are rendered once. */
export class MarkdownView {
  element = h("div", { class: "prose" });
  #text = "";
  #settled = 0;
  /** @type {ChildNode[]} */
  #open = [];

  /**
   * Show the text as it is now.
   * @param {string} text
   */
  update(text) {
    const current = text.replaceAll("\r\n", "\n");
    if (current === this.#text) return;
    if (!current.startsWith(this.#text)) this.#reset();
    this.#text = current;
    this.#grow();
  }

  /** Show the finished text: a link may be defined below the place where it is used. */
  finish() {
    if (!/^ {0,3}\[[^\]]+\]:/m.test(this.#text)) return;
    this.#reset();
    this.#grow();
  }

  #reset() {
    this.#settled = 0;
    this.#open = [];
    this.element.replaceChildren();
  }

  #grow() {
    const tail = this.#text.slice(this.#settled);
    const tokens = marked.lexer(tail);
    const last = tokens.findLastIndex((token) => token.type !== "space");
    const closed = tokens.slice(0, Math.max(last, 0));
    const closedText = closed.map((token) => token.raw).join("");
    // Later text cannot change a block that another one follows; only where the parser has
    // altered what it read is it not known how far that reaches.
    const isKnown = tail.startsWith(closedText);
    for (const node of this.#open) node.remove();
    if (isKnown) {
      this.element.append(render(closed));
      this.#settled += closedText.length;
    }
    const open = render(isKnown ? tokens.slice(closed.length) : tokens);
    this.#open = [...open.childNodes];
    this.element.append(open);
  }
}
