import { useEffect, useRef, useState } from "preact/hooks";
import { transfers, type Transfer } from "../files/transfers";
import { useChanges, usePolled } from "../hooks";
import { call, said } from "../http";
import { More } from "../more";
import { visible } from "../rules/text";
import { strings } from "../strings";
import type { Link, StoredFile, UploadLink } from "../wire";

const EVERY_MS = 15_000;
const DAY_S = 24 * 3600;
const words = strings.files;

type Run = (act: () => Promise<string>) => Promise<void>;

type Found = { items: StoredFile[]; next: string | null };

/** Up to `limit` files. A page of a search may be short and have a next: then it looks on, the further the more are asked for. */
async function found(q: string, limit: number): Promise<Found> {
  const items: StoredFile[] = [];
  let next: string | null = null;
  for (let pages = 0; pages < limit / 5; pages += 1) {
    const query = new URLSearchParams({ limit: String(limit - items.length), ...(q && { q }), ...(next && { cursor: next }) });
    const page: Found = await call<Found>("GET", `/v1/files?${query}`);
    items.push(...page.items);
    next = page.next;
    if (next === null || items.length >= limit) break;
  }
  return { items, next };
}

export function FilesPage() {
  useChanges(transfers);
  const [q, setQ] = useState("");
  const [limit, setLimit] = useState(50);
  const [told, setTold] = useState<string | null>(null);
  const files = usePolled(() => found(q.trim(), limit), EVERY_MS, `${transfers.finished} ${limit} ${q.trim()}`);
  const links = usePolled(() => call<{ items: Link[] }>("GET", "/v1/links?limit=500"), EVERY_MS, "");
  const run: Run = async (act) => {
    try {
      setTold(await act());
    } catch (refused) {
      setTold(said(refused));
    }
    files.again();
    links.again();
  };
  const alive = (links.value?.items ?? []).filter(isAlive);
  const items = files.value?.items ?? [];
  const trouble = files.error ?? links.error;
  return (
    <main class="page">
      <h1>{words.title}</h1>
      <Upload />
      <input
        type="search"
        class="filter"
        aria-label={words.filter}
        placeholder={words.filter}
        value={q}
        onInput={(event) => setQ(event.currentTarget.value)}
      />
      <p class="quiet" role="status">
        {told ?? (trouble !== null && said(trouble))}
      </p>
      {files.value !== null && items.length === 0 && <p>{q.trim() === "" ? words.none : words.nothingFound}</p>}
      <ul class="files">
        {items.map((file) => (
          <File key={file.id} file={file} links={alive.filter((link) => link.file === file.id)} run={run} />
        ))}
      </ul>
      <More page={files.value} limit={limit} show={setLimit} />
      <UploadLinks />
    </main>
  );
}

function isAlive({ revoked_at, expires_at }: { revoked_at: number | null; expires_at: number | null }): boolean {
  return revoked_at === null && (expires_at === null || expires_at > Date.now());
}

// --- sending ------------------------------------------------------------------------------------

function Upload() {
  const [path, setPath] = useState("");
  const [over, setOver] = useState(false);
  const pick = useRef<HTMLInputElement>(null);
  return (
    <section
      aria-label={words.upload}
      class={over ? "drop over" : "drop"}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        if (event.dataTransfer !== null) transfers.add(event.dataTransfer.files, path);
      }}
    >
      <div class="fields">
        <label>
          {words.choose}
          <input
            ref={pick}
            type="file"
            multiple
            onChange={(event) => {
              transfers.add(event.currentTarget.files ?? [], path);
              event.currentTarget.value = "";
            }}
          />
        </label>
        <label>
          {words.folder}
          <input value={path} size={20} onInput={(event) => setPath(event.currentTarget.value)} />
        </label>
      </div>
      {transfers.items.length > 0 && (
        <ul class="transfers">
          {transfers.items.map((one) => (
            <Progress key={one.key} one={one} />
          ))}
        </ul>
      )}
    </section>
  );
}

