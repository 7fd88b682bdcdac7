import { expect, test } from "vitest";
import { languageOf, marksOf, MAX_CODE } from "./highlight";

function shown(info: string, code: string): string[] {
  return marksOf(languageOf(info)!, code).map(({ from, to, kind }) => `${kind} ${code.slice(from, to)}`);
}

test("python: comments, strings of several lines, keywords, calls", () => {
  expect(shown("python", 'def f(x):  # why\n    """a\n    b"""\n    return g(x, 0x1f, "s")')).toEqual([
    "keyword def",
    "name f",
    "comment # why",
    'string """a\n    b"""',
    "keyword return",
    "name g",
    "number 0x1f",
    'string "s"',
  ]);
});

test("what begins like a comment within a string is none", () => {
  expect(shown("js", 'const a = "// no"; // yes')).toEqual(["keyword const", 'string "// no"', "comment // yes"]);
  expect(shown("sh", "echo ${#a} 'it # is' # yes")).toEqual([
    "keyword echo",
    "name ${#a}",
    "string 'it # is'",
    "comment # yes",
  ]);
});

test("SQL in capitals or not, YAML's keys, the tags of HTML, the signs of a diff", () => {
  expect(shown("sql", "SELECT a from t -- x")).toEqual(["keyword SELECT", "keyword from", "comment -- x"]);
  expect(shown("yaml", "key: true")).toEqual(["name key", "keyword true"]);
  expect(shown("html", '<a href="x">y</a>')).toEqual(["keyword <a", 'string "x"', "keyword >", "keyword </a", "keyword >"]);
  expect(shown("diff", "@@ 1\n-a\n+b\n c")).toEqual(["keyword @@ 1", "removed -a", "added +b"]);
});

test("a fence's info names the language by its first word; unknown ones and those of Object are none", () => {
  expect(languageOf("TS {highlight: 1}")).toBe("javascript");
  for (const info of ["", "klingon", "constructor", "__proto__", "toString"]) expect(languageOf(info)).toBe(null);
});

test("marks are in order and apart, whatever the code is, and too long code has none", () => {
  const hostile = ['"', "/*", "'\\", "`${", "0x", "<!--", '\"""', "$", "a(", "1.", "'\\u{"].map((part) => part.repeat(10_000));
  const wrong: string[] = [];
  for (const info of ["python", "ts", "json", "sh", "c", "go", "rust", "ruby", "sql", "toml", "css", "html", "diff"]) {
    for (const code of hostile) {
      let end = 0;
      for (const { from, to } of marksOf(languageOf(info)!, code)) {
        if (from < end || to <= from) wrong.push(`${info}: ${from}-${to} of ${code.slice(0, 5)}`);
        end = to;
      }
      if (end > code.length) wrong.push(`${info}: ${end}`);
    }
  }
  expect(wrong).toEqual([]);
  expect(marksOf("python", "def ".repeat(MAX_CODE))).toEqual([]);
});
