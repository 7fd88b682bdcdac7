/** A file that a tool touched, offered: copied from the workspace to storage, then downloaded. */

import { useState } from "preact/hooks";
import { call, said } from "../http";
import { strings } from "../strings";
import type { StoredFile } from "../wire";
import type { SessionStore } from "./store";

const LOOK_EVERY_MS = 500;

type State = { at: "idle" | "copying" } | { at: "ready"; id: string } | { at: "failed"; why: string };

export function TakeOut({ store, path }: { store: SessionStore; path: string }) {
  const [state, setState] = useState<State>({ at: "idle" });
  const cwd = store.session?.cwd ?? null;
  const within = beneath(cwd, path);
  if (within === null) return null;
  const take = async (): Promise<void> => {
    setState({ at: "copying" });
    try {
      const id = await store.takeOut(within);
      for (;;) {
        const file = await call<StoredFile>("GET", `/v1/files/${encodeURIComponent(id)}`);
        if (file.state === "ready") return setState({ at: "ready", id });
        if (file.state === "deleted") return setState({ at: "failed", why: strings.notTakenOut });
        await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
      }
    } catch (error) {
      setState({ at: "failed", why: said(error) });
    }
  };
  return (
    <p class="note">
      {state.at === "ready" ? (
        <a class="button" href={`/v1/files/${encodeURIComponent(state.id)}/download`}>
          {strings.takenOut}
        </a>
      ) : state.at === "copying" ? (
        strings.takingOut
      ) : (
        <button type="button" class="link" title={strings.takeOutHint} onClick={() => void take()}>
          {strings.takeOut}
        </button>
      )}{" "}
      {state.at === "failed" && (
        <span class="bad" role="alert">
          {state.why}
        </span>
      )}
    </p>
  );
}

/** `path` relative to the session's folder; null where it lies elsewhere. */
function beneath(cwd: string | null, path: string): string | null {
  if (!path.startsWith("/")) return path.split("/").includes("..") ? null : path;
  const base = cwd === null ? null : `${cwd.replace(/\/+$/, "")}/`;
  return base !== null && path.startsWith(base) && path.length > base.length ? path.slice(base.length) : null;
}
