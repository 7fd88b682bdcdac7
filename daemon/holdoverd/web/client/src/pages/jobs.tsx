import { useState } from "preact/hooks";
import { usePolled } from "../hooks";
import { call, said } from "../http";
import { More } from "../more";
import { ACTIONS, fraction, isOpen, ranMs } from "../rules/jobs";
import { terminal, visible } from "../rules/text";
import { strings } from "../strings";
import type { Job, JobLog, JobState } from "../wire";

const EVERY_MS = 2000;
const AT_REST_MS = 5000;
const STATES: readonly JobState[] = ["running", "ready", "dead", "done", "cancelled"];
const words = strings.jobs;

export function JobsPage() {
  const [state, setState] = useState<JobState | "">("");
  const [limit, setLimit] = useState(50);
  const [everyMs, setEveryMs] = useState(EVERY_MS);
  const [busy, setBusy] = useState<string | null>(null);
  const [told, setTold] = useState<string | null>(null);
  const query = new URLSearchParams({ limit: String(limit), ...(state !== "" && { state }) });
  const { value, error, again } = usePolled(
    async () => {
      const found = await call<{ items: Job[]; next: string | null }>("GET", `/v1/jobs?${query}`);
      setEveryMs(found.items.some(isOpen) ? EVERY_MS : AT_REST_MS);
      return found;
    },
    everyMs,
    query.toString(),
  );

  const act = async (job: Job, action: "cancel" | "retry"): Promise<void> => {
    const path = `/v1/jobs/${encodeURIComponent(job.id)}`;
    setBusy(job.id);
    try {
      await (action === "cancel" ? call("DELETE", path) : call("POST", `${path}/retry`));
      setTold(null);
    } catch (refused) {
      setTold(said(refused)); // it may have ended meanwhile
    }
    setBusy(null);
    again();
  };

  return (
    <main class="page">
      <div class="title-row">
        <h1>{words.title}</h1>
        <label>
          {words.show}{" "}
          <select value={state} onChange={(event) => setState(event.currentTarget.value as JobState | "")}>
            <option value="">{words.all}</option>
            {STATES.map((one) => (
              <option key={one} value={one}>
                {words.states[one]}
              </option>
            ))}
          </select>
        </label>
      </div>
      <p class="quiet" role="status">
        {told ?? (error !== null && said(error))}
      </p>
      {value !== null && value.items.length === 0 && <p>{state === "" ? words.none : words.noneSuch}</p>}
      <ul class="jobs">
        {value?.items.map((job) => (
          <Row key={job.id} job={job} busy={busy === job.id} act={act} />
        ))}
      </ul>
      <More page={value} limit={limit} show={setLimit} />
    </main>
  );
}

interface RowProps {
  job: Job;
  busy: boolean;
  act: (job: Job, action: "cancel" | "retry") => Promise<void>;
}

function Row({ job, busy, act }: RowProps) {
  const [open, setOpen] = useState(false);
  const ran = ranMs(job, Date.now());
  return (
    <li aria-label={job.id}>
      <div class="job-head">
        <span class="name">{visible(job.processor)}</span>
        <span class={`badge ${job.state}`}>{words.states[job.state]}</span>
      </div>
      <Progress job={job} />
      <p class="quiet">
        {[
          <code>{job.id}</code>,
          strings.ago(Date.now() - job.created_at),
          ran !== null && strings.seconds(ran / 1000),
          job.attempt > 1 && words.attempt(job.attempt, job.max_attempts),
        ]
          .filter((part) => part !== false)
          .map((part, n) => [n > 0 && " · ", part])}
        {job.session !== null && (
          <>
            {" · "}
            <a href={`#/session/${encodeURIComponent(job.session)}`}>{words.session}</a>
          </>
        )}
      </p>
      {job.error !== null && <p class="bad">{visible(job.error)}</p>}
      <div class="actions">
        <button type="button" aria-expanded={open} onClick={() => setOpen(!open)}>
          {words.details}
        </button>
        {ACTIONS[job.state].map((action) => (
          <button key={action} type="button" disabled={busy} onClick={() => void act(job, action)}>
            {words[action]}
          </button>
        ))}
      </div>
      {open && <Details job={job} />}
    </li>
  );
}

function Progress({ job }: { job: Job }) {
  const part = fraction(job);
  if (job.state !== "running" || job.progress === null) return null;
  const { bytes, total } = job.progress;
  return (
    <div class="job-progress">
      <progress aria-label={words.progress} {...(part !== null && { value: part, max: 1 })} />
      <span class="quiet">{words.come(bytes, total)}</span>
    </div>
  );
}

/** Files, result and log; looked at again while the job runs. */
function Details({ job }: { job: Job }) {
  const path = `/v1/jobs/${encodeURIComponent(job.id)}/log`;
  const key = `${job.state} ${job.attempt}`; // the last look is after the end
  const { value, error } = usePolled(() => call<JobLog>("GET", path), isOpen(job) ? EVERY_MS : 3_600_000, key);
  const made = job.result?.files ?? [];
  return (
    <div class="job-details">
      <Files label={words.files} ids={job.files} />
      {Object.keys(job.params).length > 0 && <pre aria-label={words.params}>{visible(JSON.stringify(job.params, null, 2))}</pre>}
      {job.result?.text && (
        <>
          <h2>{words.result}</h2>
          <pre aria-label={words.result} tabIndex={0}>
            {terminal(job.result.text)}
          </pre>
        </>
      )}
      <Files label={words.resultFiles} ids={made} />
      <h2>{words.log}</h2>
      {error !== null && <p class="bad">{said(error)}</p>}
      {value !== null &&
        (value.text === "" ? (
          <p class="quiet">{words.saidNothing}</p>
        ) : (
          <pre aria-label={words.log} tabIndex={0}>
            {terminal(value.text)}
          </pre>
        ))}
    </div>
  );
}

function Files({ label, ids }: { label: string; ids: readonly string[] }) {
  const { value } = usePolled(() => Promise.all(ids.map(named)), 3_600_000, ids.join());
  if (ids.length === 0) return null;
  return (
    <p>
      {label}:{" "}
      {value?.map(({ id, name, size }, n) => (
        <>
          {n > 0 && ", "}
          {size === null ? (
            <s>{name}</s>
          ) : (
            <a key={id} href={`/v1/files/${encodeURIComponent(id)}/download`}>
              {visible(name)}
            </a>
          )}
          {size !== null && ` (${strings.bytes(size)})`}
        </>
      ))}
    </p>
  );
}

/** A file as it is called; one that is deleted by its id. */
async function named(id: string): Promise<{ id: string; name: string; size: number | null }> {
  try {
    const { name, size, state } = await call<{ name: string; size: number; state: string }>("GET", `/v1/files/${encodeURIComponent(id)}`);
    return { id, name, size: state === "ready" ? size : null };
  } catch {
    return { id, name: id, size: null };
  }
}
