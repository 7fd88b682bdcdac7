/** Where we are, in the address's fragment: the daemon serves one page. */

import { useEffect, useState } from "preact/hooks";

/** `#/session/ID` as `["session", "ID"]`; the front page is `[]`. */
export function parse(hash: string): string[] {
  const path = hash.startsWith("#/") ? hash.slice(2) : "";
  return path.split("/").filter(Boolean).map(decode);
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export function go(path: string): void {
  location.hash = path;
}

export function useRoute(): string[] {
  const [hash, setHash] = useState(location.hash);
  useEffect(() => {
    const changed = (): void => setHash(location.hash);
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return parse(hash);
}
