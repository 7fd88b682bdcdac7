/** What is going on at the end of the list: prompts on their way, blocks being written, the state. */

import { GrowingMarkdown } from "../markdown";
import { oneLine, visible } from "../rules/text";
import { strings } from "../strings";
import { isObject } from "../wire";
import { draftOf } from "./draft";
import type { SessionStore } from "./store";

export function Live({ store }: { store: SessionStore }) {
  const blocks = [...store.conversation.main.blocks.values()].sort((a, b) => a.index - b.index);
  return (
    <div data-page="live" class="live">
      {blocks.map((block) => (
        <div key={`b${block.index}`} class={`row ${block.kind}`} data-row={`live:${block.index}`}>
          {block.kind === "text" ? (
            <GrowingMarkdown text={block.text} />
          ) : (
            <p class="summary-line">
              <span class="what">{block.kind === "thinking" ? strings.thinking : oneLine(block.name, 60)}</span>{" "}
              <span class="detail">{oneLine(block.text.slice(-160), 160)}</span>
            </p>
          )}
        </div>
      ))}
      {store.outgoing.map((prompt) => (
        <div key={prompt.id} class="row prompt" data-row={`out:${prompt.id}`}>
          <div class="bubble">
            <p class="plain">{visible(prompt.text)}</p>
            {prompt.files !== undefined && prompt.files.length > 0 && (
              <p class="note">{visible(strings.withFiles(prompt.files.map(({ name }) => name)))}</p>
            )}
            {prompt.refused === null ? (
              <p class="note">{prompt.taken ? strings.taken : strings.sending}</p>
            ) : (
              <p class="note bad">
                {prompt.refused}{" "}
                <button
                  type="button"
                  class="link"
                  onClick={() => {
                    const back = store.takeBack(prompt.id);
                    draftOf(store.id).put(back?.text ?? "");
                    draftOf(store.id).putFiles(back?.files ?? []);
                  }}
                >
                  {strings.takeBack}
                </button>
              </p>
            )}
          </div>
        </div>
      ))}
      <Activity store={store} />
    </div>
  );
}

/** One line on what the agent is at. */
function Activity({ store }: { store: SessionStore }) {
  const { session, statuses } = store.conversation;
  if (session === null) return <p class="activity">{strings.opening}</p>;
  const retry = statuses.get("api_retry");
  const limit = statuses.get("rate_limit_event")?.rate_limit_info;
  const status = statuses.get("status");
  let text = "";
  if (session.state === "working") {
    text = strings.working;
    if (status?.status === "compacting") text = strings.compacting;
    if (retry !== undefined && typeof retry.attempt === "number") {
      text = strings.retrying(retry.attempt, Number(retry.max_retries ?? 0));
    }
  } else if (session.state === "starting") text = strings.starting;
  else if (session.state === "dormant") text = strings.dormant;
  else if (session.state === "ended") text = strings.ended;
  else if (session.state === "failed") text = session.error?.message ?? strings.failed;
  const limited = isObject(limit) && limit.status !== "allowed" ? strings.rateLimited(limit) : "";
  return (
    <>
      {limited && <p class="activity warn">{limited}</p>}
      {text && (
        <p class={`activity ${session.state}`}>
          <span class="dot" aria-hidden="true" />
          {text}
        </p>
      )}
    </>
  );
}
