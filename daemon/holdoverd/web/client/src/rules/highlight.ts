/**
 * Where in a piece of code its comments, strings, numbers and keywords are. It looks at characters,
 * not at grammar, so that it never stalls: each pattern reads on and never goes back.
 */

export const KINDS = ["comment", "string", "number", "keyword", "name", "added", "removed"] as const;
export type Kind = (typeof KINDS)[number];

export interface Mark {
  from: number;
  to: number;
  kind: Kind;
}

/** Longer code stays as it is. */
export const MAX_CODE = 60_000;

interface Language {
  pattern: RegExp;
  keywords: ReadonlySet<string>;
  /** Its keywords are the same in capitals. */
  anyCase: boolean;
}

// A line comment, a block comment, and strings: all of them may lack their end.
const SLASHES = String.raw`\/\/[^\n]*`;
const STARRED = String.raw`\/\*[^]*?(?:\*\/|$)`;
const HASH = String.raw`(?<![^\s;(])#[^\n]*`;
const DASHES = String.raw`--[^\n]*`;
const DOUBLE = String.raw`"(?:[^"\\\n]|\\[^])*"?`;
const SINGLE = String.raw`'(?:[^'\\\n]|\\[^])*'?`;
const BACKTICKS = "`(?:[^`\\\\]|\\\\[^])*`?";
const TRIPLE = String.raw`"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)`;
const CHARACTER = String.raw`'(?:[^'\\\n]|\\[^\n]{1,8}?)'`;
const LONG_SINGLE = String.raw`'[^']*'?`;
const LONG_DOUBLE = String.raw`"(?:[^"\\]|\\[^])*"?`;
const NUMBER = String.raw`(?<![\w$])(?:0[xXbBoO][\da-fA-F_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?)[a-zA-Z%]{0,4}`;
const WORD = String.raw`[A-Za-z_$@][\w$]*`;

function language(
  comments: string[],
  strings: string[],
  keywords: string,
  { word = WORD, anyCase = false }: { word?: string; anyCase?: boolean } = {},
): Language {
  const groups = [
    ...(comments.length > 0 ? [`(?<comment>${comments.join("|")})`] : []),
    ...(strings.length > 0 ? [`(?<string>${strings.join("|")})`] : []),
    `(?<number>${NUMBER})`,
    `(?<word>${word})`,
  ];
  return { pattern: new RegExp(groups.join("|"), "g"), keywords: new Set(keywords.split(" ")), anyCase };
}

const C_WORDS =
  "auto bool boolean break byte case catch char class const constexpr continue default delete do double else enum " +
  "explicit extends extern false final finally float for foreach friend goto if implements import in inline instanceof int interface " +
  "internal is let long namespace new null nullptr operator out override package private protected public readonly ref " +
  "return sealed short signed sizeof static string struct super switch template this throw throws true try typedef " +
  "typename union unsigned using val var virtual void volatile when while yield fun fn func function async await";

const LANGUAGES: Record<string, Language> = {
  python: language(
    [HASH],
    [TRIPLE, DOUBLE, SINGLE],
    "and as assert async await break case class continue def del elif else except False finally for from global if " +
      "import in is lambda match None nonlocal not or pass raise return self True try while with yield",
  ),
  javascript: language(
    [SLASHES, STARRED],
    [DOUBLE, SINGLE, BACKTICKS],
    "abstract any as async await boolean break case catch class const continue debugger declare default delete do " +
      "else enum export extends false finally for from function get if implements import in instanceof interface keyof " +
      "let never new null number of private protected public readonly return satisfies set static string super switch " +
      "this throw true try type typeof undefined unknown var void while yield",
  ),
  json: language([SLASHES, STARRED], [DOUBLE], "true false null"),
  shell: language(
    [HASH],
    [LONG_DOUBLE, LONG_SINGLE],
    "break case cd do done echo elif else esac eval exec exit export fi for function if in local read return set " +
      "shift source sudo then trap unset until while",
    { word: String.raw`\$\{?[\w@#?*!-]+\}?|[A-Za-z_][\w-]*` },
  ),
  c: language([SLASHES, STARRED], [DOUBLE, SINGLE], C_WORDS, { word: String.raw`#[a-z]+|${WORD}` }),
  go: language(
    [SLASHES, STARRED],
    [DOUBLE, CHARACTER, BACKTICKS],
    "any bool break byte case chan const continue default defer else error fallthrough false float64 for func go goto " +
      "if import int int64 interface map nil package range return rune select string struct switch true type var",
  ),
  rust: language(
    [SLASHES, STARRED],
    [LONG_DOUBLE, CHARACTER],
    "as async await bool break const continue crate dyn else enum extern false fn for i32 i64 if impl in let loop " +
      "match mod move mut pub ref return self Self static str String struct super trait true type u32 u64 u8 unsafe " +
      "use usize where while",
  ),
  ruby: language(
    [HASH],
    [DOUBLE, SINGLE],
    "begin break case class def do else elsif end ensure false for if in module next nil not or raise redo require " +
      "rescue retry return self super then true unless until when while yield",
  ),
  sql: language(
    [DASHES, STARRED],
    [LONG_SINGLE],
    "add all alter and as asc begin between by case check column commit constraint create default delete desc " +
      "distinct drop else end exists foreign from full group having if in index inner insert integer into is join key " +
      "left like limit not null offset on or order outer primary references replace returning right rollback select " +
      "set table text then union unique update using values view when where with",
    { anyCase: true },
  ),
  yaml: language([HASH], [DOUBLE, SINGLE], "true false null yes no on off"),
  css: language([STARRED], [DOUBLE, SINGLE], "important", { word: String.raw`@[a-z-]+|--[\w-]+|[A-Za-z_-][\w-]*` }),
  markup: language([String.raw`<!--[^]*?(?:-->|$)`], [DOUBLE], "", { word: String.raw`<\/?[A-Za-z][\w:-]*|\/?>` }),
};

