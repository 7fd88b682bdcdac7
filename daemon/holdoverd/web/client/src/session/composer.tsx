/** The prompt box. Enter sends where there is a keyboard; a draft is kept. */

import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { useChanges } from "../hooks";
import { strings } from "../strings";
import { draftOf } from "./draft";
import type { SessionStore } from "./store";

export function Composer({ store }: { store: SessionStore }) {
  const draft = draftOf(store.id);
  useChanges(draft);
  const box = useRef<HTMLTextAreaElement>(null);
  const state = store.session?.state;
  const working = state === "working" || state === "waiting" || state === "starting";
  useLayoutEffect(() => {
    const element = box.current;
    if (element === null) return;
    // By the object model, which the policy allows; never by a style attribute.
    element.style.height = "auto";
    element.style.height = `${Math.min(element.scrollHeight + 2, innerHeight * 0.4)}px`;
  });
  useEffect(() => {
    if (matchMedia("(pointer: fine)").matches) box.current?.focus();
  }, [store]);
  if (state === "ended") return null;
  const send = (): void => {
    if (draft.text.trim() === "") return;
    store.prompt(draft.text);
    draft.put("");
  };
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <textarea
        ref={box}
        rows={1}
        aria-label={strings.prompt}
        placeholder={strings.prompt}
        value={draft.text}
        onInput={(event) => draft.put(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Escape" && working) void store.interrupt().catch(() => {});
          const typed = event.key === "Enter" && !event.shiftKey && !event.isComposing;
          // On a phone Enter is the only way to a new line.
          if (typed && (event.ctrlKey || event.metaKey || matchMedia("(pointer: fine)").matches)) {
            event.preventDefault();
            send();
          }
        }}
      />
      {working && (
        <button type="button" class="stop" title={strings.interruptHint} onClick={() => void store.interrupt().catch(() => {})}>
          {strings.interrupt}
        </button>
      )}
      <button type="submit" class="primary" disabled={draft.text.trim() === ""}>
        {strings.send}
      </button>
    </form>
  );
}
