import { describe, expect, test } from "vitest";
import { delayMs, MAX_DELAY_MS, verdict } from "./redial";
import { diffLines } from "./diff";
import { isReadable, oneLine, settle, terminal, visible } from "./text";

test("what cannot be seen is made visible", () => {
  expect(visible("a\x1b[31mb\u202ec\x00\td\r\ne")).toBe("a\\x1b[31mb\\u202ec\\x00\td\ne");
});

test("a terminal's colours go, of overwritten lines the last stays", () => {
  expect(terminal("\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07\n 10%\r100%\r\nend")).toBe("red link\n100%\nend");
  expect(terminal("\u202e")).toBe("\\u202e");
});

test("one line is one line, and not too long", () => {
  expect(oneLine("a\n  b\tc")).toBe("a b c");
  expect(oneLine("x".repeat(10_000), 20)).toBe(`${"x".repeat(19)}…`);
});

describe("what would stall a reader of Markdown is shown as it is", () => {
  test.each([
    ["> ".repeat(500) + "deep"],
    ["- ".repeat(500) + "deep"],
    [Array.from({ length: 200 }, (_, at) => `${"  ".repeat(at)}- item`).join("\n")],
    ["x".repeat(11_000)],
    ["[".repeat(5000)],
    ["*".repeat(5000)],
    ["line\n".repeat(20_000)],
  ])("%#", (text) => expect(isReadable(text)).toBe(false));
  test("ordinary text is read", () => {
    expect(isReadable("# Title\n\n- one\n  - two\n    - three\n\n> quote\n\n```\ncode\n```\n")).toBe(true);
  });
});

describe("a growing text", () => {
  const text = "# Title\n\nOne\ntwo.\n\n- a\n\n- b\n\n```js\nx\n\ny\n```\n\nAfter.\n\nEnd";
  test("is cut between blocks only, and nothing of it is lost", () => {
    const { done, rest } = settle(text);
    expect([...done, rest].join("\n")).toBe(text);
    expect(rest).toBe("End");
    expect(done.find((part) => part.includes("```js"))).toContain("y\n```");
  });
  test("keeps what was finished as it grows", () => {
    let before: string[] = [];
    for (let length = 0; length <= text.length; length += 1) {
      const { done } = settle(text.slice(0, length));
      expect(done.slice(0, before.length)).toEqual(before);
      before = done;
    }
  });
});

test("a change shows what changed, and a little around", () => {
  const before = ["a", "b", "c", "d", "e", "f"].join("\n");
  const lines = diffLines(before, before.replace("e", "E\nE2"));
  expect(lines.map(({ sign, text }) => sign + text)).toEqual([" b", " c", " d", "-e", "+E", "+E2", " f"]);
  expect(diffLines("", "new").map(({ sign }) => sign)).toEqual(["+"]);
});

describe("connecting again", () => {
  test("is quick at first, and never slower than three seconds", () => {
    expect(delayMs(0, 0)).toBe(50);
    expect(delayMs(0, 1)).toBe(200);
    for (let failures = 0; failures < 2000; failures += 1) {
      expect(delayMs(failures, 0.999)).toBeLessThanOrEqual(MAX_DELAY_MS);
      expect(delayMs(failures, 0)).toBeGreaterThan(0);
    }
  });
  test("is done after every close but four", () => {
    const final = { 1000: "ended", 4001: "login", 4003: "unshared", 4004: "gone" };
    for (let code = 1000; code < 5000; code += 1) {
      expect(verdict(code)).toBe((final as Record<number, string>)[code] ?? "again");
    }
  });
});
