import { useEffect, useState } from "preact/hooks";
import { call, said } from "../http";
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
    </main>
  );
}
