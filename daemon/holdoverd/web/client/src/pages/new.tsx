import { useEffect, useState } from "preact/hooks";
import { call, newId, said } from "../http";
import { go } from "../router";
import { oneLine } from "../rules/text";
import { strings } from "../strings";
import { MODES, type Json, type Session } from "../wire";

const FIELDS = ["title", "agent", "model"] as const;
const PLACES = ["workspace", "cwd", "repo"] as const;
type Place = (typeof PLACES)[number];

/** What to offer: the values that the latest sessions have. */
async function usedBefore(): Promise<Record<string, string[]>> {
  const { items } = await call<{ items: Session[] }>("GET", "/v1/sessions?limit=100");
  const different = (values: (string | null)[]): string[] => [...new Set(values.filter((value) => value !== null))];
  return {
    agent: different(items.map(({ agent }) => agent)),
    model: different(items.map(({ model }) => model)),
    cwd: different(items.map(({ cwd }) => cwd)).slice(0, 20),
  };
}

export function NewSessionPage() {
  const [text, setText] = useState("");
  const [fields, setFields] = useState<Record<string, string>>({});
  const [place, setPlace] = useState<Place>("workspace");
  const [mode, setMode] = useState("");
  const [share, setShare] = useState("");
  const [used, setUsed] = useState<Record<string, string[]>>({});
  useEffect(() => void usedBefore().then(setUsed, () => {}), []);
  const [trouble, setTrouble] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const start = async (): Promise<void> => {
    setBusy(true);
    setTrouble(null);
    const body: Json = {};
    const filled = (name: string): string | undefined => fields[name]?.trim() || undefined;
    for (const name of FIELDS) if (filled(name)) body[name] = filled(name);
    if (place === "cwd") body.cwd = filled("cwd");
    if (place === "repo") body.repo = { url: filled("url"), ref: filled("ref") };
    if (mode !== "") body.permission_mode = mode;
    if (share !== "") body.share = share;
    if (text.trim() !== "") {
      body.prompt = { id: newId(), text };
      body.title ??= oneLine(text.trim().split("\n")[0]!, 60);
    }
    try {
      const session = await call<Session>("POST", "/v1/sessions", body);
      go(`/session/${encodeURIComponent(session.id)}`);
    } catch (error) {
      setTrouble(said(error));
      setBusy(false);
    }
  };
  const field = (name: keyof typeof strings.newFields, required = false) => (
    <label key={name}>
      {strings.newFields[name]}
      <input
        type="text"
        autoComplete="off"
        required={required}
        list={used[name]?.length ? `used-${name}` : undefined}
        value={fields[name] ?? ""}
        onInput={(event) => setFields({ ...fields, [name]: event.currentTarget.value })}
      />
      {used[name]?.length ? (
        <datalist id={`used-${name}`}>
          {used[name].map((value) => (
            <option key={value} value={value} />
          ))}
        </datalist>
      ) : null}
    </label>
  );
  return (
    <main class="page">
      <h1>{strings.newSession}</h1>
      <form
        class="fields column"
        onSubmit={(event) => {
          event.preventDefault();
          void start();
        }}
      >
        <label>
          {strings.firstPrompt}
          <textarea rows={4} value={text} onInput={(event) => setText(event.currentTarget.value)} />
        </label>
        <fieldset class="choice">
          <legend>{strings.place}</legend>
          {PLACES.map((name) => (
            <label key={name}>
              <input type="radio" name="place" checked={place === name} onChange={() => setPlace(name)} />
              {strings.places[name]}
            </label>
          ))}
        </fieldset>
        {place === "cwd" && field("cwd", true)}
        {place === "repo" && field("url", true)}
        {place === "repo" && field("ref")}
        {FIELDS.map((name) => field(name))}
        <label>
          {strings.mode}
          <select value={mode} onChange={(event) => setMode(event.currentTarget.value)}>
            <option value="">{strings.modeDefault}</option>
            {MODES.map((name) => (
              <option key={name} value={name}>
                {strings.modes[name]}
              </option>
            ))}
          </select>
        </label>
        <label>
          {strings.share}
          <select value={share} onChange={(event) => setShare(event.currentTarget.value)}>
            <option value="">{strings.shareNobody}</option>
            <option value="read">{strings.shareRead}</option>
            <option value="write">{strings.shareWrite}</option>
          </select>
        </label>
        {trouble !== null && (
          <p class="bad" role="alert">
            {trouble}
          </p>
        )}
        <div class="actions">
          <button type="submit" class="primary" disabled={busy}>
            {busy ? strings.startingSession : strings.start}
          </button>
          <a href="#/">{strings.cancel}</a>
        </div>
      </form>
    </main>
  );
}
