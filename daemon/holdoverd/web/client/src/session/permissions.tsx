/** All open permissions, above the prompt: allow, deny with a reason, remember, change the input. */

import type { TargetedEvent } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Markdown } from "../markdown";
import { oneLine, visible } from "../rules/text";
import { strings } from "../strings";
import { isObject, type Json, type Permission } from "../wire";
import { Input } from "./rows";
import type { SessionStore } from "./store";

/** `asked`: the one that a notification led to. */
export function Permissions({ store, asked }: { store: SessionStore; asked: string | null }) {
  const pending = store.session?.pending ?? [];
  const met = useRef(false);
  met.current ||= pending.some(({ request_id }) => request_id === asked);
  const late = asked !== null && !met.current && store.connection === "live";
  if (pending.length === 0) return late ? <p class="note" role="status">{strings.answered}</p> : null;
  return (
    <section class="permissions" aria-label={strings.permissions}>
      {late && <p class="note" role="status">{strings.answered}</p>}
      {pending.map((permission) => (
        <Asking
          key={permission.request_id}
          permission={permission}
          store={store}
          meant={permission.request_id === asked}
        />
      ))}
    </section>
  );
}

function Asking({ permission, store, meant }: { permission: Permission; store: SessionStore; meant: boolean }) {
  const [busy, setBusy] = useState(false);
  const element = useRef<HTMLFieldSetElement>(null);
  useEffect(() => {
    if (!meant) return;
    element.current?.scrollIntoView({ block: "nearest" });
    element.current?.focus({ preventScroll: true });
  }, [meant]);
  const answer = (fields: Json): void => {
    setBusy(true);
    // Answered by somebody else meanwhile: the session's levels say so, and this goes.
    store.answer({ request_id: permission.request_id, ...fields }).catch(() => setBusy(false));
  };
  const thread = store.session?.threads.find(({ thread }) => thread === permission.thread);
  const props = { permission, answer, busy };
  const name = permission.tool_name ?? "";
  return (
    <fieldset class="asking" disabled={busy} ref={element} tabIndex={-1}>
      <legend>
        {name === "AskUserQuestion"
          ? strings.question
          : name === "ExitPlanMode"
            ? strings.plan
            : strings.mayIt(oneLine(permission.title ?? name, 120))}
        {permission.thread !== "main" && <span class="from"> {strings.bySubAgent(oneLine(thread?.title ?? "", 80))}</span>}
      </legend>
      {name === "AskUserQuestion" ? <Questions {...props} /> : name === "ExitPlanMode" ? <Plan {...props} /> : <Tool {...props} />}
    </fieldset>
  );
}

interface FormProps {
  permission: Permission;
  answer: (fields: Json) => void;
  busy: boolean;
}

function inputOf(permission: Permission): Json {
  return isObject(permission.input) ? permission.input : {};
}

function Tool({ permission, answer }: FormProps) {
  const [reason, setReason] = useState("");
  const [edited, setEdited] = useState<string | null>(null);
  const [wrong, setWrong] = useState<string | null>(null);
  const input = inputOf(permission);
  const allow = (fields: Json = {}): void => {
    if (edited === null) {
      answer({ behavior: "allow", ...fields });
      return;
    }
    try {
      const updated: unknown = JSON.parse(edited);
      if (!isObject(updated)) throw new Error(strings.noObject);
      answer({ behavior: "allow", updated_input: updated, ...fields });
    } catch (error) {
      setWrong(strings.badInput(error instanceof Error ? error.message : String(error)));
    }
  };
  return (
    <>
      {edited === null ? (
        <Input name={permission.tool_name ?? ""} input={input} />
      ) : (
        <textarea
          class="code"
          aria-label={strings.editedInput}
          aria-invalid={wrong !== null}
          rows={Math.min(12, edited.split("\n").length + 1)}
          value={edited}
          onInput={(event) => setEdited(event.currentTarget.value)}
        />
      )}
      {wrong !== null && (
        <p class="note bad" role="alert">
          {wrong}
        </p>
      )}
      <div class="actions">
        <button type="button" class="primary" onClick={() => allow()}>
          {strings.allow}
        </button>
        <Deny reason={reason} setReason={setReason} answer={answer} />
        {permission.suggestions.map((suggestion, at) => (
          <button key={at} type="button" onClick={() => allow({ remember: suggestion })}>
            {suggestionText(suggestion)}
          </button>
        ))}
        <button
          type="button"
          class="link"
          onClick={() => {
            setWrong(null);
            setEdited(edited === null ? JSON.stringify(input, null, 2) : null);
          }}
        >
          {edited === null ? strings.editInput : strings.keepInput}
        </button>
      </div>
    </>
  );
}

