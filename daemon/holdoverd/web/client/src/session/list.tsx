/**
 * A session's messages: whole pages in ordinary flow, around what is looked at.
 *
 * Nothing here estimates a height: what is mounted has its own, what was mounted has the one that
 * was measured, and what never was takes no space. So the view never has to be corrected for a
 * guess that was wrong, which is what makes lists jump under a reader's eyes.
 */

import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useMemo, useReducer, useRef } from "preact/hooks";
import { Notifier, useChanges } from "../hooks";
import { coming, MAX_MOUNTED, SLICE, sliced, spacer, trimmed, wanted, type Span } from "../rules/pages";
import { rowsOf, weightOf, type Row } from "../rules/rows";
import { strings } from "../strings";
import { MAIN, type Message } from "../wire";
import { Folds, FoldsContext } from "./folds";
import { Live } from "./live";
import { RowView } from "./rows";
import { Scroller } from "./scroller";
import type { SessionStore } from "./store";

/** A message of the main thread to go to, and the page it is on. */
export interface Goal {
  page: number;
  seq: number;
}

/** Is the message shown by this row, as itself or as what came back? */
function holds(row: Row, seq: number): boolean {
  return row.message.seq === seq || row.outcome?.message.seq === seq;
}

/** Decides which pages stand in the document, and remembers how high they were. */
class Flow extends Notifier {
  span: Span | null = null;
  scroller: Scroller | null = null;
  /** All that there was when the session was opened has come. */
  opened = false;
  /** n of the last message that was in view at the end. */
  seen = 0;
  /** A message to go to once it is mounted. */
  private goal: Goal | null = null;
  /** Rows of the first page that do not stand in the document yet: they come a few in each frame. */
  private cut = 0;
  /** The page that was asked for before it was to be mounted. */
  private asked = -1;
  private readonly heights = new Map<number, number>();
  private readonly rows = new Map<number, { messages: Message[]; rows: Row[] }>();
  private content: HTMLElement | null = null;
  private frame = 0;

  constructor(private readonly store: SessionStore) {
    super();
  }

  attach(view: HTMLElement, content: HTMLElement, filler: HTMLElement): () => void {
    this.content = content;
    this.scroller = new Scroller(view, content, filler, {
      endIsMounted: () => this.atEnd,
      moved: () => this.soon(),
      still: () => this.soon(),
    });
    return () => {
      cancelAnimationFrame(this.frame);
      this.scroller?.dispose();
      this.scroller = this.content = null;
    };
  }

  private get thread() {
    return this.store.conversation.main;
  }

  /** The first page stands in the document with all of its rows. */
  get whole(): boolean {
    return this.cut === 0;
  }

  get atEnd(): boolean {
    return this.span !== null && this.span.last >= this.thread.lastPage;
  }

  /** The pages to render, before anything is. */
  pages(): { page: number; rows: Row[] }[] {
    const { thread } = this;
    if (thread.lastN === 0) return [];
    const opening = !this.opened && (this.scroller?.pinned ?? true);
    if (this.span === null || (opening && this.span.last < thread.lastPage)) {
      this.span = this.endSpan();
    } else if (this.span.last === thread.lastPage - 1 && this.grewFrom === this.span.last) {
      this.span = { ...this.span, last: thread.lastPage };
      this.shrinkTo(MAX_MOUNTED, "first");
    }
    this.grewFrom = thread.lastPage;
    if (this.scroller === null || this.scroller.pinned) this.seen = thread.lastN;
    const found = [];
    for (let page = this.span.first; page <= this.span.last; page += 1) {
      const messages = thread.pages.get(page) ?? [];
      const before = this.rows.get(page);
      const rows = before?.messages === messages ? before.rows : rowsOf(messages, before?.rows);
      this.rows.set(page, { messages, rows });
      if (page === this.span.first && this.cut === Infinity) this.cut = this.sliceOf(rows, rows.length);
      found.push({ page, rows: page === this.span.first && this.cut > 0 ? rows.slice(this.cut) : rows });
    }
    for (const page of this.rows.keys()) {
      if (page < this.span.first || page > this.span.last) this.rows.delete(page);
    }
    return found;
  }

