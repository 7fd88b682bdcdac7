import { useState } from "preact/hooks";
import { call, said } from "../http";
import { strings } from "../strings";

export function LoginPage({ trouble, done }: { trouble: string | null; done: () => void }) {
  const [token, setToken] = useState("");
  const [wrong, setWrong] = useState(trouble);
  const [busy, setBusy] = useState(false);
  const logIn = async (): Promise<void> => {
    setBusy(true);
    setWrong(null);
    try {
      await call("POST", "/login", { token: token.trim() });
      done();
    } catch (error) {
      setWrong(said(error));
      setBusy(false);
    }
  };
  return (
    <main class="page login">
      <h1>Holdover</h1>
      <form
        class="fields column"
        onSubmit={(event) => {
          event.preventDefault();
          void logIn();
        }}
      >
        <label>
          {strings.token}
          <input
            type="password"
            autoComplete="current-password"
            required
            value={token}
            onInput={(event) => setToken(event.currentTarget.value)}
          />
        </label>
        {wrong !== null && (
          <p class="bad" role="alert">
            {wrong}
          </p>
        )}
        <button type="submit" class="primary" disabled={busy || token.trim() === ""}>
          {strings.logIn}
        </button>
      </form>
      <p class="note">{strings.tokenHint}</p>
    </main>
  );
}
