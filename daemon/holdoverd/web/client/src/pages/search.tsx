import { useState } from "preact/hooks";
import { usePolled } from "../hooks";
import { call, said } from "../http";
import { oneLine } from "../rules/text";
import { strings } from "../strings";
import { MAIN, titleOf, type Session } from "../wire";
import type { PageProps } from "./registry";

interface Hit {
  session: string;
  seq: number;
  thread: string;
  page: number;
  snippet: string;
  at: number;
}

/** A change of what is sought is not asked for before the next key is due. */
const NEVER_MS = 24 * 3600 * 1000;

/** `#/search/WORDS`: over everything that was said; a hit leads to its message. */
export function SearchPage({ parts }: PageProps) {
  const [typed, setTyped] = useState(parts[0] ?? "");
  const [q, setQ] = useState(parts[0] ?? "");
  // Asked again, the same words may find what has been said since.
  const [asked, setAsked] = useState(0);
  const found = usePolled(
    async () => {
      if (q === "") return { hits: [], titles: new Map<string, string>() };
      const { items } = await call<{ items: Hit[] }>("GET", `/v1/search?${new URLSearchParams({ q, limit: "100" })}`);
      const sessions = await call<{ items: Session[] }>("GET", "/v1/sessions?limit=500");
      return { hits: items, titles: new Map(sessions.items.map((session) => [session.id, titleOf(session)])) };
    },
    NEVER_MS,
    `${asked} ${q}`,
  );
  const { value, error } = found;
  return (
    <main class="page">
      <h1>{strings.search}</h1>
      <form
        role="search"
        class="search"
        onSubmit={(event) => {
          event.preventDefault();
          setQ(typed.trim());
          setAsked(asked + 1);
          history.replaceState(null, "", `#/search/${encodeURIComponent(typed.trim())}`);
        }}
      >
        <input
          type="search"
          aria-label={strings.searchHint}
          placeholder={strings.searchHint}
          value={typed}
          onInput={(event) => setTyped(event.currentTarget.value)}
        />
        <button type="submit" class="primary" disabled={typed.trim() === ""}>
          {strings.search}
        </button>
      </form>
      <p class="quiet" role="status">
        {error !== null ? said(error) : value !== null && q !== "" ? strings.hits(value.hits.length) : ""}
      </p>
      <ul class="sessions">
        {value?.hits.map((hit) => (
          <li key={`${hit.session}/${hit.seq}`}>
            <a href={address(hit)}>
              <span class="name">{oneLine(value.titles.get(hit.session) ?? hit.session, 120)}</span>
              <span class="badge-time">{new Date(hit.at).toLocaleString()}</span>
              <span class="meta">{oneLine(hit.snippet, 300)}</span>
            </a>
          </li>
        ))}
      </ul>
    </main>
  );
}

/** A message of a sub-agent has no place of its own in the list; its session has. */
function address({ session, thread, page, seq }: Hit): string {
  const base = `#/session/${encodeURIComponent(session)}`;
  return thread === MAIN ? `${base}/${page}/${seq}` : base;
}
