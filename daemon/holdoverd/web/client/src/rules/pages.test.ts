import { describe, expect, test } from "vitest";
import { coming, MAX_MOUNTED, SLICE, sliced, spacer, trimmed, wanted, type Span } from "./pages";

/** A list of pages of the heights given, looked at from `top`: what stands in the document then. */
function walk(heights: number[], view: number, steps: number[]): { spans: Span[]; loads: number[] } {
  const last = heights.length - 1;
  let span: Span = { first: Math.max(0, last - 1), last };
  const tops = heights.map((_, page) => heights.slice(0, page).reduce((sum, height) => sum + height, 0));
  const total = heights.reduce((sum, height) => sum + height, 0);
  const loads: number[] = [];
  const spans: Span[] = [];
  for (const top of steps) {
    const reach = (): { above: number; below: number; height: number } => ({
      above: top - tops[span.first]!,
      below: (tops[span.last + 1] ?? total) - (top + view),
      height: view,
    });
    for (let turns = 0; ; turns += 1) {
      if (turns > 50) throw new Error(`it never settles at ${top}`);
      const want = wanted(span, reach(), heights.slice(span.first, span.last + 1), last);
      if (want !== null) {
        loads.push(want);
        span = { first: Math.min(span.first, want), last: Math.max(span.last, want) };
        if (span.last - span.first + 1 > MAX_MOUNTED) {
          span = want === span.first ? { ...span, last: span.first + MAX_MOUNTED - 1 } : { ...span, first: span.last - MAX_MOUNTED + 1 };
        }
        continue;
      }
      const kept = trimmed(span, reach(), heights.slice(span.first, span.last + 1));
      if (kept.first === span.first && kept.last === span.last) break;
      span = kept;
    }
    expect(span.last - span.first + 1).toBeLessThanOrEqual(MAX_MOUNTED);
    spans.push(span);
  }
  return { spans, loads };
}

describe.each([
  ["short rows", 2500, 800],
  ["tall rows", 40_000, 800],
  ["4K", 2500, 2000],
])("the mounted pages with %s", (_, pageHeight, view) => {
  test("cover the view and what is near it, and are few", () => {
    const heights = Array.from({ length: 40 }, (_, page) => pageHeight + (page % 7) * 13);
    const total = heights.reduce((sum, height) => sum + height, 0);
    const steps: number[] = [];
    for (let top = total - view; top > 0; top -= view / 3) steps.push(top);
    const { loads } = walk(heights, view, [...steps, 0]);
    expect(loads, "each once, one after the other").toEqual(Array.from({ length: 38 }, (_, at) => 37 - at));
  });

  test("are the same again on the way down", () => {
    const heights = Array.from({ length: 12 }, () => pageHeight);
    const total = pageHeight * 12;
    const steps: number[] = [];
    for (let top = 0; top < total - view; top += view / 3) steps.push(top);
    const { spans } = walk(heights, view, [...steps, total - view]);
    expect(spans.at(-1)?.last).toBe(11);
  });
});

test("rows come a few in each frame, from the last one up, until all are there", () => {
  for (const weight of [1, 400, 5000, 1_000_000]) {
    const weights = Array.from({ length: 100 }, () => weight);
    let first = 100;
    for (let frames = 0; first > 0; frames += 1) {
      const next = sliced(weights, first);
      expect(next).toBeLessThan(first);
      expect((first - next - 1) * weight).toBeLessThan(SLICE);
      first = next;
      expect(frames).toBeLessThan(100);
    }
  }
  expect(sliced([], 0)).toBe(0);
});

test("the page above is asked for before it is needed, and not while it is far", () => {
  const span = { first: 7, last: 9 };
  expect(coming(span, { above: 3000, below: 0, height: 800 })).toBe(6);
  expect(coming(span, { above: 3300, below: 0, height: 800 })).toBe(null);
  expect(coming({ first: 0, last: 2 }, { above: 0, below: 0, height: 800 })).toBe(null);
});

test("space is held for what was measured, and for nothing else", () => {
  const heights = new Map([[0, 10], [1, 20], [3, 40]]);
  expect(spacer(heights, 0, 4)).toBe(70);
  expect(spacer(heights, 2, 3)).toBe(0);
});
