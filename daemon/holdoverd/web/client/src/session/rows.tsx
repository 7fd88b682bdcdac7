/** One row of a conversation. What an agent says is text here, never markup of ours. */

import { memo } from "preact/compat";
import { useState } from "preact/hooks";
import { call, said } from "../http";
import { Markdown, Plain } from "../markdown";
import { diffLines } from "../rules/diff";
import { requestOf, textOf, type Row } from "../rules/rows";
import { oneLine, terminal, visible } from "../rules/text";
import { strings } from "../strings";
import { isObject, type Json } from "../wire";
import { Fold } from "./folds";
import { SubAgent } from "./subagent";
import { TakeOut } from "./takeout";
import type { SessionStore } from "./store";

interface Props {
  row: Row;
  store: SessionStore;
}

export const RowView = memo(
  function RowView({ row, store }: Props) {
    return (
      <div class={`row ${row.kind}`} data-row={row.key}>
        <Shown row={row} store={store} />
      </div>
    );
  },
  // A row is another object when it changed; a queued prompt's chip looks at the session itself.
  (before, after) => before.row === after.row && before.store === after.store && before.row.kind !== "prompt",
);

function Shown({ row, store }: Props) {
  const { message, part } = row;
  switch (row.kind) {
    case "prompt":
      return <Prompt row={row} store={store} />;
    case "text":
      return typeof part.text === "string" ? (
        <Markdown text={part.text} />
      ) : (
        <Fold id={row.key} summary={<Line what={String(part.type)} detail="" />}>
          {() => <Raw value={part} />}
        </Fold>
      );
    case "thinking": {
      const text = String(part.thinking ?? "");
      return (
        <Fold id={row.key} summary={<Line what={strings.thought} detail={text} />}>
          {() => <Markdown text={text} />}
        </Fold>
      );
    }
    case "tool":
      return <Tool row={row} store={store} />;
    case "tool_result":
      return (
        <Fold
          id={row.key}
          summary={<Line what={strings.toolResult} detail={plainOf(part.content)} bad={part.is_error === true} />}
        >
          {() => <Output content={part.content} />}
        </Fold>
      );
    case "permission":
      return <Asked row={row} />;
    case "answer":
      return <p class="summary-line">{answerLine(part)}</p>;
    case "result":
      return <p class={`summary-line ${part.is_error === true ? "bad" : ""}`}>{resultLine(part)}</p>;
    case "notice":
      return <p class="summary-line warn">{oneLine(String(part.text ?? part.code ?? ""), 400)}</p>;
    case "truncated":
      return <Truncated row={row} store={store} />;
    default: {
      const name = String(part.subtype ?? part.type ?? message.kind);
      const text = [part.content, part.message, part.summary].find((value) => typeof value === "string") ?? textOf(message);
      return (
        <Fold id={row.key} summary={<Line what={name.replaceAll("_", " ")} detail={String(text)} />}>
          {() => <Raw value={part} />}
        </Fold>
      );
    }
  }
}

/** A summary on one line: what it is, and what of it. */
function Line(props: { what: string; detail: string; bad?: boolean; state?: string }) {
  return (
    <>
      <span class={`what ${props.bad ? "bad" : ""}`}>{oneLine(props.what, 80)}</span>
      <span class="detail">{oneLine(props.detail, 200)}</span>
      {props.state && <span class="state">{props.state}</span>}
    </>
  );
}

function Prompt({ row, store }: Props) {
  const { message } = row;
  const id = message.client_id;
  const queued = id !== null && (store.session?.queued.includes(id) ?? false);
  const inner = isObject(message.body.message) ? message.body.message.content : null;
  const images = Array.isArray(inner) ? inner.filter(isObject).filter((part) => part.type === "image") : [];
  const text = textOf(message);
  return (
    <div class="bubble">
      {text.length > 2000 ? <Plain text={text} /> : <p class="plain">{visible(text)}</p>}
      {images.map((image, at) => (
        <Picture key={at} part={image} />
      ))}
      {queued && (
        <p class="note">
          {strings.queued}{" "}
          <button type="button" class="link" onClick={() => void store.cancelPrompt(id!).catch(() => {})}>
            {strings.cancelPrompt}
          </button>
        </p>
      )}
    </div>
  );
}

