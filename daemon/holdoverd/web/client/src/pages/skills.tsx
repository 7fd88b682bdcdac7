import { useState } from "preact/hooks";
import { usePolled } from "../hooks";
import { ApiError, call, said } from "../http";
import { visible } from "../rules/text";
import { strings } from "../strings";
import { go } from "../router";
import type { Market, Plugin, Session, Skill, SkillDiff } from "../wire";
import type { PageProps } from "./registry";

const EVERY_MS = 15_000;
const words = strings.skills;

/** What was refused because it runs programs, and how to go on with it all the same. */
interface Untrusted {
  executables: string[];
  again: () => void;
}

/** Personal skills, or those of the project in the folder that the address names, beside what else is loaded there. */
export function SkillsPage({ parts }: PageProps) {
  const cwd = parts[0] ?? "";
  return <Skills key={cwd} cwd={cwd} />;
}

function Skills({ cwd }: { cwd: string }) {
  /** What is changed here; all else is only shown. */
  const scope = cwd === "" ? "personal" : "project";
  const place = cwd === "" ? {} : { scope, cwd };
  const query = cwd === "" ? "" : `?${new URLSearchParams({ cwd })}`;
  const { value, error, again } = usePolled(() => call<{ items: Skill[] }>("GET", `/v1/skills${query}`), EVERY_MS, query);
  const [chosen, setChosen] = useState<ReadonlySet<string>>(new Set());
  const [busy, setBusy] = useState(false);
  const [told, setTold] = useState<string | null>(null);
  const [untrusted, setUntrusted] = useState<Untrusted | null>(null);
  const [diff, setDiff] = useState<SkillDiff | null>(null);

  /** Does `act` with what it needs to be trusted, and says what came of it. */
  const run = async (act: (trust: boolean) => Promise<string>, trust = false): Promise<void> => {
    setBusy(true);
    setUntrusted(null);
    try {
      setTold(await act(trust));
    } catch (refused) {
      const found = refused instanceof ApiError ? refused.detail["executables"] : undefined;
      if (Array.isArray(found) && !trust) setUntrusted({ executables: found.map(String), again: () => void run(act, true) });
      setTold(said(refused));
    }
    setBusy(false);
    again();
  };
  const change = (op: string, names: string[]) =>
    run(async (trust) => {
      const body = { op, names, trust, ...place };
      const { changed } = await call<{ changed: { changed: boolean }[] }>("POST", "/v1/skills/batch", body);
      setChosen(new Set());
      setDiff(null);
      return words.changed(changed.filter((one) => one.changed).length);
    });
  const install = (body: object) =>
    run(async (trust) => {
      const { changed } = await call<{ changed: { changed: boolean }[] }>("POST", "/v1/skills", { ...body, ...place, trust });
      return words.changed(changed.filter((one) => one.changed).length);
    });
  const compare = (skill: Skill) =>
    run(async () => {
      setDiff(await call<SkillDiff>("GET", `/v1/skills/${encodeURIComponent(skill.name)}/diff${cwd === "" ? "" : `?${new URLSearchParams(place)}`}`));
      return "";
    });

  const items = value?.items ?? [];
  const own = items.filter((one) => one.scope === scope);
  const names = own.filter((one) => chosen.has(one.name)).map((one) => one.name);
  const choose = (name: string, wanted: boolean): void => {
    const next = new Set(chosen);
    wanted ? next.add(name) : next.delete(name);
    setChosen(next);
  };
  return (
    <main class="page">
      <h1>{words.title}</h1>
      <Project cwd={cwd} />
      <Add busy={busy} add={(source) => void install({ source })} />
      <p class="quiet" role="status">
        {told ?? (error !== null && said(error))}
      </p>
      {untrusted !== null && (
        <fieldset class="asking">
          <legend>{words.untrusted}</legend>
          <ul>
            {untrusted.executables.map((line) => (
              <li key={line}>{visible(line)}</li>
            ))}
          </ul>
          <div class="actions">
            <button type="button" onClick={untrusted.again} disabled={busy}>
              {words.trust}
            </button>
            <button type="button" onClick={() => setUntrusted(null)}>
              {strings.cancel}
            </button>
          </div>
        </fieldset>
      )}
      <div class="actions">
        <label>
          <input
            type="checkbox"
            checked={own.length > 0 && names.length === own.length}
            onChange={(event) => setChosen(new Set(event.currentTarget.checked ? own.map((one) => one.name) : []))}
          />{" "}
          {words.all}
        </label>
        {(["update", "rollback", "enable", "disable", "remove"] as const).map((op) => (
          <button key={op} type="button" disabled={busy || names.length === 0} onClick={() => void change(op, names)}>
            {words.ops[op]}
          </button>
        ))}
      </div>
      {value !== null && items.length === 0 && <p>{words.none}</p>}
      <ul class="skills">
        {items.map((skill) => (
          <li key={skill.path} aria-label={skill.called}>
            <input
              type="checkbox"
              aria-label={words.choose(skill.called)}
              disabled={skill.scope !== scope}
              checked={chosen.has(skill.name) && skill.scope === scope}
              onChange={(event) => choose(skill.name, event.currentTarget.checked)}
            />
            <div>
              <span class="name">{visible(skill.called)}</span>{" "}
              <span class={`badge ${skill.effective ? "working" : ""}`}>
                {skill.effective ? words.loaded : skill.enabled ? words.hidden : words.disabled}
              </span>
              <p>{visible(skill.description)}</p>
              <p class="quiet">
                {[
                  words.scopes[skill.scope] ?? skill.scope,
                  skill.source && visible(skill.source),
                  skill.version && words.version(skill.version.slice(0, 12), skill.versions.length),
                  words.tokens(skill.tokens),
                  skill.pinned && words.pinned,
                  skill.modified && words.modified,
                  skill.update && words.hasUpdate,
                ]
                  .filter(Boolean)
                  .join(" · ")}
              </p>
              {skill.problems.length > 0 && <p class="bad">{visible(skill.problems.join("; "))}</p>}
              {skill.scope === scope && skill.source !== null && (
                <div class="actions">
                  <button type="button" disabled={busy} onClick={() => void compare(skill)}>
                    {words.compare}
                  </button>
                  <button type="button" disabled={busy} onClick={() => void change(skill.pinned ? "unpin" : "pin", [skill.name])}>
                    {skill.pinned ? words.unpin : words.pin}
                  </button>
                </div>
              )}
              {diff?.name === skill.name && skill.scope === scope && <Difference diff={diff} />}
            </div>
          </li>
        ))}
      </ul>
      {cwd === "" && <Markets busy={busy} install={(plugin) => void install({ source: plugin })} run={run} />}
    </main>
  );
}

