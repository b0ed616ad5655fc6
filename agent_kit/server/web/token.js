/** The server's token: asked for once in a tab, and sent with every request. */

import { h } from "./dom.js";

const KEY = "agent-kit:token";
const REALM = 'Bearer realm="agent-kit"';

/** @type {Promise<void> | null} */
let asking = null;
let token = readToken();

function readToken() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null; // a browser may forbid storage
  }
}

/** @param {string} text */
function storeToken(text) {
  token = text;
  try {
    sessionStorage.setItem(KEY, text);
  } catch {
    // then it lasts until the page is reloaded
  }
}

/** @returns {Record<string, string>} the header that carries the token, where there is one */
export function tokenHeader() {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/**
 * Whether a reply says that the token is missing or wrong.
 * @param {Response} reply
 */
export function needsToken(reply) {
  return reply.status === 401 && reply.headers.get("www-authenticate") === REALM;
}

/** Ask for the token; requests that need it at the same time wait for one dialog. */
export function askToken() {
  asking ??= showDialog().finally(() => (asking = null));
  return asking;
}

/** @returns {Promise<void>} */
function showDialog() {
  const field = h("input", {
    type: "password",
    id: "server-token",
    required: true,
    autocomplete: "current-password",
  });
  const label = h("label", { for: "server-token" }, "Token of this server");
  const note = token ? "The server does not accept this token." : "This server needs its token.";
  const button = h("button", { class: "button primary" }, "Continue");
  const form = h("form", {}, h("p", { role: "status" }, note), label, field);
  const dialog = h("dialog", { class: "token-dialog", "aria-label": "Token of this server" }, form);
  form.append(h("div", { class: "dialog-bar" }, button));
  // There is nothing to show without the token.
  dialog.addEventListener("cancel", (/** @type {Event} */ event) => event.preventDefault());
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    form.addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      storeToken(field.value.trim());
      dialog.remove();
      resolve();
    });
  });
}