function Tool({ row, store }: Props) {
  const { part, outcome } = row;
  const name = String(part.name ?? "");
  const input = isObject(part.input) ? part.input : {};
  const failed = outcome?.part.is_error === true;
  const state = outcome === null ? "" : failed ? strings.toolFailed : strings.toolDone;
  return (
    <Fold
      id={row.key}
      class={failed ? "failed" : ""}
      summary={<Line what={name} detail={argumentOf(name, input)} bad={failed} state={state} />}
    >
      {() => (
        <>
          <Input name={name} input={input} />
          <SubAgent store={store} thread={String(part.id)} />
          {outcome !== null && <Output content={outcome.part.content} />}
          {outcome !== null && !failed && typeof input.file_path === "string" && (
            <TakeOut store={store} path={input.file_path} />
          )}
        </>
      )}
    </Fold>
  );
}

/** What of a tool's input says most on one line. */
export function argumentOf(name: string, input: Json): string {
  for (const key of ["command", "file_path", "pattern", "path", "url", "query", "description", "prompt", "skill"]) {
    if (typeof input[key] === "string") return input[key];
  }
  if (name === "AskUserQuestion" && Array.isArray(input.questions)) {
    return input.questions.filter(isObject).map(({ question }) => String(question)).join(" · ");
  }
  if (typeof input.plan === "string") return input.plan;
  const todos = todosOf(input);
  if (todos !== null) {
    const now = todos.find(({ status }) => status === "in_progress");
    const done = todos.filter(({ status }) => status === "completed").length;
    return strings.todosDone(done, todos.length) + (now === undefined ? "" : ` · ${String(now.content)}`);
  }
  return Object.keys(input).length === 0 ? "" : JSON.stringify(input).slice(0, 400);
}

function todosOf(input: Json): Json[] | null {
  return Array.isArray(input.todos) && input.todos.every(isObject) ? input.todos : null;
}

/** A tool's input as what it is: a command, a change of a file, a plan, a list of tasks, else its fields. */
export function Input({ name, input }: { name: string; input: Json }) {
  if (typeof input.command === "string") return <Plain class="terminal" text={`$ ${input.command}`} />;
  if (typeof input.old_string === "string" && typeof input.new_string === "string") {
    return <Diff path={input.file_path} changes={[[input.old_string, input.new_string]]} />;
  }
  if (Array.isArray(input.edits)) {
    const changes = input.edits
      .filter(isObject)
      .map((edit): [string, string] => [String(edit.old_string ?? ""), String(edit.new_string ?? "")]);
    return <Diff path={input.file_path} changes={changes} />;
  }
  if (typeof input.content === "string" && typeof input.file_path === "string") {
    return <Diff path={input.file_path} changes={[["", input.content]]} />;
  }
  if (name === "ExitPlanMode" && typeof input.plan === "string") return <Markdown text={input.plan} />;
  const todos = todosOf(input);
  if (todos !== null) return <Todos todos={todos} />;
  return Object.keys(input).length === 0 ? null : <Fields input={input} />;
}

function Todos({ todos }: { todos: Json[] }) {
  return (
    <ul class="todos">
      {todos.slice(0, MAX_FIELDS).map((todo, at) => {
        const status = String(todo.status);
        return (
          <li key={at} class={status === "completed" ? "done" : status === "in_progress" ? "now" : ""}>
            <span role="img" aria-label={strings.todoStates[status] ?? status}>
              {status === "completed" ? "✓" : status === "in_progress" ? "▸" : "○"}
            </span>{" "}
            {oneLine(String(todo.content ?? ""), 400)}
          </li>
        );
      })}
    </ul>
  );
}

const MAX_FIELDS = 100;

/** An input of no kind known here: field by field, what is text as text. */
function Fields({ input }: { input: Json }) {
  return (
    <dl class="input">
      {Object.entries(input)
        .slice(0, MAX_FIELDS)
        .map(([name, value]) => {
          const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
          return (
            <div key={name}>
              <dt>{oneLine(name, 60)}</dt>
              <dd>{text.length > 300 || text.includes("\n") ? <Plain text={text} /> : visible(text)}</dd>
            </div>
          );
        })}
    </dl>
  );
}

const MAX_DIFF_LINES = 2000;
const SIGN_CLASSES = { "+": "added", "-": "removed", "…": "left-out", " ": "" };

