import { useState } from "preact/hooks";
import { call, newId, said } from "../http";
import { go } from "../router";
import { oneLine } from "../rules/text";
import { strings } from "../strings";
import type { Json, Session } from "../wire";

const FIELDS = ["title", "cwd", "agent", "model"] as const;

export function NewSessionPage() {
  const [text, setText] = useState("");
  const [fields, setFields] = useState<Record<string, string>>({});
  const [trouble, setTrouble] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const start = async (): Promise<void> => {
    setBusy(true);
    setTrouble(null);
    const body: Json = {};
    for (const name of FIELDS) if (fields[name]?.trim()) body[name] = fields[name].trim();
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
        {FIELDS.map((name) => (
          <label key={name}>
            {strings.newFields[name]}
            <input
              type="text"
              autoComplete="off"
              value={fields[name] ?? ""}
              onInput={(event) => setFields({ ...fields, [name]: event.currentTarget.value })}
            />
          </label>
        ))}
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