function Deny(props: { reason: string; setReason: (reason: string) => void; answer: (fields: Json) => void }) {
  return (
    <span class="deny">
      <button
        type="button"
        onClick={() =>
          props.answer({ behavior: "deny", ...(props.reason.trim() === "" ? {} : { message: props.reason.trim() }) })
        }
      >
        {strings.deny}
      </button>
      <input
        type="text"
        aria-label={strings.reason}
        placeholder={strings.reasonShort}
        value={props.reason}
        onInput={(event) => props.setReason(event.currentTarget.value)}
      />
    </span>
  );
}

/** What the agent offers to remember, in words. */
function suggestionText(suggestion: Json): string {
  if (suggestion.type === "setMode") return strings.rememberMode(String(suggestion.mode));
  const rules = Array.isArray(suggestion.rules) ? suggestion.rules.filter(isObject) : [];
  const shown = rules.map((rule) =>
    oneLine(typeof rule.ruleContent === "string" ? `${rule.toolName}(${rule.ruleContent})` : String(rule.toolName), 60),
  );
  if (shown.length > 0) return strings.rememberRule(shown.join(", "));
  const folders = Array.isArray(suggestion.directories) ? suggestion.directories.map(String) : [];
  return strings.rememberOther(oneLine(folders.join(", ") || String(suggestion.type), 80));
}

function Plan({ permission, answer }: FormProps) {
  const [reason, setReason] = useState("");
  return (
    <>
      <div class="plan" tabIndex={0}>
        <Markdown text={String(inputOf(permission).plan ?? "")} />
      </div>
      <div class="actions">
        <button type="button" class="primary" onClick={() => answer({ behavior: "allow" })}>
          {strings.approve}
        </button>
        <Deny reason={reason} setReason={setReason} answer={answer} />
      </div>
    </>
  );
}

interface Question {
  question: string;
  header?: string;
  options: { label: string; description?: string }[];
  multiSelect?: boolean;
}

function Questions({ permission, answer }: FormProps) {
  const input = inputOf(permission);
  const questions = (Array.isArray(input.questions) ? input.questions.filter(isObject) : []) as unknown as Question[];
  const [chosen, setChosen] = useState<Record<string, string[]>>({});
  const [other, setOther] = useState<Record<string, string>>({});
  const answers: Record<string, string> = {};
  for (const { question } of questions) {
    const all = [...(chosen[question] ?? []), ...(other[question]?.trim() ? [other[question].trim()] : [])];
    if (all.length > 0) answers[question] = all.join(", ");
  }
  const complete = questions.every(({ question }) => question in answers);
  const choose = ({ question, multiSelect }: Question, label: string, event: TargetedEvent<HTMLInputElement>): void => {
    const before = chosen[question] ?? [];
    const now = event.currentTarget.checked
      ? multiSelect
        ? [...before, label]
        : [label]
      : before.filter((one) => one !== label);
    setChosen({ ...chosen, [question]: now });
    if (!multiSelect) setOther({ ...other, [question]: "" });
  };
  return (
    <form
      onSubmit={(event) => {
        event.preventDefault();
        if (complete) answer({ behavior: "allow", updated_input: { ...input, answers } });
      }}
    >
      {questions.map((asked, at) => (
        <fieldset key={at} class="question">
          <legend>{visible(asked.question)}</legend>
          {(asked.options ?? []).map((option) => (
            <label key={option.label}>
              <input
                type={asked.multiSelect ? "checkbox" : "radio"}
                name={`${permission.request_id}:${at}`}
                checked={(chosen[asked.question] ?? []).includes(option.label)}
                onChange={(event) => choose(asked, option.label, event)}
              />
              <span>
                {visible(option.label)}
                {option.description && <small>{visible(option.description)}</small>}
              </span>
            </label>
          ))}
          <input
            type="text"
            aria-label={strings.otherAnswer}
            placeholder={strings.otherAnswer}
            value={other[asked.question] ?? ""}
            onInput={(event) => {
              setOther({ ...other, [asked.question]: event.currentTarget.value });
              if (!asked.multiSelect) setChosen({ ...chosen, [asked.question]: [] });
            }}
          />
        </fieldset>
      ))}
      <div class="actions">
        <button type="submit" class="primary" disabled={!complete}>
          {strings.sendAnswer}
        </button>
        <button type="button" onClick={() => answer({ behavior: "deny" })}>
          {strings.dismiss}
        </button>
      </div>
    </form>
  );
}
