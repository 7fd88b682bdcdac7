/** A sub-agent's conversation within the row of the call that started it; loaded when opened. */

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { GrowingMarkdown } from "../markdown";
import { rowsOf, type Row } from "../rules/rows";
import { strings } from "../strings";
import type { ThreadLevel } from "../wire";
import { Fold } from "./folds";
import { RowView } from "./rows";
import type { SessionStore } from "./store";
import { useChanges } from "../hooks";

export function SubAgent({ store, thread }: { store: SessionStore; thread: string }) {
  useChanges(store);
  const level = store.session?.threads.find((candidate) => candidate.thread === thread);
  if (level === undefined) return null;
  return (
    <Fold
      id={`thread:${thread}`}
      class="subagent"
      summary={
        <>
          <span class="what">{strings.subAgent}</span>
          <span class="detail">{level.title ?? ""}</span>
          <span class="state">{strings.messages(level.n)}</span>
        </>
      }
    >
      {() => <Nested store={store} level={level} />}
    </Fold>
  );
}

/** Pages mounted of a sub-agent's thread at most. */
const MOST_PAGES = 2;

function Nested({ store, level }: { store: SessionStore; level: ThreadLevel }) {
  const [from, setFrom] = useState<number | null>(null);
  useEffect(() => store.follow(level.thread, level.n), [store, level.thread]);
  const rows = useRef(new Map<number, Row[]>());
  const thread = store.conversation.threads.get(level.thread);
  const first = from ?? thread?.lastPage ?? 0;
  const pages = useMemo(() => {
    const found: number[] = [];
    const last = thread?.lastPage ?? 0;
    for (let page = first; page <= Math.min(last, first + MOST_PAGES - 1); page += 1) found.push(page);
    return found;
  }, [first, thread?.lastPage]);
  if (thread === undefined) return null;
  const go = (page: number): void => {
    if (thread.has(page)) setFrom(page);
    else void store.load(level.thread, page).then(() => setFrom(page));
  };
  const atEnd = pages.includes(thread.lastPage);
  return (
    <div class="nested">
      {first > 0 && (
        <button type="button" class="link" onClick={() => go(first - 1)}>
          {strings.earlier}
        </button>
      )}
      {pages.flatMap((page) => {
        const found = rowsOf(thread.pages.get(page) ?? [], rows.current.get(page));
        rows.current.set(page, found);
        return found.map((row) => <RowView key={row.key} row={row} store={store} />);
      })}
      {atEnd &&
        [...thread.blocks.values()]
          .filter(({ kind }) => kind === "text")
          .map((block) => <GrowingMarkdown key={block.index} text={block.text} />)}
      {!atEnd && (
        <button type="button" class="link" onClick={() => go(first + 1)}>
          {strings.later}
        </button>
      )}
    </div>
  );
}