function Progress({ one }: { one: Transfer }) {
  const percent = one.size === 0 ? 0 : Math.floor((100 * one.sent) / one.size);
  return (
    <li aria-label={one.name}>
      <span class="name">{visible(one.name)}</span>{" "}
      <span class={one.state === "failed" ? "bad" : "quiet"}>
        {one.state === "sending" ? words.sending(percent, strings.bytes(one.size)) : one.state === "failed" ? one.reason : words.states[one.state]}
      </span>
      {one.state === "sending" && <progress aria-label={words.progress(one.name)} max={Math.max(1, one.size)} value={one.sent} />}
      <button type="button" class="link" onClick={() => transfers.drop(one)}>
        {one.state === "sending" || one.state === "waiting" ? words.stop : words.hide}
      </button>
    </li>
  );
}

// --- files and their links ----------------------------------------------------------------------

function File({ file, links, run }: { file: StoredFile; links: Link[]; run: Run }) {
  const [sharing, setSharing] = useState(false);
  const [made, setMade] = useState<string | null>(null);
  const [sure, setSure] = useState(false);
  const id = encodeURIComponent(file.id);
  const ready = file.state === "ready";
  return (
    <li aria-label={file.name}>
      <div>
        <span class="name">{visible(file.path === "" ? file.name : `${file.path}/${file.name}`)}</span>{" "}
        {!ready && <span class="badge starting">{words.uploading}</span>}
        <p class="quiet">
          {[strings.bytes(file.size), strings.ago(Date.now() - file.created_at), file.verified && words.verified[file.verified]]
            .filter(Boolean)
            .join(" · ")}
        </p>
      </div>
      <div class="actions">
        {ready && (
          // A plain link: the daemon answers with the address at storage, which comes as an attachment.
          <a class="button" href={`/v1/files/${id}/download`}>
            {words.download}
          </a>
        )}
        {ready && (
          <button type="button" aria-expanded={sharing} onClick={() => setSharing(!sharing)}>
            {words.share}
          </button>
        )}
        {sure ? (
          <>
            <button type="button" class="danger" onClick={() => void run(async () => (await call("DELETE", `/v1/files/${id}`), words.deleted(file.name)))}>
              {words.deleteSure}
            </button>
            <button type="button" onClick={() => setSure(false)}>
              {strings.cancel}
            </button>
          </>
        ) : (
          <button type="button" onClick={() => setSure(true)}>
            {words.delete}
          </button>
        )}
      </div>
      {sharing && (
        <Share
          share={(terms) =>
            void run(async () => {
              setMade((await call<Link & { url: string }>("POST", `/v1/files/${id}/links`, terms)).url);
              setSharing(false);
              return "";
            })
          }
        />
      )}
      {made !== null && <Address url={made} />}
      {links.length > 0 && (
        <ul class="links" aria-label={words.linksOf(file.name)}>
          {links.map((link) => (
            <li key={link.id}>
              <span class="quiet">{termsOf(link)}</span>{" "}
              <button
                type="button"
                class="link"
                onClick={() =>
                  void run(async () => {
                    await call("DELETE", `/v1/links/${encodeURIComponent(link.id)}`);
                    setMade(null);
                    return words.revoked;
                  })
                }
              >
                {words.revoke}
              </button>
            </li>
          ))}
        </ul>
      )}
    </li>
  );
}

function termsOf(link: Link): string {
  return [
    link.max_downloads === null ? words.used(link.downloads) : words.usedOf(link.downloads, link.max_downloads),
    until(link.expires_at),
    link.password && words.withPassword,
  ]
    .filter(Boolean)
    .join(" · ");
}

function until(at: number | null): string {
  return at === null ? words.forever : words.until(new Date(at).toLocaleString());
}

/** What a link allows; the daemon's field names. */
interface Terms {
  expires_in_s?: number;
  max_downloads?: number;
  password?: string;
}

