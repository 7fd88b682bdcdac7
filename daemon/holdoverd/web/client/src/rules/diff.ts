/** A change as lines: what both ends share is left out, except a few lines around. */

export interface Line {
  sign: " " | "-" | "+";
  text: string;
}

const AROUND = 3;

export function diffLines(before: string, after: string): Line[] {
  const old = before === "" ? [] : before.split("\n");
  const now = after === "" ? [] : after.split("\n");
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
  const lines = (sign: Line["sign"], texts: string[]): Line[] => texts.map((text) => ({ sign, text }));
  return [
    ...lines(" ", old.slice(Math.max(0, head - AROUND), head)),
    ...lines("-", old.slice(head, old.length - tail)),
    ...lines("+", now.slice(head, now.length - tail)),
    ...lines(" ", old.slice(old.length - tail, old.length - tail + AROUND)),
  ];
}