/** Whose skills are shown: those of everywhere, or a project's. The folders of sessions are offered. */
function Project({ cwd }: { cwd: string }) {
  const [folder, setFolder] = useState(cwd);
  const { value } = usePolled(() => call<{ items: Session[] }>("GET", "/v1/sessions?limit=100"), EVERY_MS * 4, "");
  const known = [...new Set(value?.items.flatMap(({ cwd }) => cwd ?? []))];
  return (
    <form
      class="fields"
      onSubmit={(event) => {
        event.preventDefault();
        go(folder.trim() === "" ? "/skills" : `/skills/${encodeURIComponent(folder.trim())}`);
      }}
    >
      <label>
        {words.project}
        <input list="skill-folders" value={folder} size={40} onInput={(event) => setFolder(event.currentTarget.value)} />
        <datalist id="skill-folders">
          {known.map((one) => (
            <option key={one} value={one} />
          ))}
        </datalist>
      </label>
      <button type="submit" disabled={folder.trim() === cwd}>
        {words.show}
      </button>
    </form>
  );
}

function Add({ busy, add }: { busy: boolean; add: (source: string) => void }) {
  const [source, setSource] = useState("");
  return (
    <form
      class="fields"
      onSubmit={(event) => {
        event.preventDefault();
        add(source.trim());
      }}
    >
      <label>
        {words.source}
        <input value={source} size={40} onInput={(event) => setSource(event.currentTarget.value)} />
      </label>
      <button type="submit" disabled={busy || source.trim() === ""}>
        {words.install}
      </button>
    </form>
  );
}