function Share({ share }: { share: (terms: Terms) => void }) {
  const [days, setDays] = useState("7");
  const [most, setMost] = useState("");
  const [password, setPassword] = useState("");
  return (
    <form
      class="fields"
      onSubmit={(event) => {
        event.preventDefault();
        share({
          ...(days !== "" && { expires_in_s: Number(days) * DAY_S }),
          ...(most !== "" && { max_downloads: Number(most) }),
          ...(password !== "" && { password }),
        });
      }}
    >
      <Days days={days} set={setDays} forever />
      <label>
        {words.most}
        <input type="number" min="1" step="1" value={most} onInput={(event) => setMost(event.currentTarget.value)} />
      </label>
      <label>
        {words.password}
        <input type="password" autocomplete="new-password" maxLength={200} value={password} onInput={(event) => setPassword(event.currentTarget.value)} />
      </label>
      <button type="submit" class="primary">
        {words.makeLink}
      </button>
    </form>
  );
}

function Days({ days, set, forever = false }: { days: string; set: (days: string) => void; forever?: boolean }) {
  return (
    <label>
      {words.expires}
      <select value={days} onChange={(event) => set(event.currentTarget.value)}>
        {["1", "7", "30"].map((count) => (
          <option key={count} value={count}>
            {words.inDays(Number(count))}
          </option>
        ))}
        {forever && <option value="">{words.never}</option>}
      </select>
    </label>
  );
}

/** The address of a link, which is told this once. */
function Address({ url }: { url: string }) {
  const [copied, setCopied] = useState(false);
  const box = useRef<HTMLInputElement>(null);
  useEffect(() => box.current?.select(), [url]);
  return (
    <div class="address">
      <input ref={box} readOnly aria-label={words.address} value={url} onFocus={(event) => event.currentTarget.select()} />
      {isSecureContext && (
        <button type="button" onClick={() => void navigator.clipboard.writeText(url).then(() => setCopied(true), () => {})}>
          {copied ? words.copied : words.copy}
        </button>
      )}
      <small>{words.once}</small>
    </div>
  );
}

// --- upload links -------------------------------------------------------------------------------

const MB = 1_000_000;

function UploadLinks() {
  const { value, error, again } = usePolled(() => call<{ items: UploadLink[] }>("GET", "/v1/upload-links?limit=500"), EVERY_MS, "");
  const [path, setPath] = useState("");
  const [most, setMost] = useState("1000");
  const [days, setDays] = useState("7");
  const [made, setMade] = useState<string | null>(null);
  const [told, setTold] = useState<string | null>(null);
  const run: Run = async (act) => {
    try {
      setTold(await act());
    } catch (refused) {
      setTold(said(refused));
    }
    again();
  };
  const alive = (value?.items ?? []).filter(isAlive);
  return (
    <section aria-label={words.uploadLinks}>
      <h2>{words.uploadLinks}</h2>
      <p class="quiet">{words.uploadLinksHint}</p>
      <form
        class="fields"
        onSubmit={(event) => {
          event.preventDefault();
          void run(async () => {
            const terms = { path, expires_in_s: Number(days) * DAY_S, max_bytes: Math.round(Number(most) * MB) };
            setMade((await call<UploadLink & { url: string }>("POST", "/v1/upload-links", terms)).url);
            return "";
          });
        }}
      >
        <label>
          {words.folder}
          <input value={path} size={20} onInput={(event) => setPath(event.currentTarget.value)} />
        </label>
        <label>
          {words.mostBytes}
          <input type="number" min="1" step="1" required value={most} onInput={(event) => setMost(event.currentTarget.value)} />
        </label>
        <Days days={days} set={setDays} />
        <button type="submit">{words.makeUploadLink}</button>
      </form>
      <p class="quiet" role="status">
        {told ?? (error !== null && said(error))}
      </p>
      {made !== null && <Address url={made} />}
      <ul class="links" aria-label={words.uploadLinks}>
        {alive.map((link) => (
          <li key={link.id}>
            <span class="quiet">
              {[words.into(visible(link.path)), words.room(strings.bytes(link.used_bytes), strings.bytes(link.max_bytes)), until(link.expires_at)].join(" · ")}
            </span>{" "}
            <button
              type="button"
              class="link"
              onClick={() =>
                void run(async () => {
                  await call("DELETE", `/v1/upload-links/${encodeURIComponent(link.id)}`);
                  setMade(null);
                  return words.revoked;
                })
              }
            >
              {words.revoke}
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}
