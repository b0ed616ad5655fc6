/** Building the page's elements: text is always text here, never markup. */

const SVG = "http://www.w3.org/2000/svg";

/** Strokes of the icons, drawn on a grid of 24. */
const ICONS = {
  "arrow-up": "M12 19V5m-6 6 6-6 6 6",
  "arrow-down": "M12 5v14m6-6-6 6-6-6",
  check: "m5 12.5 4.5 4.5L19 7.5",
  chevron: "m9 6 6 6-6 6",
  close: "m6 6 12 12M18 6 6 18",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  download: "M12 4v11m-5-5 5 5 5-5M5 20h14",
  edit: "M4 20h4L19 9l-4-4L4 16v4Zm9-13 4 4",
  file: "M7 3h7l5 5v13H7zM14 3v5h5",
  moon: "M20 14.5A8 8 0 0 1 9.5 4a8 8 0 1 0 10.5 10.5Z",
  paperclip:
    "m20 11-8.5 8.5a5 5 0 0 1-7-7L13 4a3.3 3.3 0 0 1 4.7 4.7L9.5 17a1.7 1.7 0 0 1-2.4-2.4L14.5 7",
  plus: "M12 5v14M5 12h14",
  retry: "M4 12a8 8 0 1 1 2.5 5.8M4 20v-5h5",
  stop: "M7 7h10v10H7z",
  "thumb-down":
    "M7 4v10H3V4zm0 9 4 7c2 0 3-1 2.5-3L13 14h6a2 2 0 0 0 2-2.3L19.7 5.5A2 2 0 0 0 17.7 4H7",
  "thumb-up":
    "M7 20V10H3v10zm0-9 4-7c2 0 3 1 2.5 3L13 10h6a2 2 0 0 1 2 2.3l-1.3 6.2a2 2 0 0 1-2 1.5H7",
  menu: "M4 7h16M4 12h16M4 17h10",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10 11v5M14 11v5",
  tool: "M14.5 6.5a4 4 0 0 1 5-1L17 8v2.5h2.5l2.5-1.5a4.5 4.5 0 0 1-6.5 4.5L8 21l-3-3 7.5-7.5a4 4 0 0 1 2-4Z",
  warning: "M12 4 2.5 20h19zM12 10v4m0 3v.01",
};

/**
 * Build an element.
 * @param {string} tag its name
 * @param {Record<string, any>} [attributes] attributes; `onclick` and the like are listeners
 * @param {...(Node | string | null | false | undefined)} children nodes and texts
 * @returns {any} the element
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  const present = children.filter((child) => child || child === "");
  element.append(.../** @type {(Node | string)[]} */ (present));
  return element;
}

/**
 * Draw an icon; it is decoration, so whoever shows it says in words what it means.
 * @param {keyof typeof ICONS} name
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  svg.append(path);
  return svg;
}

/**
 * Build a button that shows an icon and is called by its label.
 * @param {keyof typeof ICONS} name
 * @param {string} label
 * @param {(event: Event) => void} onclick
 */
export function iconButton(name, label, onclick) {
  const attributes = { type: "button", class: "icon-button", "aria-label": label, title: label };
  return h("button", { ...attributes, onclick }, icon(name));
}

/**
 * Find one element of the page; a missing one is a mistake in index.html.
 * @param {string} selector
 * @returns {any}
 */
export function find(selector) {
  const element = document.querySelector(selector);
  if (!element) throw new Error(`index.html has no ${selector}`);
  return element;
}

/**
 * Put text on the clipboard, and let the button say so for a moment.
 * @param {string} text
 * @param {HTMLElement} button an icon button
 */
export async function copyText(text, button) {
  const label = button.getAttribute("aria-label") ?? "";
  const before = [...button.childNodes];
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(text);
    button.replaceChildren(icon("check"));
  } catch {
    said = "The browser does not allow copying here";
  }
  announce(said);
  button.setAttribute("aria-label", said);
  setTimeout(() => {
    button.replaceChildren(...before);
    button.setAttribute("aria-label", label);
  }, 1500);
}

/**
 * Say something to those who use a screen reader.
 * @param {string} text
 */
export function announce(text) {
  find("#announcements").textContent = text;
}

/**
 * Offer a text as a file.
 * @param {string} name of the file
 * @param {string} text
 * @param {string} type its MIME type
 */
export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
