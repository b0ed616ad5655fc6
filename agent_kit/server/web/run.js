/** One run of the agent, from the request to the end of its answer, over lost connections too. */

import { applyEvent, failAnswer, finish, finishAtEnd, isRunning } from "./answer.js";
import { call, Problem, readEvents } from "./stream.js";

/** @typedef {import("./answer.js").Answer} Answer */

/** How long to wait before each attempt to pick an answer up again, in milliseconds. */
const PAUSES = [300, 1000, 2000, 4000, 8000, 15000];

/** What a proxy or a restarting server answers for a while. */
const PASSING = new Set([429, 502, 503, 504]);

export class Run {
  #abort = new AbortController();
  #isStopped = false;

  /**
   * @param {Answer} answer grows as events arrive
   * @param {() => void} onChange is called after each event
   */
  constructor(answer, onChange) {
    this.answer = answer;
    this.onChange = onChange;
  }

  /**
   * Ask, and follow the answer to its end. Problems end up in the answer, none is thrown.
   * @param {() => Promise<object>} prepare returns a request body without `stream`
   */
  start(prepare) {
    return this.#follow(async () => {
      const inBackground = this.answer.background ? { background: true, store: true } : {};
      const body = { ...(await prepare()), ...inBackground, stream: true };
      return call("v1/responses", { body, signal: this.#abort.signal });
    });
  }

  /** Follow a background run that began before the page was loaded. */
  resume() {
    return this.#follow(() => this.#reopen());
  }

  /** Stop the agent, not just the reading: a background run must be told to. */
  stop() {
    this.#isStopped = true;
    const { background, id } = this.answer;
    if (background && !id) return; // Its id comes with the first event: stopped then.
    if (background) call(`${this.#path}/cancel`, { method: "POST" }).catch(() => {});
    finish(this.answer, "stopped");
    this.#abort.abort();
  }

  /** Stop reading and let the agent go on, where it can; otherwise stop it. */
  leave() {
    if (this.answer.background && this.answer.id) this.#abort.abort();
    else this.stop();
  }

  get #path() {
    return `v1/responses/${encodeURIComponent(this.answer.id ?? "")}`;
  }

  #reopen() {
    const after = this.answer.cursor === null ? "" : `&starting_after=${this.answer.cursor}`;
    return call(`${this.#path}?stream=true${after}`, { signal: this.#abort.signal });
  }

  /** @param {() => Promise<Response>} open */
  async #follow(open) {
    let attempts = 0;
    while (isRunning(this.answer)) {
      const { cursor } = this.answer;
      try {
        await this.#read(await open());
      } catch (error) {
        if (this.#abort.signal.aborted) break;
        if (this.answer.cursor !== cursor) attempts = 0;
        if (!this.#canResume(error) || attempts === PAUSES.length) {
          failAnswer(this.answer, asProblem(error));
          break;
        }
        await pause(PAUSES[attempts], this.#abort.signal);
        attempts += 1;
        open = () => this.#reopen();
      }
    }
    this.onChange();
  }

  /** @param {Response} reply */
  async #read(reply) {
    this.answer.traceId ??= reply.headers.get("x-mlflow-trace-id");
    for await (const event of readEvents(reply)) {
      applyEvent(this.answer, event);
      if (this.#isStopped) this.stop();
      this.onChange();
      if (!isRunning(this.answer)) return;
    }
    finishAtEnd(this.answer);
  }

  /** @param {unknown} error */
  #canResume(error) {
    if (!this.answer.background || !this.answer.id || !(error instanceof Problem)) return false;
    return error.kind !== "refused" || PASSING.has(error.status ?? 0);
  }
}

/**
 * @param {unknown} error
 * @returns {Problem}
 */
function asProblem(error) {
  if (error instanceof Problem) return error;
  console.error(error);
  return new Problem("failed", "The page could not read the answer; its console has the details.");
}

/**
 * Wait, or less if the network comes back or the run is stopped.
 * @param {number} milliseconds
 * @param {AbortSignal} signal
 */
function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    setTimeout(resolve, milliseconds);
    window.addEventListener("online", resolve, { once: true });
    signal.addEventListener("abort", resolve, { once: true });
  });
}
