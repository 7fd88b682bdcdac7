import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { useChanges } from "../hooks";
import { strings } from "../strings";
import { Composer } from "../session/composer";
import { Header } from "../session/header";
import { MessageList, type Goal } from "../session/list";
import { Permissions } from "../session/permissions";
import { draftOf } from "../session/draft";
import { Queue } from "../session/queue";
import { SessionStore } from "../session/store";
import { titleOf } from "../wire";
import type { PageProps } from "./registry";

export function SessionPage({ parts }: PageProps) {
  const [id = "", page, seq] = parts;
  const asked = page === "ask" ? (seq ?? null) : null;
  const goal = asked === null && page !== undefined && seq !== undefined ? { page: Number(page), seq: Number(seq) } : null;
  const [store, setStore] = useState<SessionStore | null>(null);
  // Before anything is painted: its stream takes longer than the page.
  useLayoutEffect(() => {
    const opened = new SessionStore(id);
    setStore(opened);
    return () => opened.close();
  }, [id]);
  return store === null || store.id !== id ? null : <Opened key={id} store={store} goal={goal} asked={asked} />;
}

/** How long it is said that the connection is back: after a daemon's death all is quiet again within 3 s. */
const FOUND_MS = 1000;

/** How long a connection may be away before it is worth a word. */
const QUIET_MS = 700;

function Opened({ store, goal, asked }: { store: SessionStore; goal: Goal | null; asked: string | null }) {
  useChanges(store);
  const [over, setOver] = useState(false);
  const title = store.session === null ? store.id : titleOf(store.session);
  useEffect(() => {
    document.title = `${title} · Holdover`;
    return () => {
      document.title = "Holdover";
    };
  }, [title]);
  if (store.connection === "gone" || store.connection === "unshared") {
    return (
      <main class="page">
        <h1>{store.connection === "gone" ? strings.noSession : strings.unshared}</h1>
        <p>
          <a href="#/">{strings.allSessions}</a>
        </p>
      </main>
    );
  }
  const files = (event: DragEvent): boolean => event.dataTransfer?.types.includes("Files") ?? false;
  return (
    <main
      class={over ? "session over" : "session"}
      onDragOver={(event) => {
        if (!files(event)) return;
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={(event) => {
        // Within it, from one element to the next, is not out of it.
        if (!event.currentTarget.contains(event.relatedTarget as Node | null)) setOver(false);
      }}
      onDrop={(event) => {
        if (!files(event)) return;
        event.preventDefault();
        setOver(false);
        draftOf(store.id).attach(event.dataTransfer?.files ?? []);
      }}
    >
      <Header store={store} />
      <MessageList store={store} goal={goal} key={store.conversation.resyncs} />
      <div class="foot">
        {over && <p class="note">{strings.dropHere}</p>}
        <Quiet store={store} />
        <Permissions key={asked} store={store} asked={asked} />
        <Queue store={store} />
        <Composer store={store} />
      </div>
    </main>
  );
}

/** One line when something is not as it should be; nothing otherwise. */
function Quiet({ store }: { store: SessionStore }) {
  const [late, setLate] = useState(false);
  const away = store.connection === "lost";
  useEffect(() => {
    if (!away) {
      setLate(false);
      return;
    }
    const timer = setTimeout(() => setLate(true), QUIET_MS);
    return () => clearTimeout(timer);
  }, [away]);
  const shown = away && late;
  const [found, setFound] = useState(false);
  const wasShown = useRef(false);
  useEffect(() => {
    const back = wasShown.current && !shown && store.connection === "live";
    wasShown.current = shown;
    if (!back) return;
    setFound(true);
    const timer = setTimeout(() => setFound(false), FOUND_MS);
    return () => clearTimeout(timer);
  }, [shown]);
  return (
    <div class="quiet" role="status">
      {shown ? <p>{strings.lost}</p> : found && <p>{strings.found}</p>}
      {store.outdated && (
        <p>
          {strings.outdated}{" "}
          <button type="button" class="link" onClick={() => location.reload()}>
            {strings.reload}
          </button>
        </p>
      )}
      {store.trouble !== null && (
        <p class="bad">
          {store.trouble}{" "}
          <button type="button" class="link" onClick={() => store.troubleRead()}>
            {strings.dismiss}
          </button>
        </p>
      )}
    </div>
  );
}
