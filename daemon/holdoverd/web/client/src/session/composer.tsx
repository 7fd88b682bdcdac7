/** The prompt box. Enter sends where there is a keyboard; a draft is kept. */

import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { useChanges } from "../hooks";
import { visible } from "../rules/text";
import { strings } from "../strings";
import { draftOf } from "./draft";
import type { SessionStore } from "./store";

export function Composer({ store }: { store: SessionStore }) {
  const draft = draftOf(store.id);
  useChanges(draft);
  const box = useRef<HTMLTextAreaElement>(null);
  const pick = useRef<HTMLInputElement>(null);
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
    if (!draft.ready) return;
    store.prompt(draft.text, draft.takeFiles());
    draft.put("");
  };
  return (
    <>
      {draft.files.length > 0 && (
        <ul class="attached" aria-label={strings.attached}>
          {draft.files.map((one) => (
            <li key={one.key}>
              <span class="name">{visible(one.name)}</span>
              {one.id === null && (
                <span class={one.trouble === null ? "quiet" : "bad"}>
                  {one.trouble ?? strings.sendingFile(one.size === 0 ? 0 : Math.floor((100 * one.sent) / one.size))}
                </span>
              )}
              <button type="button" class="link" aria-label={strings.detach(one.name)} onClick={() => draft.detach(one)}>
                ×
              </button>
            </li>
          ))}
        </ul>
      )}
      <form
        class="composer"
        onSubmit={(event) => {
          event.preventDefault();
          send();
        }}
      >
        <input
          ref={pick}
          type="file"
          multiple
          hidden
          aria-hidden="true"
          onChange={(event) => {
            draft.attach(event.currentTarget.files ?? []);
            event.currentTarget.value = "";
          }}
        />
        <button type="button" class="attach" aria-label={strings.attach} title={strings.attach} onClick={() => pick.current?.click()}>
          <svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" aria-hidden="true">
            <path d="M20 11.5 12 19.5a5 5 0 0 1-7-7l8.5-8.5a3.4 3.4 0 0 1 4.8 4.8L9.8 17.3a1.7 1.7 0 0 1-2.4-2.4l7.8-7.8" />
          </svg>
        </button>
        <textarea
          ref={box}
          rows={1}
          aria-label={strings.prompt}
          placeholder={strings.prompt}
          value={draft.text}
          onInput={(event) => draft.put(event.currentTarget.value)}
          onPaste={(event) => {
            const files = event.clipboardData?.files;
            if (files === undefined || files.length === 0) return;
            event.preventDefault();
            draft.attach(files);
          }}
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
        <button type="submit" class="primary" disabled={!draft.ready}>
          {strings.send}
        </button>
      </form>
    </>
  );
}