/** {what a fence says: which of the above} */
const NAMES: Record<string, string> = {
  py: "python", python3: "python", pycon: "python",
  js: "javascript", jsx: "javascript", ts: "javascript", tsx: "javascript", typescript: "javascript", mjs: "javascript",
  jsonc: "json", json5: "json", jsonl: "json",
  sh: "shell", bash: "shell", zsh: "shell", console: "shell", dockerfile: "shell", makefile: "shell", make: "shell",
  h: "c", cpp: "c", "c++": "c", cc: "c", hpp: "c", java: "c", kotlin: "c", kt: "c", cs: "c", csharp: "c", swift: "c", php: "c", scala: "c", dart: "c",
  golang: "go", rs: "rust", rb: "ruby", elixir: "ruby",
  postgresql: "sql", sqlite: "sql", mysql: "sql",
  yml: "yaml", toml: "yaml", ini: "yaml", conf: "yaml", systemd: "yaml", properties: "yaml",
  scss: "css", less: "css",
  html: "markup", xml: "markup", svg: "markup", vue: "markup",
  patch: "diff",
};

/** The language that a fence's first word names; null where it is none that is known. */
export function languageOf(info: string): string | null {
  const said = /^[\w+#-]+/.exec(info.trim().toLowerCase())?.[0] ?? "";
  const name = Object.hasOwn(NAMES, said) ? NAMES[said]! : said;
  return name === "diff" || Object.hasOwn(LANGUAGES, name) ? name : null;
}

/** What to mark in `code`, in order, none over another. `name` is of `languageOf`. */
export function marksOf(name: string, code: string): Mark[] {
  if (code.length > MAX_CODE) return [];
  if (name === "diff") return diffMarks(code);
  const { pattern, keywords, anyCase } = LANGUAGES[name]!;
  const marks: Mark[] = [];
  for (const found of code.matchAll(pattern)) {
    const { comment, string, number, word } = found.groups!;
    const from = found.index;
    const to = from + found[0].length;
    let kind: Kind | null = null;
    if (comment !== undefined) kind = "comment";
    else if (string !== undefined) kind = "string";
    else if (number !== undefined) kind = "number";
    else if (keywords.has(anyCase ? word!.toLowerCase() : word!) || /^[#<>/]/.test(word!)) kind = "keyword";
    else if (code[to] === "(" || /^[$@]/.test(word!)) kind = "name";
    else if (name === "yaml" && /^[ \t]*[:=](?:\s|$)/.test(code.slice(to, to + 4))) kind = "name";
    if (kind !== null) marks.push({ from, to, kind });
  }
  return marks;
}

function diffMarks(code: string): Mark[] {
  const marks: Mark[] = [];
  for (const found of code.matchAll(/^([-+@])[^\n]*/gm)) {
    const kind = found[1] === "+" ? "added" : found[1] === "-" ? "removed" : "keyword";
    marks.push({ from: found.index, to: found.index + found[0].length, kind });
  }
  return marks;
}
