import { useState } from "preact/hooks";
import { usePolled } from "../hooks";
import { call, said, Unreachable } from "../http";
import { More } from "../more";
import { visible } from "../rules/text";
import { strings } from "../strings";
import { STATES, titleOf, type Session } from "../wire";

const EVERY_MS = 3000;

export function SessionsPage() {
  const [q, setQ] = useState("");
  const [limit, setLimit] = useState(50);
  const [state, setState] = useState("");
  const query = new URLSearchParams({ limit: String(limit), ...(q.trim() && { q: q.trim() }), ...(state && { state }) });
  const { value, error } = usePolled(
    () => call<{ items: Session[]; next: string | null }>("GET", `/v1/sessions?${query}`),
    EVERY_MS,
    query.toString(),
  );
  return (
    <main class="page">
      <div class="title-row">
        <h1>{strings.sessions}</h1>
        <a class="button primary" href="#/new">
          {strings.newSession}
        </a>
      </div>
      <div class="search">
        <input
          type="search"
          aria-label={strings.filter}
          placeholder={strings.filter}
          value={q}
          onInput={(event) => setQ(event.currentTarget.value)}
        />
        <select aria-label={strings.state} value={state} onChange={(event) => setState(event.currentTarget.value)}>
          <option value="">{strings.everyState}</option>
          {STATES.map((name) => (
            <option key={name} value={name}>
              {strings.states[name]}
            </option>
          ))}
        </select>
      </div>
      <p class="quiet" role="status">
        {error === null ? "" : error instanceof Unreachable ? strings.lost : said(error)}
      </p>
      {value !== null && value.items.length === 0 && <p>{q === "" && state === "" ? strings.noSessions : strings.nothingFound}</p>}
      <ul class="sessions">
        {value?.items.map((session) => (
          <li key={session.id}>
            <a href={`#/session/${encodeURIComponent(session.id)}`}>
              <span class="name">{visible(titleOf(session))}</span>
              <span class={`badge ${session.state}`}>{strings.states[session.state]}</span>
              <span class="meta">
                {session.agent} · {strings.messages(session.last_seq)} · {strings.ago(Date.now() - session.updated_at)}
                {session.pending.length > 0 && ` · ${strings.asks(session.pending.length)}`}
              </span>
            </a>
          </li>
        ))}
      </ul>
      <More page={value} limit={limit} show={setLimit} />
    </main>
  );
}
