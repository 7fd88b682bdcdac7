/** One open session: its stream, its pages, and what was typed and not yet taken. */

import { Notifier } from "../hooks";
import { ApiError, call, newId, said, Unreachable } from "../http";
import { Conversation } from "../rules/conversation";
import { delayMs } from "../rules/redial";
import { Stream } from "../stream";
import { type Frame, type Message, type Page, type Session, type StoredFile } from "../wire";

export type Connection = "connecting" | "live" | "lost" | "ended" | "login" | "unshared" | "gone";

/** A prompt on its way. Sent again with the same id until it is taken, so never taken twice. */
export interface Outgoing {
  id: string;
  text: string;
  /** Files at storage that go with it. */
  files?: { id: string; name: string }[];
  /** Why the daemon will not have it; null while it is on its way. */
  refused: string | null;
  /** The daemon has it; the stream will bring it. */
  taken: boolean;
}

export class SessionStore extends Notifier {
  readonly conversation = new Conversation();
  connection: Connection = "connecting";
  outgoing: Outgoing[];
  /** What went wrong last, for people; null when it was read. */
  trouble: string | null = null;
  /** A newer client than the one running is served. */
  outdated = false;

  private readonly stream: Stream;
  private readonly asked = new Map<string, Promise<void>>();
  private sending = false;
  private closed = false;
  private clientTag: string | null = null;
  private generation: number | null = null;
  /** Ids of prompts that the stream has brought. */
  private readonly stored = new Set<string>();
  /** {thread shown beside main: how many show it} */
  private readonly followed = new Map<string, number>();

  constructor(readonly id: string) {
    super();
    this.outgoing = (recall<Outgoing[]>(`outgoing:${id}`) ?? []).filter(({ taken }) => !taken);
    this.stream = new Stream(id, {
      query: () => this.conversation.query(),
      frame: (frame) => this.take(frame),
      lost: () => this.become("lost"),
      over: (verdict) => this.become(verdict),
    });
    void this.sendAll();
  }

  get path(): string {
    return `/v1/sessions/${encodeURIComponent(this.id)}`;
  }

  get session(): Session | null {
    return this.conversation.session;
  }

  close(): void {
    this.closed = true;
    this.stream.close();
  }

  // --- in ---

  private take(frame: Frame): void {
    this.conversation.receive(frame);
    if (frame.type === "messages") {
      for (const message of frame.messages as Message[]) {
        if (message.client_id !== null) this.stored.add(message.client_id);
      }
    }
    if (frame.type === "hello") {
      for (const thread of this.followed.keys()) this.subscribe(thread);
      void this.lookForNewClient();
    } else if (frame.type === "live") {
      this.connection = "live";
      void this.sendAll();
    } else if (frame.type === "messages" && this.outgoing.length > 0) this.forgetTaken();
    this.changed();
  }

  private become(connection: Connection): void {
    if (this.closed) return;
    this.connection = connection;
    this.changed();
  }

  /** Make the page of a thread be here, once however often it is asked for. */
  load(thread: string, page: number): Promise<void> {
    const key = `${this.conversation.resyncs}/${thread}/${page}`;
    let asked = this.asked.get(key);
    if (asked === undefined) {
      asked = this.fetchPage(thread, page).finally(() => this.asked.delete(key));
      this.asked.set(key, asked);
    }
    return asked;
  }

  private async fetchPage(thread: string, page: number): Promise<void> {
    const { resyncs, epoch } = this.conversation;
    const query = new URLSearchParams({ thread, page: String(page) });
    if (epoch !== null) query.set("epoch", epoch);
    for (let failures = 0; !this.closed && resyncs === this.conversation.resyncs; failures += 1) {
      try {
        const found = await call<Page>("GET", `${this.path}/messages?${query}`);
        if (resyncs === this.conversation.resyncs) this.conversation.threads.get(thread)?.put(found);
        break;
      } catch (error) {
        // Of another epoch the stream will tell, by `resync`.
        if (!(error instanceof Unreachable)) {
          this.fail(error);
          break;
        }
        await pause(delayMs(failures, Math.random()));
      }
    }
    this.changed();
  }

  /** Follow a sub-agent's thread from now on, until the returned function is called. */
  follow(thread: string, n: number): () => void {
    const count = this.followed.get(thread) ?? 0;
    this.followed.set(thread, count + 1);
    if (!this.conversation.threads.has(thread)) {
      this.conversation.thread(thread);
      void this.load(thread, Math.max(0, Math.floor((n - 1) / 100))).then(() => this.subscribe(thread));
    }
    return () => {
      const left = (this.followed.get(thread) ?? 1) - 1;
      if (left > 0) this.followed.set(thread, left);
      else {
        this.followed.delete(thread);
        this.conversation.drop(thread);
      }
    };
  }

  private subscribe(thread: string): void {
    const known = this.conversation.threads.get(thread);
    if (known === undefined) return;
    this.stream.send({ type: "subscribe", thread, after_n: known.lastN });
  }