function Diff({ path, changes }: { path: unknown; changes: [string, string][] }) {
  return (
    <div class="diff">
      {typeof path === "string" && <p class="path">{oneLine(path, 400)}</p>}
      <pre class="block" tabIndex={0}>
        {changes.map(([before, after], at) => (
          <span key={at} class="hunk">
            {diffLines(before, after)
              .slice(0, MAX_DIFF_LINES)
              .map((line, number) => (
                <span key={number} class={SIGN_CLASSES[line.sign]}>
                  {`${line.sign} ${visible(line.text.slice(0, 5000))}\n`}
                </span>
              ))}
          </span>
        ))}
      </pre>
    </div>
  );
}

function Output({ content }: { content: unknown }) {
  const images = Array.isArray(content) ? content.filter(isObject).filter((part) => part.type === "image") : [];
  const text = plainOf(content);
  return (
    <>
      {text !== "" && <Plain class="terminal" text={terminal(text)} />}
      {images.map((image, at) => (
        <Picture key={at} part={image} />
      ))}
    </>
  );
}

/** The words of a tool's result. */
function plainOf(content: unknown): string {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return content === undefined || content === null ? "" : JSON.stringify(content);
  return content
    .filter(isObject)
    .map((part) => (typeof part.text === "string" ? part.text : part.type === "image" ? "" : `(${String(part.type)})`))
    .join("\n");
}

const PICTURES = /^image\/(?:png|jpeg|gif|webp)$/;

function Picture({ part }: { part: Json }) {
  const source = isObject(part.source) ? part.source : {};
  const type = String(source.media_type ?? "");
  if (source.type !== "base64" || !PICTURES.test(type) || typeof source.data !== "string") {
    return <p class="note">{strings.noPicture}</p>;
  }
  return <img class="picture" alt={strings.picture} src={`data:${type};base64,${source.data}`} />;
}

function Raw({ value }: { value: unknown }) {
  return <Plain text={JSON.stringify(value, null, 2)} />;
}

function Asked({ row }: { row: Row }) {
  const request = requestOf(row.message);
  const input = isObject(request.input) ? request.input : {};
  const name = String(request.tool_name ?? "");
  return (
    <p class="summary-line">
      <span class="what">
        {name === "AskUserQuestion" ? strings.question : name === "ExitPlanMode" ? strings.plan : strings.asked(oneLine(name, 60))}
      </span>{" "}
      <span class="detail">{oneLine(argumentOf(name, input), 160)}</span>{" "}
      {row.outcome !== null && <span class="state">{answerLine(row.outcome.part)}</span>}
    </p>
  );
}

function answerLine(body: Json): string {
  const by = typeof body.answered_by === "string" ? body.answered_by : null;
  const message = typeof body.message === "string" && body.message !== "" ? `: ${body.message}` : "";
  return oneLine(strings.outcome(String(body.outcome), by) + message, 300);
}

function resultLine(body: Json): string {
  const parts: string[] = [];
  if (body.is_error === true || (body.subtype !== undefined && body.subtype !== "success")) {
    const why = Array.isArray(body.errors) ? body.errors.join(", ") : body.result;
    parts.push(strings.turnFailed(String(body.terminal_reason ?? body.subtype ?? "")));
    if (typeof why === "string" && why !== body.terminal_reason) parts.push(why);
  } else parts.push(strings.turnDone);
  if (typeof body.duration_ms === "number") parts.push(strings.seconds(body.duration_ms / 1000));
  return oneLine(parts.join(" · "), 400);
}

function Truncated({ row, store }: Props) {
  const [whole, setWhole] = useState<string | null>(null);
  const { message, part } = row;
  const size = Number(part.size ?? 0);
  const show = async (): Promise<void> => {
    try {
      const body = await call<Json>("GET", `${store.path}/messages/${message.seq}/body`);
      const text = textOf({ ...message, body });
      setWhole(text === "" ? JSON.stringify(body, null, 2) : text);
    } catch (error) {
      setWhole(said(error));
    }
  };
  return (
    <Fold
      id={row.key}
      summary={<Line what={strings.large(strings.bytes(size))} detail={String(part.preview ?? "").slice(0, 200)} />}
    >
      {() =>
        whole === null ? (
          <>
            <Plain text={String(part.preview ?? "")} />
            <button type="button" onClick={() => void show()}>
              {strings.showWhole(strings.bytes(size))}
            </button>
          </>
        ) : (
          <Plain text={whole} />
        )
      }
    </Fold>
  );
}
