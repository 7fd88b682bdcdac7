import { useState } from "preact/hooks";
import { usePolled } from "../hooks";
import { call, said } from "../http";
import { More } from "../more";
import { oneLine } from "../rules/text";
import { strings } from "../strings";
import type { Token } from "../wire";

const EVERY_MS = 30_000;
const SCOPES = ["read", "sessions", "files", "jobs", "skills", "admin"] as const;
const LIFETIMES = [1, 7, 30, 90, 365];
const DAY_S = 24 * 3600;
const words = strings.tokens;

/** Who may come in, and as whom. A token itself is shown once, when it is made. */
export function TokensPage() {
  const [limit, setLimit] = useState(50);
  const [told, setTold] = useState<string | null>(null);
  const [made, setMade] = useState<(Token & { token: string }) | null>(null);
  const { value, error, again } = usePolled(
    () => call<{ items: Token[]; next: string | null }>("GET", `/v1/tokens?limit=${limit}`),
    EVERY_MS,
    String(limit),
  );
  const run = async (act: () => Promise<string>): Promise<void> => {
    try {
      setTold(await act());
    } catch (refused) {
      setTold(said(refused));
    }
    again();
  };
  return (
    <main class="page">
      <h1>{words.title}</h1>
      <New
        make={(spec) =>
          run(async () => {
            setMade(await call<Token & { token: string }>("POST", "/v1/tokens", spec));
            return "";
          })
        }
      />
      <p class="quiet" role="status">
        {told ?? (error !== null && said(error))}
      </p>
      {made !== null && <Once key={made.id} made={made} hide={() => setMade(null)} />}
      <ul class="things">
        {value?.items.map((token) => (
          <Row
            key={token.id}
            token={token}
            revoke={() =>
              run(async () => {
                await call("DELETE", `/v1/tokens/${encodeURIComponent(token.id)}`);
                if (made?.id === token.id) setMade(null);
                return words.revoked(token.name);
              })
            }
          />
        ))}
      </ul>
      <More page={value} limit={limit} show={setLimit} />
    </main>
  );
}

function Row({ token, revoke }: { token: Token; revoke: () => Promise<void> }) {
  const [sure, setSure] = useState(false);
  const ended = token.expires_at !== null && token.expires_at <= Date.now();
  return (
    <li aria-label={token.name}>
      <div>
        <span class="name">{oneLine(token.name, 120)}</span>
        <p class="quiet">
          {[
            words.of(token.owner),
            token.scopes.map((scope) => words.scopes[scope] ?? scope).join(", "),
            strings.ago(Date.now() - token.created_at),
            token.expires_at === null
              ? words.forever
              : (ended ? words.ended : words.until)(new Date(token.expires_at).toLocaleString()),
          ].join(" · ")}
        </p>
      </div>
      <div class="actions">
        {sure ? (
          <>
            <button type="button" class="danger" onClick={() => void revoke()}>
              {words.revokeSure}
            </button>
            <button type="button" onClick={() => setSure(false)}>
              {strings.cancel}
            </button>
          </>
        ) : (
          <button type="button" onClick={() => setSure(true)}>
            {words.revoke}
          </button>
        )}
      </div>
    </li>
  );
}

function New({ make }: { make: (spec: Record<string, unknown>) => Promise<void> }) {
  const [name, setName] = useState("");
  const [owner, setOwner] = useState("");
  const [account, setAccount] = useState("");
  const [days, setDays] = useState("30");
  const [scopes, setScopes] = useState<string[]>(["read", "sessions", "files"]);
  return (
    <form
      class="fields"
      aria-label={words.make}
      onSubmit={(event) => {
        event.preventDefault();
        void make({
          name: name.trim(),
          scopes,
          ...(owner.trim() !== "" && { owner: owner.trim() }),
          ...(account.trim() !== "" && { account: account.trim() }),
          ...(days !== "" && { expires_in_s: Number(days) * DAY_S }),
        }).then(() => setName(""));
      }}
    >
      <label>
        {words.name}
        <input required maxLength={200} value={name} onInput={(event) => setName(event.currentTarget.value)} />
      </label>
      <label>
        {words.owner}
        <input maxLength={64} value={owner} onInput={(event) => setOwner(event.currentTarget.value)} />
      </label>
      <label>
        {words.account}
        <input maxLength={64} value={account} onInput={(event) => setAccount(event.currentTarget.value)} />
      </label>
      <label>
        {words.lifetime}
        <select value={days} onChange={(event) => setDays(event.currentTarget.value)}>
          {LIFETIMES.map((count) => (
            <option key={count} value={String(count)}>
              {words.days(count)}
            </option>
          ))}
          <option value="">{words.forever}</option>
        </select>
      </label>
      <fieldset class="choice">
        <legend>{words.may}</legend>
        {SCOPES.map((scope) => (
          <label key={scope}>
            <input
              type="checkbox"
              checked={scopes.includes(scope)}
              onChange={(event) =>
                setScopes(event.currentTarget.checked ? [...scopes, scope] : scopes.filter((one) => one !== scope))
              }
            />
            {words.scopes[scope]}
          </label>
        ))}
      </fieldset>
      <button type="submit" class="primary" disabled={name.trim() === "" || scopes.length === 0}>
        {words.make}
      </button>
    </form>
  );
}

function Once({ made, hide }: { made: Token & { token: string }; hide: () => void }) {
  return (
    <section class="once" aria-label={words.once}>
      <p>{words.onceHint(made.name)}</p>
      <div class="search">
        <input
          readOnly
          aria-label={words.tokenItself}
          value={made.token}
          onFocus={(event) => event.currentTarget.select()}
        />
        {/* Only where the page came over TLS, or from this machine. */}
        {isSecureContext && (
          <button type="button" onClick={() => void navigator.clipboard.writeText(made.token).catch(() => {})}>
            {words.copy}
          </button>
        )}
        <button type="button" onClick={hide}>
          {words.hide}
        </button>
      </div>
    </section>
  );
}
