/** What session this is, how it stands, and what can be done with it as a whole. */

import { useState } from "preact/hooks";
import { go } from "../router";
import { visible } from "../rules/text";
import { strings } from "../strings";
import { MODES, titleOf, type Json, type Session } from "../wire";
import type { SessionStore } from "./store";

export function Header({ store }: { store: SessionStore }) {
  const { session } = store;
  const [open, setOpen] = useState(false);
  const title = session === null ? store.id : titleOf(session);
  return (
    <header class="session-head">
      <a href="#/" class="back" aria-label={strings.allSessions}>
        ‹
      </a>
      <h1>{visible(title)}</h1>
      {session !== null && <span class="usage">{usageOf(session)}</span>}
      {session !== null && <span class={`badge ${session.state}`}>{strings.states[session.state]}</span>}
      <button type="button" class="link" aria-expanded={open} onClick={() => setOpen(!open)}>
        {strings.details}
      </button>
      {open && session !== null && <Details store={store} />}
    </header>
  );
}

/** Cost and context in few words. */
function usageOf({ cost_usd, context }: Session): string {
  const parts: string[] = [];
  // Less than a cent is not worth the place.
  if (cost_usd !== null && cost_usd >= 0.01) parts.push(strings.dollarsShort(cost_usd));
  if (context !== null) parts.push(strings.contextShort(context.used, context.limit));
  return parts.join(" · ");
}

function Details({ store }: { store: SessionStore }) {
  const session = store.session!;
  const [title, setTitle] = useState(session.title ?? "");
  const [model, setModel] = useState(session.model ?? "");
  const [asking, setAsking] = useState<"end" | "purge" | null>(null);
  const change = (changes: Json): void => void store.change(changes).catch(() => {});
  const ended = session.state === "ended";
  return (
    <div class="details">
      <dl>
        <dt>{strings.agent}</dt>
        <dd>{session.agent}</dd>
        <dt>{strings.folder}</dt>
        <dd>
          {visible(session.cwd ?? "")}
          {session.cwd && (
            <>
              {" "}
              <a href={`#/skills/${encodeURIComponent(session.cwd)}`}>{strings.skillsHere}</a>
            </>
          )}
        </dd>
        <dt>{strings.owner}</dt>
        <dd>{session.owner}</dd>
        {session.cost_usd !== null && (
          <>
            <dt>{strings.cost}</dt>
            <dd>{strings.dollars(session.cost_usd)}</dd>
          </>
        )}
        {session.context !== null && (
          <>
            <dt>{strings.context}</dt>
            <dd>{strings.contextUsed(session.context.used, session.context.limit)}</dd>
          </>
        )}
      </dl>
      <form
        class="fields"
        onSubmit={(event) => {
          event.preventDefault();
          const changes: Json = {};
          if (title !== (session.title ?? "")) changes.title = title || null;
          if (model !== (session.model ?? "")) changes.model = model || null;
          if (Object.keys(changes).length > 0) change(changes);
        }}
      >
        <label>
          {strings.title}
          <input type="text" maxLength={500} value={title} onInput={(event) => setTitle(event.currentTarget.value)} />
        </label>
        <label>
          {strings.model}
          <input type="text" maxLength={200} value={model} onInput={(event) => setModel(event.currentTarget.value)} />
        </label>
        <button type="submit">{strings.save}</button>
        <label>
          {strings.mode}
          <select
            value={session.permission_mode ?? "default"}
            onChange={(event) => change({ permission_mode: event.currentTarget.value })}
          >
            {MODES.map((mode) => (
              <option key={mode} value={mode}>
                {strings.modes[mode] ?? mode}
              </option>
            ))}
          </select>
        </label>
        <label>
          {strings.share}
          <select
            value={session.share ?? ""}
            onChange={(event) => change({ share: event.currentTarget.value || null })}
          >
            <option value="">{strings.shareNobody}</option>
            <option value="read">{strings.shareRead}</option>
            <option value="write">{strings.shareWrite}</option>
          </select>
        </label>
      </form>
      <div class="actions">
        {session.state === "dormant" || session.state === "failed" ? (
          <button type="button" onClick={() => void store.resume().catch(() => {})}>
            {strings.resume}
          </button>
        ) : null}
        {asking === null ? (
          <>
            {!ended && (
              <button type="button" onClick={() => setAsking("end")}>
                {strings.end}
              </button>
            )}
            <button type="button" class="danger" onClick={() => setAsking("purge")}>
              {strings.purge}
            </button>
          </>
        ) : (
          <span role="group" aria-label={strings.confirm}>
            {asking === "end" ? strings.endSure : strings.purgeSure}{" "}
            <button
              type="button"
              class="danger"
              onClick={() => {
                const purge = asking === "purge";
                store.end(purge).then(() => purge && go("/"), () => {});
                setAsking(null);
              }}
            >
              {asking === "end" ? strings.end : strings.purge}
            </button>
            <button type="button" onClick={() => setAsking(null)}>
              {strings.cancel}
            </button>
          </span>
        )}
      </div>
    </div>
  );
}
