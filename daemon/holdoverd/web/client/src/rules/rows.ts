/** Messages of one page become rows: a tool call and its result are one, so are question and answer. */

import { contentOf } from "./conversation";
import { isObject, type Json, type Message } from "../wire";

export type RowKind =
  | "prompt"
  | "text"
  | "thinking"
  | "tool"
  | "tool_result"
  | "result"
  | "permission"
  | "answer"
  | "notice"
  | "system"
  | "truncated";

export interface Row {
  /** Unique in its thread. */
  key: string;
  kind: RowKind;
  message: Message;
  /** The content part shown; for `prompt` all of them. */
  part: Json;
  /** What came back: a tool's result, or a permission's answer. */
  outcome: { message: Message; part: Json } | null;
}

/** Rows of one page's messages. Those of `before` that did not change are given again as they are. */
export function rowsOf(messages: readonly Message[], before: readonly Row[] = []): Row[] {
  const rows: Row[] = [];
  const calls = new Map<unknown, Row>();
  const questions = new Map<unknown, Row>();
  const add = (kind: RowKind, message: Message, part: Json, at = 0): Row => {
    const row: Row = { key: at ? `${message.seq}.${at}` : `${message.seq}`, kind, message, part, outcome: null };
    rows.push(row);
    return row;
  };
  for (const message of messages) {
    if (message.body.truncated === true) {
      add("truncated", message, message.body);
      continue;
    }
    switch (message.kind) {
      case "assistant":
        contentOf(message).forEach((part, at) => {
          if (part.type === "tool_use") calls.set(part.id, add("tool", message, part, at));
          else add(part.type === "thinking" ? "thinking" : "text", message, part, at);
        });
        break;
      case "user": {
        const parts = contentOf(message);
        const results = parts.filter((part) => part.type === "tool_result");
        results.forEach((part, at) => {
          const call = calls.get(part.tool_use_id);
          if (call !== undefined && call.outcome === null) call.outcome = { message, part };
          else add("tool_result", message, part, at);
        });
        if (results.length < parts.length) {
          add(message.body.isSynthetic === true ? "system" : "prompt", message, message.body, results.length);
        }
        break;
      }
      case "permission":
        questions.set(message.request_id, add("permission", message, requestOf(message)));
        break;
      case "answer": {
        const question = questions.get(message.request_id);
        if (question !== undefined) question.outcome = { message, part: message.body };
        else add("answer", message, message.body);
        break;
      }
      case "result":
        add("result", message, message.body);
        break;
      case "notice":
        add("notice", message, message.body);
        break;
      default:
        add("system", message, message.body);
    }
  }
  const known = new Map(before.map((row) => [row.key, row]));
  return rows.map((row) => {
    const old = known.get(row.key);
    const same =
      old !== undefined &&
      old.kind === row.kind &&
      old.message === row.message &&
      old.outcome?.message === row.outcome?.message;
    return same ? old : row;
  });
}

/** What a row costs to mount, in characters of text: what is folded costs as much as a line. */
export function weightOf({ kind, message, part }: Row): number {
  if (kind === "prompt") return LINE + textOf(message).length;
  return kind === "text" && typeof part.text === "string" ? LINE + part.text.length : LINE;
}

const LINE = 400;

/** What a permission asks for: `{tool_name, input, …}`. */
export function requestOf(message: Message): Json {
  return isObject(message.body.request) ? message.body.request : message.body;
}

/** A message's words: all its text parts. */
export function textOf(message: Message): string {
  return contentOf(message)
    .filter((part) => part.type === "text" && typeof part.text === "string")
    .map((part) => part.text as string)
    .join("\n\n");
}
