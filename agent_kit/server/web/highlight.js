/** Colours for code: comments, strings, numbers, keywords and calls. Enough to read by. */

import { h } from "./dom.js";

const STRING = String.raw`"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?`;

/** How comments and strings look, and which words are keywords. */
const LANGUAGES = {
  python: {
    pattern:
      String.raw`(?<comment>#.*)|(?<string>(?:\b[fFrRbBuU]{1,2})?` +
      String.raw`(?:"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|${STRING}))`,
    words:
      "False None True and as assert async await break case class continue def del elif else " +
      "except finally for from global if import in is lambda match nonlocal not or pass raise " +
      "return try while with yield",
  },
  javascript: {
    pattern:
      String.raw`(?<comment>\/\/.*|\/\*[^]*?(?:\*\/|$))|` +
      String.raw`(?<string>\x60(?:\\.|[^\\\x60])*\x60?|${STRING})`,
    words:
      "async await break case catch class const continue default delete do else enum export " +
      "extends false finally for from function if implements import in instanceof interface let " +
      "new null of private public return static super switch this throw true try type typeof " +
      "undefined var void while yield",
  },
  sql: {
    pattern: String.raw`(?<comment>--.*|\/\*[^]*?(?:\*\/|$))|(?<string>${STRING})`,
    words:
      "all alter and as asc between by case create cross delete desc distinct drop else end " +
      "exists false from full group having in inner insert into is join left like limit not null " +
      "offset on or order outer over partition right select set table then true union update " +
      "using values view when where with",
  },
  shell: {
    pattern: String.raw`(?<comment>(?<![^\s;])#.*)|(?<string>${STRING})`,
    words:
      "case cd do done echo elif else esac exit export fi for function if in return then while",
  },
  json: { pattern: `(?<comment>(?!))|(?<string>${STRING})`, words: "true false null" },
};

/** @type {Record<string, keyof typeof LANGUAGES>} */
const ALIASES = {
  bash: "shell",
  console: "shell",
  java: "javascript",
  js: "javascript",
  jsonl: "json",
  jsx: "javascript",
  py: "python",
  python3: "python",
  sh: "shell",
  toml: "shell",
  ts: "javascript",
  tsx: "javascript",
  typescript: "javascript",
  yaml: "shell",
  yml: "shell",
  zsh: "shell",
};

/** Longer code is shown plainly: colouring it again and again would hold up the stream. */
const LONGEST = 50_000;

/**
 * Colour code.
 * @param {string} code
 * @param {string} language as a Markdown fence names it
 * @returns {(Node | string)[]} what to show
 */
export function highlight(code, language) {
  const name = language.toLowerCase();
  const grammar = LANGUAGES[/** @type {keyof typeof LANGUAGES} */ (ALIASES[name] ?? name)];
  if (!grammar || code.length > LONGEST) return [code];
  const rest = String.raw`(?<number>\b\d[\w.]*)|(?<word>[A-Za-z_$][\w$]*)(?<call>\()?`;
  const pattern = new RegExp(`${grammar.pattern}|${rest}`, "g");
  const keywords = new Set(grammar.words.split(" "));
  const pieces = [];
  let end = 0;
  for (const match of code.matchAll(pattern)) {
    const kind = kindOf(match.groups ?? {}, keywords, name);
    if (!kind) continue;
    const token = match.groups?.word ?? match[0];
    pieces.push(code.slice(end, match.index), h("span", { class: `code-${kind}` }, token));
    end = match.index + token.length;
  }
  return [...pieces, code.slice(end)];
}

/**
 * @param {Record<string, string>} groups
 * @param {Set<string>} keywords
 * @param {string} language
 */
function kindOf(groups, keywords, language) {
  if (groups.word) {
    const word = language === "sql" ? groups.word.toLowerCase() : groups.word;
    if (keywords.has(word)) return "keyword";
    return groups.call ? "call" : null;
  }
  return ["comment", "string", "number"].find((kind) => groups[kind]) ?? null;
}
