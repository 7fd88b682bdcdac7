import { describe, expect, test } from "vitest";
import type { Frame, Message, Session } from "../wire";
import { Conversation, GapError, KEPT_PAGES, Thread } from "./conversation";

function message(n: number, fields: Partial<Message> = {}): Message {
  return {
    seq: n,
    n,
    thread: "main",
    at: 0,
    kind: "assistant",
    uuid: null,
    client_id: null,
    body: { message: { content: [{ type: "text", text: `message ${n}` }] } },
    ...fields,
  };
}

function messages(from: number, to: number): Frame {
  const found = Array.from({ length: to - from + 1 }, (_, at) => message(from + at));
  return { type: "messages", messages: found };
}

function hello(lastSeq: number, fields: { epoch?: string; resync?: boolean } = {}): Frame {
  const session = { epoch: fields.epoch ?? "e1", last_seq: lastSeq, state: "working" } as Session;
  return { type: "hello", session, page_size: 100, resync: fields.resync ?? false };
}

function delta(event: object, thread = "main"): Frame {
  return { type: "delta", thread, body: { type: "stream_event", event } };
}

const start = (index: number, text = "", type = "text"): Frame =>
  delta({ type: "content_block_start", index, content_block: { type, [type]: text } });
const word = (index: number, text: string): Frame =>
  delta({ type: "content_block_delta", index, delta: { type: "text_delta", text } });

function shown(conversation: Conversation): string[] {
  return [...conversation.main.blocks.values()].map(({ text }) => text);
}

describe("the cursor", () => {
  test("goes on after the last message, and a repetition changes nothing", () => {
    const conversation = new Conversation();
    expect(conversation.query()).toBe("threads=main");
    for (const frame of [hello(7), messages(1, 5), messages(3, 7)]) conversation.receive(frame);
    expect(conversation.query()).toBe("threads=main&after=7&epoch=e1");
    expect(conversation.main.pages.get(0)?.map(({ n }) => n)).toEqual([1, 2, 3, 4, 5, 6, 7]);
  });

  test("stands before a gap", () => {
    const conversation = new Conversation();
    conversation.receive(hello(9));
    conversation.receive(messages(1, 5));
    expect(() => conversation.receive(messages(7, 8))).toThrow(GapError);
    expect(conversation.query()).toBe("threads=main&after=5&epoch=e1");
  });

  test("of an empty session is 0, so that nothing said meanwhile is missed", () => {
    const conversation = new Conversation();
    conversation.receive(hello(0));
    expect(conversation.query()).toBe("threads=main&after=0&epoch=e1");
  });

  test.each([{ resync: true }, { epoch: "e2" }])("is dropped with the log: %o", (fields) => {
    const conversation = new Conversation();
    conversation.receive(hello(3));
    conversation.receive(messages(1, 3));
    conversation.receive(hello(2, fields));
    expect(conversation.resyncs).toBe(1);
    expect(conversation.main.lastN).toBe(0);
  });

  test("is of the main thread; another's messages are kept only while it is shown", () => {
    const conversation = new Conversation();
    conversation.receive(hello(3));
    conversation.receive(messages(1, 2));
    const other = message(1, { seq: 3, thread: "toolu_1" });
    conversation.receive({ type: "messages", messages: [other] });
    expect(conversation.threads.has("toolu_1")).toBe(false);
    conversation.thread("toolu_1");
    conversation.receive({ type: "messages", messages: [other] });
    expect(conversation.threads.get("toolu_1")?.lastN).toBe(1);
    expect(conversation.after).toBe(2);
  });
});

describe("blocks being written", () => {
  test("grow, and give way to the message they become", () => {
    const conversation = new Conversation();
    for (const frame of [hello(0), { type: "live" }, start(0, "", "thinking"), start(1), word(1, "one "), word(1, "two")]) {
      conversation.receive(frame);
    }
    expect(shown(conversation)).toEqual(["", "one two"]);
    conversation.receive(messages(1, 1));
    expect([...conversation.main.blocks.values()].map(({ kind }) => kind)).toEqual(["thinking"]);
  });

  test("survive a break: the snapshot takes their place, with no word twice", () => {
    const conversation = new Conversation();
    for (const frame of [hello(0), { type: "live" }, start(0), word(0, "one ")]) conversation.receive(frame);
    conversation.receive(hello(0));
    expect(shown(conversation), "no flicker meanwhile").toEqual(["one "]);
    conversation.receive(word(0, "lost in between"));
    conversation.receive(start(0, "one two "));
    conversation.receive({ type: "live" });
    conversation.receive(word(0, "three"));
    expect(shown(conversation)).toEqual(["one two three"]);
  });

  test("that ended during a break are gone once the stream is live", () => {
    const conversation = new Conversation();
    for (const frame of [hello(0), { type: "live" }, start(0), word(0, "one "), hello(1), { type: "live" }]) {
      conversation.receive(frame);
    }
    expect(shown(conversation)).toEqual([]);
  });

  test.each(["result", "notice"] as const)("end with a %s", (kind) => {
    const conversation = new Conversation();
    for (const frame of [hello(0), { type: "live" }, start(0), word(0, "half")]) conversation.receive(frame);
    conversation.receive({ type: "messages", messages: [message(1, { kind, body: {} })] });
    expect(shown(conversation)).toEqual([]);
  });
});

describe("pages of a thread", () => {
  test("are whole or asked for", () => {
    const thread = new Thread();
    for (let n = 101; n <= 250; n += 1) thread.append(message(n));
    expect([0, 1, 2].map((page) => thread.has(page))).toEqual([false, true, true]);
    const first = Array.from({ length: 100 }, (_, at) => message(at + 1));
    thread.put({ thread: "main", page: 0, sealed: true, epoch: "e", messages: first });
    expect(thread.has(0)).toBe(true);
    expect(thread.lastN).toBe(250);
  });

  test("lose nothing that the stream brought while they were on their way", () => {
    const thread = new Thread();
    for (let n = 1; n <= 3; n += 1) thread.append(message(n));
    thread.put({ thread: "main", page: 0, sealed: false, epoch: "e", messages: [message(1), message(2)] });
    expect(thread.pages.get(0)?.map(({ n }) => n)).toEqual([1, 2, 3]);
  });

  test("not looked at for long are let go, the last two never", () => {
    const thread = new Thread();
    const count = KEPT_PAGES + 20;
    for (let n = (count - 2) * 100 + 1; n <= count * 100; n += 1) thread.append(message(n));
    for (let page = count - 3; page >= 0; page -= 1) {
      const found = Array.from({ length: 100 }, (_, at) => message(page * 100 + at + 1));
      thread.put({ thread: "main", page, sealed: true, epoch: "e", messages: found });
    }
    expect(thread.pages.size).toBeLessThanOrEqual(KEPT_PAGES + 3);
    expect([0, count - 2, count - 1].map((page) => thread.has(page))).toEqual([true, true, true]);
  });
});
