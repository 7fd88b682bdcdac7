import { expect, test } from "vitest";
import { diffLines, type Line } from "./diff";

const shown = (lines: Line[]): string[] => lines.map(({ sign, text }) => `${sign}${text}`);
const numbered = (count: number): string[] => Array.from({ length: count }, (_, at) => `line ${at}`);

test("what both ends share is left out except three lines", () => {
  expect(shown(diffLines("a\nb\nc\nd\nold\ne", "a\nb\nc\nd\nnew\ne"))).toEqual([" b", " c", " d", "-old", "+new", " e"]);
});

test("lines between two changes stay as they are", () => {
  expect(shown(diffLines("1\nx\n2", "one\nx\ntwo"))).toEqual(["-1", "+one", " x", "-2", "+two"]);
});

test("of many shared lines between two changes the middle is left out", () => {
  const middle = numbered(20).join("\n");
  const lines = shown(diffLines(`1\n${middle}\n2`, `one\n${middle}\ntwo`));
  expect(lines.filter((line) => line.startsWith("…"))).toHaveLength(1);
  expect(lines).toHaveLength(2 + 3 + 1 + 3 + 2);
});

test("nothing before is all new, nothing after is all gone", () => {
  expect(shown(diffLines("", "a\nb"))).toEqual(["+a", "+b"]);
  expect(shown(diffLines("a\nb", ""))).toEqual(["-a", "-b"]);
  expect(diffLines("same", "same").filter(({ sign }) => sign !== " ")).toEqual([]);
});

test("without what came in it reads as before, without what went out as after", () => {
  let seed = 7;
  const random = (below: number): number => (seed = (seed * 48_271) % 2_147_483_647) % below;
  for (let round = 0; round < 200; round += 1) {
    // Ends that differ, so that nothing is left out, and too few lines for a run to be folded.
    const make = (end: string): string => [end, ...Array.from({ length: random(7) }, () => "abc"[random(3)]!), end].join("\n");
    const [old, now] = [make("<"), make(">")];
    const without = (sign: string): string =>
      diffLines(old, now)
        .filter((line) => line.sign !== sign)
        .map(({ text }) => text)
        .join("\n");
    expect([without("+"), without("-")]).toEqual([old, now]);
  }
});

test("what is too long to be compared is out and in as a whole, at once", () => {
  const lines = diffLines(numbered(5000).join("\n"), numbered(5000).reverse().join("\n"));
  expect(lines.filter(({ sign }) => sign === "-")).toHaveLength(5000);
});
