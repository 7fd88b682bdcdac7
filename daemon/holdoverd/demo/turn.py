"""One turn of the demo agent: a prompt's steps, acted out as frames."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .script import HELP, Step, parse
from .wire import sha256_hex

if TYPE_CHECKING:
    from .agent import Agent, Prompt

WORDS_PER_S = 12.0  # a readable pace
STREAM_PER_S = 10.0
LINE_BYTES = 64
MAX_REPEATED_CHARS = 400
COST_USD = 0.001  # of each turn; nothing is really spent
CONTEXT_WINDOW = 200_000
NOTE = "(I am Holdover's demo agent: scripted, no model behind me. Say “help” to see what I do.)"
CAPABILITIES = ("interrupt_receipt_v1", "interrupt_cancel_queued_v1", "msg_lifecycle_v1")
_WORDS = ("the", "clock", "keeps", "time", "when", "its", "reference", "is", "gone", "and")
_JOINED = frozenset({"say", "think", "tool"})


class Interrupted(Exception):
    """The turn was told to stop."""


class Speaker:
    """Who speaks: the main thread, or the sub-agent started by the tool use `parent`."""

    __slots__ = ("fields", "parent")

    def __init__(self, parent: str | None = None, agent_id: str | None = None) -> None:
        self.parent = parent
        self.fields: dict[str, Any] = {}
        if agent_id is not None:
            self.fields = {"agent_id": agent_id, "subagent_type": "demo"}


MAIN = Speaker()


class Message:
    """One API message: its deltas, and one assistant frame for each of its blocks."""

    def __init__(self, turn: Turn, speaker: Speaker) -> None:
        self._turn = turn
        self._wire = turn.agent.wire
        self._speaker = speaker
        self._index = -1
        self.id = self._wire.name("msg")
        self._event({"type": "message_start", "message": self._message([])})

    def text(self, words: Iterable[str], rate: float | None = None, kind: str = "text") -> str:
        """A text or thinking block, word by word; `rate` words a second, or at once."""
        self._index += 1
        opening = {"type": kind, kind: ""}
        if kind == "thinking":
            opening["signature"] = ""
        self._start(opening)
        began, said = time.monotonic(), ""
        try:
            for number, word in enumerate(words):
                if rate is not None:
                    # By the clock since the beginning: a late word does not delay the next.
                    self._turn.agent.wait_until(began + number / rate)
                else:
                    self._turn.agent.check()
                piece = word if number == 0 else f" {word}"
                said += piece
                self._delta({"type": f"{kind}_delta", kind: piece})
        except Interrupted:
            self._whole({**opening, kind: said}, aborted=True)
            self._stop("end_turn")
            raise
        if kind == "thinking":
            self._delta({"type": "signature_delta", "signature": "demo"})
            opening["signature"] = "demo"
        self._whole({**opening, kind: said})
        return said

    def tool_use(self, name: str, given: dict[str, Any]) -> str:
        """A tool call; returns its id."""
        self._index += 1
        use_id = self._wire.name("toolu")
        block = {"type": "tool_use", "id": use_id, "name": name, "input": given}
        self._start({**block, "input": {}})
        self._delta({"type": "input_json_delta", "partial_json": json.dumps(given)})
        self._whole(block)
        return use_id

    def close(self, reason: str = "end_turn") -> None:
        self._stop(reason)

    def _start(self, block: dict[str, Any]) -> None:
        self._event({"type": "content_block_start", "index": self._index, "content_block": block})

    def _delta(self, delta: dict[str, Any]) -> None:
        self._event({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _whole(self, block: dict[str, Any], aborted: bool = False) -> None:
        # The whole block first, then its stop, as the real agent does.
        self._turn.assistant(self._speaker, self._message([block]), aborted=aborted)
        self._event({"type": "content_block_stop", "index": self._index})

    def _stop(self, reason: str) -> None:
        ending = {"stop_reason": reason, "stop_sequence": None}
        usage = {"output_tokens": 10}
        self._event({"type": "message_delta", "delta": ending, "usage": usage})
        self._event({"type": "message_stop"})

    def _event(self, event: dict[str, Any]) -> None:
        self._wire.frame("stream_event", event=event, parent_tool_use_id=self._speaker.parent)

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return self._turn.message(self.id, content)


class Turn:
    """Acts out one prompt, from its echo to its result."""

    def __init__(self, agent: Agent, prompt: Prompt, number: int) -> None:
        self.agent = agent
        self._wire = agent.wire
        self._prompt = prompt
        self._number = number
        self._began = time.monotonic()
        self._last = ""  # what was said last: the result's text
        self._asking = False

    def run(self) -> None:
        self.agent.lifecycle(self._prompt.uuid, "started")
        self._init()
        self._wire.frame("system", subtype="status", status="requesting")
        self.agent.echo(self._prompt)
        try:
            for group in _groups(parse(self._prompt.text)):
                self.agent.check()
                self._act(group)
        except Interrupted:
            where = " for tool use" if self._asking else ""
            text = {"type": "text", "text": f"[Request interrupted by user{where}]"}
            self._user(MAIN, [text])
            self._result("aborted_tools" if self._asking else "aborted_streaming")
            self.agent.lifecycle(self._prompt.uuid, "cancelled")
            return
        self._result("completed")
        self.agent.lifecycle(self._prompt.uuid, "completed")

    # --- frames ---

    def _init(self) -> None:
        self._wire.frame(
            "system",
            subtype="init",
            cwd=os.getcwd(),
            model=self.agent.model,
            tools=["Agent", "AskUserQuestion", "Bash", "ExitPlanMode"],
            mcp_servers=[],
            slash_commands=[],
            skills=[],
            plugins=[],
            permissionMode=self.agent.permission_mode,
            apiKeySource="none",
            claude_code_version="demo",
            output_style="default",
            capabilities=list(CAPABILITIES),
        )

    def message(self, message_id: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": message_id,
            "type": "message",
            "role": "assistant",
            "model": self.agent.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": 10},
        }

    def assistant(self, speaker: Speaker, message: dict[str, Any], aborted: bool = False) -> None:
        fields = dict(speaker.fields)
        if aborted:
            fields["aborted"] = True
        if speaker.parent is None:
            fields["user_message_uuid"] = self._prompt.uuid
            fields["user_message_uuids"] = [self._prompt.uuid]
        self._wire.frame("assistant", message=message, parent_tool_use_id=speaker.parent, **fields)

    def _user(self, speaker: Speaker, content: list[dict[str, Any]], **fields: Any) -> None:
        self._wire.frame(
            "user",
            message={"role": "user", "content": content},
            parent_tool_use_id=speaker.parent,
            **speaker.fields,
            **fields,
        )

    def _tool_result(self, speaker: Speaker, use_id: str, text: str, failed: bool = False) -> None:
        block = {"type": "tool_result", "tool_use_id": use_id, "content": text}
        whole: Any = f"Error: {text}" if failed else {"stdout": text, "stderr": ""}
        self._user(speaker, [{**block, "is_error": failed}], tool_use_result=whole)

    def _result(self, reason: str) -> None:
        completed = reason == "completed"
        elapsed_ms = int((time.monotonic() - self._began) * 1000)
        fields: dict[str, Any] = {"result": self._last} if completed else {"errors": [reason]}
        self._wire.frame(
            "result",
            subtype="success" if completed else "error_during_execution",
            is_error=not completed,
            duration_ms=elapsed_ms,
            duration_api_ms=0,
            num_turns=1,
            stop_reason="end_turn" if completed else None,
            total_cost_usd=round(self._number * COST_USD, 6),
            usage={"input_tokens": 10, "output_tokens": 10},
            modelUsage={
                self.agent.model: {
                    "inputTokens": 10,
                    "outputTokens": 10,
                    "contextWindow": CONTEXT_WINDOW,
                }
            },
            permission_denials=[],
            queued_turn_count=self.agent.queued(),
            result_index=self.agent.results,
            terminal_reason=reason,
            user_message_uuid=self._prompt.uuid,
            user_message_uuids=[self._prompt.uuid],
            **fields,
        )
        self.agent.results += 1

    # --- steps ---

    def _act(self, group: list[Step]) -> None:
        step = group[0]
        if step.verb in _JOINED:
            self._speak(group)
            return
        match step.verb:
            case "text":
                self._repeat(step.text)
            case "help":
                self._say(HELP)
            case "stream":
                words = (_WORDS[i % len(_WORDS)] for i in range(step.n))
                message = Message(self, MAIN)
                self._last = message.text(words, step.rate or STREAM_PER_S)
                message.close()
            case "lines":
                self._lines(MAIN, step.n, step.rate, LINE_BYTES if step.size is None else step.size)
            case "history":
                for number in range(1, step.n + 1):
                    self._plain(MAIN, f"history {number} of {step.n}")
            case "huge":
                text = _payload(f"{self._wire.session}:huge:{step.n}", step.n)
                self._plain(MAIN, text)
                self._say(f"huge {step.n} {sha256_hex(text.encode())}")
            case "wait":
                self.agent.wait_until(time.monotonic() + step.seconds)
            case "sha":
                data = step.text.encode("utf-8", "backslashreplace")
                self._say(f"sha256 {sha256_hex(data)} {len(data)}")
            case "pid":
                self._say(f"pid {os.getpid()} ppid {os.getppid()}")
            case "stderr":
                print(step.text, file=sys.stderr, flush=True)
            case "noise":
                self._wire.line(f"demo noise: {step.text}")
            case "raw":
                self._wire.line(step.text)
            case "cut":
                self._wire.line(step.text, end="")
                os._exit(1)
            case "crash exit":
                os._exit(step.n)
            case "crash signal":
                self._die(step.name)
            case "agent":
                self._delegate(MAIN, 1, step.n, step.size or 1, 0)
            case "agent-ask":
                self._delegate(MAIN, 1, step.n, 1, step.size or 0)
            case _:
                self._question(step)

    def _repeat(self, text: str) -> None:
        if len(text) > MAX_REPEATED_CHARS:
            text = text[:MAX_REPEATED_CHARS] + "…"
        message = Message(self, MAIN)
        self._last = message.text(f"You said: {text}".split(" "), WORDS_PER_S)
        message.text(NOTE.split(" "), WORDS_PER_S)
        message.close()

    def _say(self, text: str, speaker: Speaker = MAIN) -> None:
        message = Message(self, speaker)
        self._last = message.text(text.split(" "))
        message.close()

    def _plain(self, speaker: Speaker, text: str) -> None:
        """A whole message without deltas."""
        self.agent.check()
        content = [{"type": "text", "text": text}]
        self.assistant(speaker, self.message(self._wire.name("msg"), content))

    def _speak(self, group: list[Step]) -> None:
        message = Message(self, MAIN)
        calls: list[tuple[str, str]] = []
        for step in group:
            if step.verb == "tool":
                calls.append((message.tool_use(step.name, _object(step.text)), step.name))
            elif step.verb == "think":
                message.text(step.text.split(" "), kind="thinking")
            else:
                self._last = message.text(step.text.split(" "))
        message.close("tool_use" if calls else "end_turn")
        for use_id, name in calls:
            self._tool_result(MAIN, use_id, f"{name} done")

    def _lines(self, speaker: Speaker, count: int, rate: float | None, size: int) -> None:
        """Numbered messages whose text carries its payload's digest, so that loss and damage show."""
        began = time.monotonic()
        for number in range(1, count + 1):
            if rate is not None:
                self.agent.wait_until(began + (number - 1) / rate)
            payload = _payload(f"{self._wire.session}:{self._number}:{number}", size)
            self._plain(speaker, f"#{number} {sha256_hex(payload.encode())} {payload}")

    def _die(self, name: str) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
        # Delivered to another thread, perhaps only after kill() returns: say nothing more.
        threading.Event().wait()

    # --- permissions ---

    def _question(self, step: Step) -> None:
        if step.verb == "ask-question":
            options = [
                {"label": "Tea", "description": "Hot, and takes a while"},
                {"label": "Water", "description": "Cold, and at once"},
            ]
            question = {"question": "What would you like to drink?", "header": "Drink"}
            asked = {"questions": [{**question, "options": options, "multiSelect": False}]}
            answers = self._ask(MAIN, None, [("AskUserQuestion", asked)])
            self._say(f"answers: {json.dumps(answers[0][1].get('answers'), ensure_ascii=False)}")
        elif step.verb == "plan":
            plan = "1. Look at the clock.\n2. Remove its reference.\n3. See it keep time."
            answers = self._ask(MAIN, None, [("ExitPlanMode", {"plan": plan})])
            self._say(f"plan: {answers[0][0]}")
        else:
            calls = [("Bash", {"command": f"step-{i} --of {step.n}"}) for i in _upto(step.n)]
            if step.verb == "withdraw":
                self._ask(MAIN, None, calls, withdraw_after=step.seconds)
            else:
                self._report(MAIN, self._ask(MAIN, None, calls))

    def _report(self, speaker: Speaker, answers: list[tuple[str, dict[str, Any]]]) -> None:
        shown = (f"#{i} {how}" for i, (how, _) in enumerate(answers, 1))
        self._say(f"answered: {', '.join(shown) or 'nothing was asked'}", speaker)

    def _ask(
        self,
        speaker: Speaker,
        agent_id: str | None,
        calls: list[tuple[str, dict[str, Any]]],
        withdraw_after: float | None = None,
    ) -> list[tuple[str, dict[str, Any]]]:
        """Call tools that need permission; returns, for each, how it was answered and its input."""
        message = Message(self, speaker)
        uses = [message.tool_use(name, given) for name, given in calls]
        message.close("tool_use")
        requests = [
            _request(name, given, use, agent_id)
            for (name, given), use in zip(calls, uses, strict=True)
        ]
        if not requests:
            return []
        self._asking = True
        questions = self.agent.ask(requests)
        if withdraw_after is not None:
            self.agent.wait_until(time.monotonic() + withdraw_after)
            withdrawn = self.agent.withdraw(questions)
            for use in uses:
                self._tool_result(speaker, use, "withdrawn", failed=True)
            self._asking = False
            self._say(f"withdrawn: {withdrawn} of {len(questions)}", speaker)
            return []
        self.agent.wait_answers(questions)
        self._asking = False
        answers = []
        for (name, given), use, question in zip(calls, uses, questions, strict=True):
            answer = question.answer or {}
            allowed = answer.get("behavior") == "allow"
            result = f"{name} done" if allowed else str(answer.get("message") or "denied")
            self._tool_result(speaker, use, result, failed=not allowed)
            answers.append((self._how(given, answer), answer.get("updatedInput") or given))
        return answers

    def _how(self, given: dict[str, Any], answer: dict[str, Any]) -> str:
        if answer.get("behavior") != "allow":
            message = answer.get("message")
            return f"deny ({message})" if message else "deny"
        notes = []
        if answer.get("updatedInput") not in (None, given):
            notes.append("input changed")
        for update in answer.get("updatedPermissions") or []:
            notes.append(f"remembered {update.get('type')}")
            if update.get("type") == "setMode":
                self.agent.set_permission_mode(str(update.get("mode")))
        return f"allow ({', '.join(notes)})" if notes else "allow"

    # --- sub-agents ---

    def _delegate(
        self, speaker: Speaker, depth: int, deepest: int, lines: int, questions: int
    ) -> None:
        """Start a sub-agent at `depth`, which starts the next one, down to `deepest`."""
        if depth > deepest:
            return
        title = f"Demo agent at depth {depth}"
        prompt = f"Speak {lines} lines from depth {depth}."
        message = Message(self, speaker)
        given = {"description": title, "subagent_type": "demo", "prompt": prompt}
        use_id = message.tool_use("Agent", given)
        message.close("tool_use")
        task_id = self._wire.name("task")
        task = {"task_id": task_id, "tool_use_id": use_id}
        self._wire.frame(
            "system",
            subtype="task_started",
            **task,
            description=title,
            subagent_type="demo",
            is_backgrounded=False,
            spawn_depth=depth,
            task_type="local_agent",
            prompt=prompt,
        )
        below = Speaker(use_id, task_id)
        self._user(below, [{"type": "text", "text": prompt}])
        self._say(f"This is depth {depth}.", below)
        self._lines(below, lines, None, LINE_BYTES)
        if depth < deepest:
            self._delegate(below, depth + 1, deepest, lines, questions)
        elif questions:
            calls = [("Bash", {"command": f"deep-{i}"}) for i in _upto(questions)]
            self._report(below, self._ask(below, task_id, calls))
        self._wire.frame(
            "system", subtype="task_notification", **task, status="completed", summary=title
        )
        self._tool_result(speaker, use_id, f"depth {depth} done")
        if depth == 1:
            self._say(f"agents done, {deepest} deep")


