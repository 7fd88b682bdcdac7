/** A change as lines: what both sides share is left out, except a few lines around each change. */

export interface Line {
  /** `…` stands for lines that both sides share and that are left out. */
  sign: " " | "-" | "+" | "…";
  text: string;
}

const AROUND = 3;
/** Above this many pairs of lines the middle is not compared: everything out, everything in. */
const MAX_PAIRS = 1_000_000;

export function diffLines(before: string, after: string): Line[] {
  const old = linesOf(before);
  const now = linesOf(after);
  let head = 0;
  while (head < old.length && head < now.length && old[head] === now[head]) head += 1;
  let tail = 0;
  while (
    tail < old.length - head &&
    tail < now.length - head &&
    old[old.length - 1 - tail] === now[now.length - 1 - tail]
  ) {
    tail += 1;
  }
  const shared = (texts: string[]): Line[] => texts.map((text) => ({ sign: " ", text }));
  return [
    ...shared(old.slice(Math.max(0, head - AROUND), head)),
    ...folded(changes(old.slice(head, old.length - tail), now.slice(head, now.length - tail))),
    ...shared(old.slice(old.length - tail, old.length - tail + AROUND)),
  ];
}

function linesOf(text: string): string[] {
  return text === "" ? [] : text.split("\n");
}

/** The fewest lines out and in that make `now` of `old`, by their longest common subsequence. */
function changes(old: string[], now: string[]): Line[] {
  const width = now.length + 1;
  const known = old.length * now.length <= MAX_PAIRS;
  // common[i * width + j]: how many lines old[i:] and now[j:] have in common
  const common = new Uint16Array(known ? (old.length + 1) * width : 0);
  for (let i = known ? old.length - 1 : -1; i >= 0; i -= 1) {
    for (let j = now.length - 1; j >= 0; j -= 1) {
      const at = i * width + j;
      common[at] =
        old[i] === now[j] ? common[at + width + 1]! + 1 : Math.max(common[at + width]!, common[at + 1]!);
    }
  }
  const lines: Line[] = [];
  let i = 0;
  let j = 0;
  while (i < old.length || j < now.length) {
    if (known && i < old.length && j < now.length && old[i] === now[j]) {
      lines.push({ sign: " ", text: old[i++]! });
      j += 1;
    } else if (i < old.length && (j === now.length || !known || common[(i + 1) * width + j]! >= common[i * width + j + 1]!)) {
      lines.push({ sign: "-", text: old[i++]! });
    } else lines.push({ sign: "+", text: now[j++]! });
  }
  return lines;
}

/** Long runs of shared lines between changes, without their middles. */
function folded(lines: Line[]): Line[] {
  const found: Line[] = [];
  for (let at = 0; at < lines.length; ) {
    let end = at;
    while (end < lines.length && lines[end]!.sign === " ") end += 1;
    if (end - at > 2 * AROUND + 1) {
      found.push(...lines.slice(at, at + AROUND), { sign: "…", text: "" }, ...lines.slice(end - AROUND, end));
    } else found.push(...lines.slice(at, end));
    if (end < lines.length) found.push(lines[end]!);
    at = end + 1;
  }
  return found;
}
