import { useEffect, useState } from "preact/hooks";
import { call, said } from "../http";
import { pushShared, pushState, turnOff, turnOn, type PushState } from "../push";
import { strings } from "../strings";

interface Code {
  url: string;
  expires_at: number;
}

export function PhonePage() {
  const [code, setCode] = useState<Code | null>(null);
  const [cells, setCells] = useState<boolean[][]>([]);
  const [trouble, setTrouble] = useState<string | null>(null);
  const make = async (): Promise<void> => {
    setTrouble(null);
    try {
      const made = await call<Code>("POST", "/v1/login-codes", {});
      const { encode } = await import("uqr");
      setCells(encode(made.url, { ecc: "M", border: 2 }).data);
      setCode(made);
    } catch (error) {
      setTrouble(said(error));
    }
  };
  useEffect(() => void make(), []);
  const size = cells.length;
  const path = cells
    .flatMap((row, y) => row.map((dark, x) => (dark ? `M${x} ${y}h1v1h-1z` : "")))
    .join("");
  return (
    <main class="page">
      <h1>{strings.phoneTitle}</h1>
      <p>{strings.phoneHint}</p>
      {trouble !== null && (
        <p class="bad" role="alert">
          {trouble}
        </p>
      )}
      {code !== null && (
        <>
          <svg class="qr" viewBox={`0 0 ${size} ${size}`} role="img" aria-label={strings.qr} shape-rendering="crispEdges">
            <rect width={size} height={size} fill="#fff" />
            <path d={path} fill="#000" />
          </svg>
          <p>
            <a href={code.url}>{strings.loginLink}</a>
          </p>
        </>
      )}
      <button type="button" onClick={() => void make()}>
        {strings.another}
      </button>
      <Notifications />
    </main>
  );
}

/** Opt in and out, for this browser on this device. */
function Notifications() {
  const [state, setState] = useState<PushState | null>(null);
  const [trouble, setTrouble] = useState<string | null>(null);
  const [shared, setShared] = useState(pushShared);
  useEffect(() => void pushState().then(setState), []);
  const run = async (turn: () => Promise<PushState>): Promise<void> => {
    setTrouble(null);
    try {
      setState(await turn());
    } catch (error) {
      setTrouble(said(error));
    }
  };
  const words = strings.notifications;
  return (
    <section aria-label={words.title}>
      <h2>{words.title}</h2>
      <p>{words.hint}</p>
      <p class="note" role="status">
        {state === null ? "" : words.states[state]}
      </p>
      {trouble !== null && (
        <p class="bad" role="alert">
          {trouble}
        </p>
      )}
      {(state === "on" || state === "off") && (
        <>
          <label class="check">
            <input
              type="checkbox"
              checked={shared}
              onChange={(event) => {
                const wanted = event.currentTarget.checked;
                setShared(wanted);
                if (state === "on") void run(() => turnOn(wanted));
              }}
            />
            {words.shared}
          </label>
          <button type="button" onClick={() => void run(state === "on" ? turnOff : () => turnOn(shared))}>
            {state === "on" ? words.off : words.on}
          </button>
        </>
      )}
    </section>
  );
}