  private sliceOf(rows: readonly Row[], end: number): number {
    return sliced(rows.map(weightOf), end);
  }

  /** The end of what there is stands there at once, since it is read first; all else follows. */
  private endSpan(): Span {
    const { thread } = this;
    const last = thread.lastPage;
    const weights = rowsOf(thread.pages.get(last) ?? []).map(weightOf);
    const taken = weights.reduce((sum, weight) => sum + weight, 0);
    this.cut = Infinity;
    if (taken >= SLICE || !thread.has(last - 1)) return { first: last, last };
    const before = rowsOf(thread.pages.get(last - 1) ?? []).map(weightOf);
    this.cut = sliced(before, before.length, taken);
    return { first: last - 1, last };
  }

  private grewFrom = -1;
  private shownPinned = true;

  above(): number {
    return this.span === null ? 0 : spacer(this.heights, 0, this.span.first);
  }

  below(): number {
    return this.span === null ? 0 : spacer(this.heights, this.span.last + 1, this.thread.lastPage + 1);
  }

  /** After each rendering, before it is painted. */
  rendered(): void {
    const { goal } = this;
    const row = goal === null ? undefined : this.rows.get(goal.page)?.rows.find((row) => holds(row, goal.seq));
    if (row !== undefined && this.scroller?.show(row.key)) this.goal = null;
    else this.scroller?.settle();
    this.soon();
  }

  soon(): void {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.step();
    });
  }

  /** One page more or less, where that is called for. */
  private step(): void {
    const { content, scroller, span, thread } = this;
    if (content === null || scroller === null || span === null) return;
    if (scroller.pinned !== this.shownPinned) {
      this.shownPinned = scroller.pinned;
      this.changed();
    }
    const mounted = this.mounted();
    const first = mounted[0];
    const last = mounted.at(-1);
    if (first === undefined || last === undefined) return;
    const reach = scroller.reach(first, last);
    const next = scroller.pinned ? null : coming(span, reach);
    if (next !== null && next !== this.asked && !thread.has(next)) {
      this.asked = next;
      void this.store.load(MAIN, next);
    }
    // Under a finger nothing may change above; it goes on when the list is still.
    if (scroller.moving) return;
    if (this.cut > 0) {
      const rows = this.rows.get(span.first)?.rows ?? [];
      this.cut = this.sliceOf(rows, Math.min(this.cut, rows.length));
      this.changed();
      return;
    }
    const heights = mounted.map((page) => page.getBoundingClientRect().height);
    const want = wanted(span, reach, heights, thread.lastPage);
    if (want !== null) {
      if (thread.has(want)) {
        this.measure();
        this.span = { first: Math.min(span.first, want), last: Math.max(span.last, want) };
        // Where its height is known, all of it takes the place that was held for it, and nothing moves.
        if (want < span.first) this.cut = this.heights.has(want) ? 0 : Infinity;
        this.shrinkTo(MAX_MOUNTED, want < span.first ? "last" : "first");
        this.changed();
      } else void this.store.load(MAIN, want).then(() => this.soon());
      return;
    }
    const kept = trimmed(span, reach, heights);
    if (kept.first !== span.first || kept.last !== span.last) {
      this.measure();
      this.span = kept;
      this.changed();
    }
    thread.touch(range(kept));
  }

  private shrinkTo(count: number, end: "first" | "last"): void {
    if (this.span === null || this.span.last - this.span.first + 1 <= count) return;
    this.measure();
    const { first, last } = this.span;
    if (end === "first") this.cut = 0;
    this.span = end === "first" ? { first: last - count + 1, last } : { first, last: first + count - 1 };
  }

  private mounted(): HTMLElement[] {
    return [...(this.content?.children ?? [])].filter(
      (child): child is HTMLElement => child instanceof HTMLElement && /^\d+$/.test(child.dataset.page ?? ""),
    );
  }

  private measure(): void {
    for (const page of this.mounted()) {
      // Of one that is there in part nothing is known.
      if (this.cut > 0 && Number(page.dataset.page) === this.span?.first) continue;
      this.heights.set(Number(page.dataset.page), page.getBoundingClientRect().height);
    }
  }

  toEnd(): void {
    if (!this.atEnd) {
      this.measure();
      this.span = this.endSpan();
    }
    if (this.scroller !== null) this.scroller.pinned = true;
    this.changed();
  }

  /** Go to a message of the main thread, wherever it is. */
  async goTo({ page, seq }: Goal): Promise<void> {
    if (!this.thread.has(page)) await this.store.load(MAIN, page);
    if (!this.thread.has(page)) return;
    this.measure();
    if (this.span === null || page < this.span.first || page > this.span.last) {
      this.span = { first: page, last: page };
      this.cut = 0;
    }
    if (this.scroller !== null) this.scroller.pinned = false;
    this.goal = { page, seq };
    this.changed();
  }
}