  /** After a handover or a crash the page may be older than what is served now. */
  private async lookForNewClient(): Promise<void> {
    const generation = this.session?.generation ?? null;
    if (this.clientTag !== null && generation === this.generation) return;
    this.generation = generation;
    try {
      const response = await fetch("/", { method: "HEAD", cache: "no-store" });
      const tag = response.headers.get("ETag");
      this.clientTag ??= tag;
      if (tag !== null && tag !== this.clientTag) {
        this.outdated = true;
        this.changed();
      }
    } catch {
      // It will be asked again with the next connection.
      this.clientTag ??= null;
    }
  }

  // --- out ---

  prompt(text: string, files: { id: string; name: string }[] = []): void {
    this.outgoing = [...this.outgoing, { id: newId(), text, files, refused: null, taken: false }];
    this.keepOutgoing();
    void this.sendAll();
  }

  /** Take a refused prompt back. */
  takeBack(id: string): Outgoing | undefined {
    const found = this.outgoing.find((prompt) => prompt.id === id);
    this.outgoing = this.outgoing.filter((prompt) => prompt.id !== id);
    this.keepOutgoing();
    return found;
  }

  private keepOutgoing(): void {
    remember(`outgoing:${this.id}`, this.outgoing.length > 0 ? this.outgoing : null);
    this.changed();
  }

  /** The stream has brought what was taken: it is a message now. */
  private forgetTaken(): void {
    const left = this.outgoing.filter(({ id }) => !this.stored.has(id));
    if (left.length !== this.outgoing.length) this.outgoing = left;
    this.keepOutgoing();
  }

  /** One after the other, in the order they were typed. */
  private async sendAll(): Promise<void> {
    if (this.sending) return;
    this.sending = true;
    let failures = 0;
    try {
      for (;;) {
        const next = this.outgoing.find(({ refused, taken }) => refused === null && !taken);
        if (next === undefined || this.closed) return;
        try {
          const { seq } = await call<{ seq: number }>("POST", `${this.path}/prompts`, {
            id: next.id,
            text: next.text,
            ...(next.files?.length ? { attachments: next.files.map(({ id }) => id) } : {}),
          });
          if (seq <= (this.conversation.after ?? 0)) this.stored.add(next.id);
          // Taken; it stands there until the stream brings it back as a message.
          this.outgoing = this.outgoing.map((prompt) => (prompt === next ? { ...prompt, taken: true } : prompt));
          this.forgetTaken();
          failures = 0;
        } catch (error) {
          const again = error instanceof Unreachable || (error instanceof ApiError && error.status >= 500);
          if (again) await pause(delayMs(failures++, Math.random()));
          else {
            this.outgoing = this.outgoing.map((prompt) =>
              prompt === next ? { ...prompt, refused: said(error) } : prompt,
            );
            this.keepOutgoing();
          }
        }
      }
    } finally {
      this.sending = false;
    }
  }

  async answer(answer: Record<string, unknown>): Promise<void> {
    await this.ask("POST", "/answers", answer);
  }

  /** Stop the turn; what waits for its turn comes next, unless that is withdrawn too. */
  async interrupt(withdrawAll = false): Promise<void> {
    await this.ask("POST", "/interrupt", withdrawAll ? { cancel_queued: true } : {});
  }

  async cancelPrompt(id: string): Promise<void> {
    await this.ask("DELETE", `/prompts/${id}`);
  }

  /** Have a file of the workspace copied to storage; its id. */
  async takeOut(path: string): Promise<string> {
    const { file } = await call<{ file: StoredFile }>("POST", `${this.path}/files`, { path });
    return file.id;
  }

  async resume(): Promise<void> {
    await this.ask("POST", "/resume", {});
  }

  async change(changes: Record<string, unknown>): Promise<void> {
    await this.ask("PATCH", "", changes);
  }

  async end(purge: boolean): Promise<void> {
    await this.ask("DELETE", purge ? "?purge=true" : "");
  }

  /** Ask; what goes wrong is shown. Throws it again, for who has to know. */
  private async ask(method: string, path: string, body?: unknown): Promise<void> {
    try {
      await call(method, this.path + path, body);
    } catch (error) {
      this.fail(error);
      throw error;
    }
  }

  fail(error: unknown): void {
    this.trouble = said(error);
    this.changed();
  }

  troubleRead(): void {
    this.trouble = null;
    this.changed();
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Keep `value` over reloads; null forgets it. A browser that keeps nothing is no reason to fail. */
export function remember(key: string, value: unknown): void {
  try {
    if (value === null) localStorage.removeItem(`holdover:${key}`);
    else localStorage.setItem(`holdover:${key}`, JSON.stringify(value));
  } catch (error) {
    console.warn("holdover: not kept,", error);
  }
}

export function recall<T>(key: string): T | null {
  try {
    const text = localStorage.getItem(`holdover:${key}`);
    return text === null ? null : (JSON.parse(text) as T);
  } catch {
    return null;
  }
}
