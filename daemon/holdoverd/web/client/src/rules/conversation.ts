/**
 * What a viewer knows of a session. Frames of the stream and pages go in; no I/O, no clock, no DOM.
 *
 * The promise: over any number of broken connections each message is there once and in order, and a
 * sentence being written stands there once. Only `main` is streamed; a sub-agent's thread is
 * followed while it is open.
 */

import {
  isObject,
  MAIN,
  PAGE_SIZE,
  pageOf,
  type Frame,
  type Json,
  type Message,
  type Page,
  type Session,
} from "../wire";

/** The server left something out: connect again with the cursor. */
export class GapError extends Error {}

/** A block being written. `stale`: from before a break; a snapshot may renew it. */
export interface Block {
  index: number;
  kind: "text" | "thinking" | "tool_use";
  name: string;
  text: string;
  stale: boolean;
}

const TEXT_KEYS: Record<string, string> = { text: "text", thinking: "thinking", tool_use: "partial_json" };
const DELTA_KEYS: Record<string, [Block["kind"], string]> = {
  text_delta: ["text", "text"],
  thinking_delta: ["thinking", "thinking"],
  input_json_delta: ["tool_use", "partial_json"],
};

/** Pages kept of a thread beside those in use; the browser's cache has the sealed ones for ever. */
export const KEPT_PAGES = 30;

/** One thread as far as it is here: whole pages, and the last ones as they grow. */
export class Thread {
  /** {page number: its messages, in order} */
  readonly pages = new Map<number, Message[]>();
  readonly blocks = new Map<number, Block>();
  /** n of the newest message that came, 0 before the first. */
  lastN = 0;
  /** The lowest n from which on everything to `lastN` came by the stream; 0 before the first. */
  private firstStreamed = 0;
  private use = 0;
  private readonly used = new Map<number, number>();

  get lastPage(): number {
    return this.lastN === 0 ? 0 : pageOf(this.lastN);
  }

  /** Is the page here as far as it exists? The last one may have lost its beginning. */
  has(page: number): boolean {
    const messages = this.pages.get(page);
    if (messages === undefined) return false;
    const from = page * PAGE_SIZE + 1;
    const to = Math.min(this.lastN, from + PAGE_SIZE - 1);
    return messages.length === to - from + 1;
  }

  /** A message of the stream; false when it was here already. Throws GapError. */
  append(message: Message): boolean {
    if (this.lastN !== 0 && message.n <= this.lastN) return false;
    if (this.lastN !== 0 && message.n !== this.lastN + 1) {
      throw new GapError(`n ${message.n} came after ${this.lastN} in ${message.thread}`);
    }
    if (this.firstStreamed === 0) this.firstStreamed = message.n;
    this.lastN = message.n;
    const page = pageOf(message.n);
    // A new array each time: who shows it sees that it changed.
    this.pages.set(page, [...(this.pages.get(page) ?? []), message]);
    this.closeBlocks(message);
    return true;
  }

  /** A page that was asked for. What the stream brought meanwhile is not lost. */
  put(page: Page): void {
    const known = this.pages.get(page.page) ?? [];
    const last = page.messages.at(-1)?.n ?? 0;
    const merged = [...page.messages, ...known.filter((message) => message.n > last)];
    this.pages.set(page.page, merged);
    if (this.firstStreamed === 0 && last > this.lastN) this.lastN = last;
    this.touch([page.page]);
  }

  /** `pages` are in use now; of the others, those used longest ago are let go. */
  touch(pages: number[]): void {
    this.use += 1;
    for (const page of pages) this.used.set(page, this.use);
    const inUse = new Set(pages);
    const idle = [...this.pages.keys()]
      .filter((page) => !inUse.has(page) && page < this.lastPage - 1)
      .sort((a, b) => (this.used.get(a) ?? 0) - (this.used.get(b) ?? 0));
    for (const page of idle.slice(0, Math.max(0, idle.length - KEPT_PAGES))) {
      this.pages.delete(page);
      this.used.delete(page);
    }
  }

  /** The blocks as they stand may be continued by a snapshot, or by nobody. */
  loosen(): void {
    for (const block of this.blocks.values()) block.stale = true;
  }

  dropStale(): void {
    for (const [index, block] of this.blocks) if (block.stale) this.blocks.delete(index);
  }