function range({ first, last }: Span): number[] {
  return Array.from({ length: last - first + 1 }, (_, at) => first + at);
}

export function MessageList(props: { store: SessionStore; goal: Goal | null; children?: ComponentChildren }) {
  const { store, goal, children } = props;
  const flow = useMemo(() => new Flow(store), [store, store.conversation.resyncs]);
  const folds = useMemo(() => new Folds((element) => flow.scroller?.hold(element)), [flow]);
  const view = useRef<HTMLDivElement>(null);
  const content = useRef<HTMLDivElement>(null);
  const filler = useRef<HTMLDivElement>(null);
  const [, render] = useReducer((count: number) => count + 1, 0);
  useChanges(store);
  useEffect(() => flow.listen(() => render(0)), [flow]);
  useLayoutEffect(() => flow.attach(view.current!, content.current!, filler.current!), [flow]);
  useLayoutEffect(() => flow.rendered());

  // Who sends something wants to see it.
  const sent = store.outgoing.at(-1)?.id;
  useLayoutEffect(() => {
    if (sent !== undefined) flow.toEnd();
  }, [sent]);

  const opened = flow.opened || store.conversation.live;
  flow.opened = opened;
  useEffect(() => {
    if (opened && goal !== null) void flow.goTo(goal);
  }, [flow, opened, goal?.page, goal?.seq]);

  const pages = flow.pages();
  const { main } = store.conversation;
  const fresh = main.lastN - flow.seen;
  const atStart = flow.span?.first === 0 && flow.whole;
  return (
    <FoldsContext.Provider value={folds}>
      <div class="list">
        <div
          class="view"
          ref={view}
          tabIndex={0}
          role="region"
          aria-label={strings.conversation}
          onClick={(event) => {
            // Links within the conversation go elsewhere; nothing else is decided here.
            if (event.target instanceof HTMLElement) event.target.closest("a[href^='#']")?.removeAttribute("href");
          }}
        >
          <div class="content" ref={content}>
            <div style={{ height: `${flow.above()}px` }} />
            <p class="edge">{pages.length === 0 ? "" : atStart ? strings.beginning : strings.loadingEarlier}</p>
            {pages.map(({ page, rows }) => (
              <div key={page} data-page={page}>
                {rows.map((row) => (
                  <RowView key={row.key} row={row} store={store} />
                ))}
              </div>
            ))}
            <div style={{ height: `${flow.below()}px` }} />
            {flow.span === null || flow.atEnd ? <Live store={store} /> : null}
            {children}
          </div>
          <div ref={filler} />
        </div>
        {!(flow.scroller?.pinned ?? true) && (
          <button type="button" class="to-end" onClick={() => flow.toEnd()}>
            {fresh > 0 ? strings.newMessages(fresh) : strings.toEnd}
          </button>
        )}
      </div>
    </FoldsContext.Provider>
  );
}
