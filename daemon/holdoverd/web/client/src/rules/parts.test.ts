import { expect, test } from "vitest";
import { spanOf, typeOf, windowFrom, WINDOW, type Cut } from "./parts";

function cut(size: number, part_size: number): Cut {
  return { size, part_size, count: Math.max(1, Math.ceil(size / part_size)) };
}

test("parts cover a file without gap or overlap", () => {
  for (const size of [0, 1, 9, 10, 11, 20, 95]) {
    const one = cut(size, 10);
    let at = 0;
    for (let number = 1; number <= one.count; number++) {
      const [from, to] = spanOf(one, number);
      expect(from).toBe(at);
      at = to;
    }
    expect(at).toBe(size);
  }
});

test("URLs are asked for in windows, and not for what is sent", () => {
  const large = cut(10_000, 10);
  expect(windowFrom(large, 3, new Set([4, 6])).slice(0, 4)).toEqual([3, 5, 7, 8]);
  expect(windowFrom(large, 1, new Set())).toHaveLength(WINDOW);
  expect(windowFrom(large, 1000, new Set())).toEqual([1000]);
});

test("a type is passed on only where it is one", () => {
  expect(typeOf("image/svg+xml")).toBe("image/svg+xml");
  expect(typeOf("")).toBeUndefined();
  expect(typeOf("text/plain; charset=x")).toBeUndefined();
});
