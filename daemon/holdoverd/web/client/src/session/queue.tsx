/** The prompts that wait for their turn: while an agent talks, their messages are far up the list. */

import { oneLine } from "../rules/text";
import { textOf } from "../rules/rows";
import { strings } from "../strings";
import type { SessionStore } from "./store";

export function Queue({ store }: { store: SessionStore }) {
  const queued = store.session?.queued ?? [];
  if (queued.length === 0) return null;
  // What is on no page that is here is known by its place alone.
  const texts = new Map<string, string>();
  for (const messages of store.conversation.main.pages.values()) {
    for (const message of messages) {
      if (message.client_id !== null && queued.includes(message.client_id)) texts.set(message.client_id, textOf(message));
    }
  }
  return (
    <section class="queue" aria-label={strings.queue(queued.length)}>
      <p class="note">
        {strings.queue(queued.length)}{" "}
        {queued.length > 1 && (
          <button type="button" class="link" onClick={() => void store.interrupt(true).catch(() => {})}>
            {strings.withdrawAll}
          </button>
        )}
      </p>
      <ul>
        {queued.map((id) => {
          const text = oneLine(texts.get(id) ?? "…", 200);
          return (
            <li key={id}>
              <span>{text}</span>
              <button
                type="button"
                class="link"
                aria-label={strings.withdraw(text)}
                onClick={() => void store.cancelPrompt(id).catch(() => {})}
              >
                {strings.cancelPrompt}
              </button>
            </li>
          );
        })}
      </ul>
    </section>
  );
}
