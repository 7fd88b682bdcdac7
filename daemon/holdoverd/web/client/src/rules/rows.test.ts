import { expect, test } from "vitest";
import type { Kind, Message } from "../wire";
import { rowsOf } from "./rows";

let seq = 0;
function message(kind: Kind, body: Message["body"], fields: Partial<Message> = {}): Message {
  seq += 1;
  return { seq, n: seq, thread: "main", at: 0, kind, uuid: null, client_id: null, body, ...fields };
}
const says = (...content: object[]): Message => message("assistant", { message: { content } });
const result = (id: string, text: string): Message =>
  message("user", { message: { content: [{ type: "tool_result", tool_use_id: id, content: text }] } });

test("a tool's result stands with its call, whatever lies between", () => {
  const call = says({ type: "tool_use", id: "t1", name: "Bash", input: {} });
  const rows = rowsOf([call, says({ type: "text", text: "meanwhile" }), result("t1", "out")]);
  expect(rows.map(({ kind }) => kind)).toEqual(["tool", "text"]);
  expect(rows[0]?.outcome?.part.content).toBe("out");
});

test("a result whose call is on another page stands alone", () => {
  expect(rowsOf([result("t9", "out")]).map(({ kind }) => kind)).toEqual(["tool_result"]);
});

test("an answer stands with its question", () => {
  const asked = message("permission", { request: { tool_name: "Bash" } }, { request_id: "r1" });
  const rows = rowsOf([asked, message("answer", { outcome: "allow" }, { request_id: "r1" })]);
  expect(rows.map(({ kind }) => kind)).toEqual(["permission"]);
  expect(rows[0]?.part.tool_name).toBe("Bash");
  expect(rows[0]?.outcome?.part.outcome).toBe("allow");
});

test("rows that did not change are the same objects, so that they are not rendered again", () => {
  const first = says({ type: "text", text: "one" });
  const call = says({ type: "tool_use", id: "t1", name: "Bash", input: {} });
  const before = rowsOf([first, call]);
  const after = rowsOf([first, call, result("t1", "out")], before);
  expect(after[0]).toBe(before[0]);
  expect(after[1]).not.toBe(before[1]);
});

test("every message is shown somewhere, and every key is its own", () => {
  const all = [
    says({ type: "thinking", thinking: "hm" }, { type: "text", text: "a" }, { type: "tool_use", id: "x", name: "Y" }),
    message("user", { message: { content: "prompt" } }),
    message("user", { message: { content: [{ type: "text", text: "reminder" }] }, isSynthetic: true }),
    message("assistant", { truncated: true, size: 300_000, preview: "{" }),
    message("result", { subtype: "success" }),
    message("notice", { code: "resumed", text: "…" }),
    message("system", { type: "something_new" }),
    message("answer", { outcome: "deny" }, { request_id: "elsewhere" }),
  ];
  const rows = rowsOf(all);
  expect(new Set(rows.map(({ key }) => key)).size).toBe(rows.length);
  expect(new Set(rows.map((row) => row.message))).toEqual(new Set(all));
});