def _request(name: str, given: dict[str, Any], use_id: str, agent_id: str | None) -> dict[str, Any]:
    request: dict[str, Any] = {
        "subtype": "can_use_tool",
        "tool_name": name,
        "display_name": name,
        "input": given,
        "tool_use_id": use_id,
        "permission_suggestions": [],
    }
    if agent_id is not None:
        request["agent_id"] = agent_id
    if name == "Bash":
        rule = {"toolName": "Bash", "ruleContent": given["command"]}
        request["permission_suggestions"] = [
            {
                "type": "addRules",
                "rules": [rule],
                "behavior": "allow",
                "destination": "localSettings",
            },
            {"type": "setMode", "mode": "acceptEdits", "destination": "session"},
        ]
    else:
        request["requires_user_interaction"] = True
    return request


def _groups(steps: list[Step]) -> list[list[Step]]:
    """Steps that share one API message: thinking, text and tool calls, up to the last call."""
    groups: list[list[Step]] = []
    for step in steps:
        before = groups[-1][-1].verb if groups else ""
        after_call = before == "tool" and step.verb != "tool"
        if before in _JOINED and step.verb in _JOINED and not after_call:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def _payload(seed: str, size: int) -> str:
    """`size` characters that follow from `seed` and look like nothing else."""
    digest = sha256_hex(seed.encode())
    return (digest * (size // len(digest) + 1))[:size]


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {"text": text}
    return value if isinstance(value, dict) else {"value": value}


def _upto(count: int) -> range:
    return range(1, count + 1)
