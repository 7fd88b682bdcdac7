/** Text of agents made fit to be shown: nothing hidden, nothing reordered, nothing endless. */

// C0 but tab and newline, DEL, C1, line and paragraph separators, and the bidirectional controls
// that make text read differently from what it is.
const UNSAFE = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g;
// CSI, OSC and the two-character escapes of terminals.
const ESCAPES = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])/g;

/** `text` with each control character but tab and newline made visible, as `\x1b`. */
export function visible(text: string): string {
  return text.replace(/\r+\n/g, "\n").replace(UNSAFE, (character) => {
    const code = character.charCodeAt(0);
    return code < 0x100 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16)}`;
  });
}

/** A command's output: colours and cursor movements taken out, of overwritten lines the last. */
export function terminal(text: string): string {
  const plain = text.replace(ESCAPES, "").replace(/\r+\n/g, "\n");
  return visible(plain.includes("\r") ? plain.replace(/[^\n]*\r(?=[^\n])/g, "") : plain);
}

/** `text` on one line of at most `width` characters. */
export function oneLine(text: string, width = 160): string {
  const flat = visible(text.slice(0, width * 4).replace(/\s+/g, " ").trim());
  return flat.length <= width ? flat : `${flat.slice(0, width - 1)}…`;
}

export const MAX_MARKDOWN = 64 * 1024;
const MAX_LINE = 10_000;
const MAX_DEPTH = 20;

/**
 * May `text` be read as Markdown? Not what is so long or so deep that reading it would stall the
 * page; that is shown as it is.
 */
export function isReadable(text: string): boolean {
  if (text.length > MAX_MARKDOWN) return false;
  for (const line of text.split("\n")) {
    if (line.length > MAX_LINE) return false;
    const lead = /^(?:[ \t]|>|[-+*](?=[ \t])|\d{1,9}[.)](?=[ \t]))*/.exec(line)?.[0] ?? "";
    const markers = lead.replace(/[ \t]|\d/g, "").length;
    if (markers > MAX_DEPTH || lead.length > 40 * MAX_DEPTH || indent(lead) > 8 * MAX_DEPTH) return false;
  }
  // Openers without end make a reader look ahead again and again.
  return !/[[(*_`~<!]{200}/.test(text);
}

function indent(lead: string): number {
  return /^[ \t]*/.exec(lead)?.[0].length ?? 0;
}

/**
 * Split a text that grows into parts that are finished and the rest, so that only the rest has to
 * be read again. It is cut between blocks, never within fences.
 */
export function settle(text: string): { done: string[]; rest: string } {
  const done: string[] = [];
  let start = 0;
  let fence = "";
  let at = 0;
  while (at < text.length) {
    const end = text.indexOf("\n", at);
    if (end < 0) break;
    const line = text.slice(at, end);
    const mark = /^ {0,3}(`{3,}|~{3,})/.exec(line)?.[1];
    if (fence === "") {
      if (mark !== undefined) fence = mark;
      else if (line.trim() === "" && startsBlock(text, end + 1)) {
        if (text.slice(start, end).trim() !== "") done.push(text.slice(start, end));
        start = end + 1;
      }
    } else if (mark?.startsWith(fence) && line.trim() === mark) fence = "";
    at = end + 1;
  }
  return { done, rest: text.slice(start) };
}

/** After a blank line: does something new begin, rather than a list or an indented part go on? */
function startsBlock(text: string, at: number): boolean {
  return /^[^\s\-+*>\d|]/.test(text.slice(at, at + 1));
}
