import { useState } from "preact/hooks";
import { usePolled } from "../hooks";
import { call, said, Unreachable } from "../http";
import { oneLine } from "../rules/text";
import { strings } from "../strings";
import type { Instance } from "../wire";

const EVERY_MS = 2000;
const words = strings.instances;

/** What runs, of which release; during a deploy two of them, and what the older one still holds. */
export function InstancesPage() {
  const [told, setTold] = useState<string | null>(null);
  const { value, error, again } = usePolled(
    () => call<{ items: Instance[] }>("GET", "/v1/admin/instances"),
    EVERY_MS,
    "",
  );
  const items = value?.items ?? [];
  const handOver = async ({ generation }: Instance): Promise<void> => {
    try {
      await call("POST", "/v1/admin/drain", { generation, migrate: true });
      setTold(words.asked(generation));
    } catch (refused) {
      setTold(said(refused));
    }
    again();
  };
  const trouble = error === null ? "" : error instanceof Unreachable ? strings.lost : said(error);
  return (
    <main class="page">
      <h1>{words.title}</h1>
      <p class="note">{items.length > 1 ? words.several : words.hint}</p>
      <p class="quiet" role="status">
        {trouble || told}
      </p>
      <ul class="things">
        {items.map((one) => (
          <li key={`${one.host}/${one.generation}`} aria-label={words.generation(one.generation)}>
            <div>
              <span class="name">{words.generation(one.generation)}</span>{" "}
              <span class={`badge ${one.state === "serving" ? "working" : ""}`}>{words.states[one.state] ?? one.state}</span>
              <p class="quiet">
                {[
                  words.release(oneLine(one.release ?? "", 60)),
                  oneLine(one.host ?? "", 60),
                  words.sessions(one.sessions ?? 0),
                  words.connections(one.connections ?? 0),
                  one.memory_bytes ? strings.bytes(one.memory_bytes) : "",
                  one.since_at ? words.since(new Date(one.since_at).toLocaleString()) : "",
                ]
                  .filter(Boolean)
                  .join(" · ")}
              </p>
            </div>
            {one.state === "draining" && (
              <div class="actions">
                <button type="button" onClick={() => void handOver(one)}>
                  {words.handOver}
                </button>
              </div>
            )}
          </li>
        ))}
      </ul>
    </main>
  );
}