function Difference({ diff }: { diff: SkillDiff }) {
  if (diff.files.length === 0) return <p class="quiet">{words.noDifference}</p>;
  return (
    <pre class="difference" aria-label={words.difference} tabIndex={0}>
      {diff.files
        .flatMap((file) => (file.diff ?? `${file.change}: ${file.path}`).split("\n"))
        .map((line, at) => (
          <span key={at} class={/^\+(?!\+\+ )/.test(line) ? "added" : /^-(?!-- )/.test(line) ? "removed" : ""}>
            {visible(line) || " "}
          </span>
        ))}
    </pre>
  );
}

interface MarketsProps {
  busy: boolean;
  install: (plugin: string) => void;
  run: (act: (trust: boolean) => Promise<string>) => Promise<void>;
}

function Markets({ busy, install, run }: MarketsProps) {
  const { value, again } = usePolled(() => call<{ items: Market[] }>("GET", "/v1/marketplaces"), EVERY_MS, "");
  const [name, setName] = useState<string | null>(null);
  const [source, setSource] = useState("");
  const [q, setQ] = useState("");
  const market = name ?? value?.items[0]?.name ?? null;
  return (
    <section aria-label={words.markets}>
      <h2>{words.markets}</h2>
      <form
        class="fields"
        onSubmit={(event) => {
          event.preventDefault();
          void run(async () => {
            const made = await call<Market>("POST", "/v1/marketplaces", { source: source.trim() });
            setName(made.name);
            again();
            return words.added(made.name);
          });
        }}
      >
        <label>
          {words.marketSource}
          <input value={source} size={40} onInput={(event) => setSource(event.currentTarget.value)} />
        </label>
        <button type="submit" disabled={busy || source.trim() === ""}>
          {words.addMarket}
        </button>
      </form>
      <div class="fields">
        {value !== null && value.items.length > 0 && (
          <label>
            {words.market}
            <select value={market ?? ""} onChange={(event) => setName(event.currentTarget.value)}>
              {value.items.map((one) => (
                <option key={one.name}>{one.name}</option>
              ))}
            </select>
          </label>
        )}
        <label>
          {words.search}
          <input type="search" value={q} onInput={(event) => setQ(event.currentTarget.value)} />
        </label>
      </div>
      {market !== null && <Plugins key={market} market={market} q={q.trim()} busy={busy} install={install} />}
    </section>
  );
}

interface PluginsProps {
  market: string;
  q: string;
  busy: boolean;
  install: (plugin: string) => void;
}

function Plugins({ market, q, busy, install }: PluginsProps) {
  const query = new URLSearchParams({ limit: "100", ...(q !== "" && { q }) });
  const { value, error } = usePolled(
    () => call<{ items: Plugin[]; total: number; problems: string[] }>("GET", `/v1/marketplaces/${encodeURIComponent(market)}?${query}`),
    EVERY_MS * 4,
    query.toString(),
  );
  return (
    <>
      <p class="quiet" role="status">
        {error !== null ? said(error) : value !== null && words.found(value.items.length, value.total, value.problems.length)}
      </p>
      <ul class="skills">
        {value?.items.map((plugin) => (
          <li key={plugin.plugin} aria-label={plugin.plugin}>
            <button type="button" disabled={busy || plugin.installed} onClick={() => install(plugin.plugin)}>
              {plugin.installed ? words.installed : words.install}
            </button>
            <div>
              <span class="name">{visible(plugin.name)}</span>
              <p>{visible(plugin.description)}</p>
            </div>
          </li>
        ))}
      </ul>
    </>
  );
}