  delta(body: unknown): void {
    const event = isObject(body) ? body.event : undefined;
    if (!isObject(event)) return;
    if (event.type === "message_start") {
      this.blocks.clear();
      return;
    }
    const index = event.index;
    if (typeof index !== "number") return;
    if (event.type === "content_block_start") {
      const content = event.content_block;
      const kind = isObject(content) ? String(content.type) : "";
      const key = TEXT_KEYS[kind];
      if (!isObject(content) || key === undefined) {
        this.blocks.delete(index);
        return;
      }
      const text = typeof content[key] === "string" ? content[key] : "";
      const name = typeof content.name === "string" ? content.name : "";
      this.blocks.set(index, { index, kind: kind as Block["kind"], name, text, stale: false });
    } else if (event.type === "content_block_delta" && isObject(event.delta)) {
      const [kind, key] = DELTA_KEYS[String(event.delta.type)] ?? [];
      const block = this.blocks.get(index);
      if (block === undefined || block.stale || block.kind !== kind || key === undefined) return;
      const text = event.delta[key];
      if (typeof text === "string") this.blocks.set(index, { ...block, text: block.text + text });
    }
  }

  /** A stored message takes the place of the blocks it was made of. */
  private closeBlocks(message: Message): void {
    if (message.kind === "result" || message.kind === "notice") {
      // The turn, or the agent, is over: what is half written will not be continued.
      this.blocks.clear();
    }
    if (message.kind !== "assistant") return;
    for (const part of contentOf(message)) {
      const open = [...this.blocks.values()].sort((a, b) => a.index - b.index);
      const block = open.find(({ kind }) => kind === part.type);
      if (block !== undefined) this.blocks.delete(block.index);
    }
  }
}

/** The parts of a conversation frame; a bare string is one text. */
export function contentOf(message: Message): Json[] {
  const inner = message.body.message;
  const content = isObject(inner) ? inner.content : undefined;
  if (typeof content === "string") return [{ type: "text", text: content }];
  return Array.isArray(content) ? content.filter(isObject) : [];
}

export class Conversation {
  session: Session | null = null;
  epoch: string | null = null;
  /** seq of the last message of `main`; null before the first. */
  after: number | null = null;
  /** Everything stored has been sent; what follows happens now. */
  live = false;
  /** Grows by one when the log is another one than before. */
  resyncs = 0;
  readonly threads = new Map<string, Thread>([[MAIN, new Thread()]]);
  /** The latest live-only frame of each name. */
  readonly statuses = new Map<string, Json>();

  get main(): Thread {
    return this.thread(MAIN);
  }

  thread(name: string): Thread {
    let thread = this.threads.get(name);
    if (thread === undefined) {
      thread = new Thread();
      this.threads.set(name, thread);
    }
    return thread;
  }

  /** Forget a thread that is shown no more. */
  drop(name: string): void {
    if (name !== MAIN) this.threads.delete(name);
  }

  /** The query that goes on where this viewer stands. */
  query(): string {
    const query = new URLSearchParams({ threads: MAIN });
    if (this.after !== null && this.epoch !== null) {
      query.set("after", String(this.after));
      query.set("epoch", this.epoch);
    }
    return query.toString();
  }

  /** Take one frame. Throws GapError when a message is missing; the cursor stands before it. */
  receive(frame: Frame): void {
    switch (frame.type) {
      case "hello":
        this.hello(frame.session as Session, frame.resync === true);
        break;
      case "messages":
        for (const message of frame.messages as Message[]) {
          const thread = this.threads.get(message.thread);
          if (thread?.append(message) && message.thread === MAIN) this.after = message.seq;
        }
        break;
      case "delta": {
        const thread = this.threads.get(String(frame.thread));
        thread?.delta(frame.body);
        break;
      }
      case "delta_reset":
        this.threads.get(String(frame.thread))?.loosen();
        break;
      case "live":
        this.live = true;
        for (const thread of this.threads.values()) thread.dropStale();
        break;
      case "session":
        this.session = frame.session as Session;
        break;
      case "status":
        this.statuses.set(String(frame.name), isObject(frame.body) ? frame.body : {});
        break;
    }
  }

  private hello(session: Session, resync: boolean): void {
    if (resync || (this.epoch !== null && this.epoch !== session.epoch)) {
      this.after = null;
      this.threads.clear();
      this.resyncs += 1;
    }
    this.session = session;
    this.epoch = session.epoch;
    this.live = false;
    this.statuses.clear();
    for (const thread of this.threads.values()) thread.loosen();
    if (session.last_seq === 0 && this.after === null) this.after = 0;
  }
}
