"""The demo agent's two threads: one hears (stdin), one acts (turns, in the order of prompts)."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from .transcript import Transcript
from .turn import Interrupted, Turn
from .wire import Wire

PERMISSION_MODES = ("default", "acceptEdits", "plan", "bypassPermissions", "dontAsk", "auto")
# Beyond this stdin is not read until a turn ends: the writer waits, nothing is dropped.
MAX_QUEUED = 1000
# Uuids remembered so that a prompt that comes again is not acted upon again.
MAX_KNOWN = 10_000


class Prompt:
    __slots__ = ("line", "text", "uuid")

    def __init__(self, uuid: str, text: str, line: dict[str, Any]) -> None:
        self.uuid = uuid
        self.text = text
        self.line = line


class Question:
    """One `can_use_tool` that is open, or was: `answer` is the host's response, once there."""

    __slots__ = ("answer", "request", "request_id")

    def __init__(self, request_id: str, request: dict[str, Any]) -> None:
        self.request_id = request_id
        self.request = request
        self.answer: dict[str, Any] | None = None


class Recent:
    """The latest `limit` names that were added."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._names: dict[str, None] = {}  # {name: None}, oldest first

    def add(self, name: str) -> bool:
        """Whether `name` is new; it is remembered from now on."""
        if name in self._names:
            return False
        self._names[name] = None
        if len(self._names) > self._limit:
            del self._names[next(iter(self._names))]
        return True


class Agent:
    """One session in one process. `run` hears; `Turn` acts through the methods below it."""

    def __init__(
        self, wire: Wire, transcript: Transcript, *, turns: int, model: str, permission_mode: str
    ) -> None:
        self.wire = wire
        self.model = model
        self.permission_mode = permission_mode
        self.turns = turns  # of the whole session: numbers and cost go on after a resume
        self.results = 0  # of this process, as the protocol counts them
        self._transcript = transcript
        # Guards everything below. The wire has a lock of its own, always taken second.
        self._cond = threading.Condition()
        self._queue: deque[Prompt] = deque()
        self._known = Recent(MAX_KNOWN)
        self._open: dict[str, Question] = {}
        self._running = False  # the level last told
        self._acting = False  # a turn runs
        self._interrupted = False
        self._closed = False

    def go_on(self) -> None:
        """Begin with a turn of its own, as the real agent does with one that was cut off."""
        text = "say I was cut off, and go on."
        self._hear_prompt({"type": "user", "message": {"role": "user", "content": text}})

    # --- hearing ---

    def run(self, lines: Iterable[bytes]) -> int:
        """Hear `lines` until they end, let the turns finish; returns the exit status."""
        actor = threading.Thread(target=self._act, name="turns")
        actor.daemon = True  # a bad line ends the process at once, whatever the turn does
        actor.start()
        for line in lines:
            if not line.endswith(b"\n"):
                break  # cut off in the middle: its writer is gone, and so is what it meant
            if line.isspace():
                continue
            try:
                frame = json.loads(line)
                if not isinstance(frame, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                print(
                    f"Error parsing streaming input line ({len(line)} bytes): {error}",
                    file=sys.stderr,
                )
                return 1
            self._hear(frame)
        with self._cond:
            self._closed = True
            # Nobody can answer any more.
            for question in self._open.values():
                question.answer = {"behavior": "deny", "message": "stdin closed"}
            self._open.clear()
            self._cond.notify_all()
        actor.join()
        return 0

    def _hear(self, frame: dict[str, Any]) -> None:
        kind = frame.get("type")
        if kind == "user":
            self._hear_prompt(frame)
        elif kind == "control_request":
            request = frame.get("request")
            request = request if isinstance(request, dict) else {}
            self._hear_request(str(frame.get("request_id")), request)
        elif kind == "control_response":
            response = frame.get("response")
            if isinstance(response, dict):
                self._hear_answer(frame, response)

    def _hear_prompt(self, frame: dict[str, Any]) -> None:
        prompt = Prompt(str(frame.get("uuid") or self.wire.uuid("beside")), _text(frame), frame)
        with self._cond:
            new = self._known.add(prompt.uuid)
            if new:
                self._cond.wait_for(lambda: len(self._queue) < MAX_QUEUED)
                if not self._running:
                    self._running = True
                    self.state("running")
                self.lifecycle(prompt.uuid, "queued")
                self._queue.append(prompt)
                self._cond.notify_all()
        if not new:
            self.echo(prompt)

    def _hear_answer(self, frame: dict[str, Any], response: dict[str, Any]) -> None:
        with self._cond:
            question = self._open.pop(str(response.get("request_id")), None)
            if question is None:
                return  # withdrawn meanwhile, answered before, or never asked
            self.wire.send(frame)  # accepted answers are replayed, as prompts are
            if response.get("subtype") == "success":
                answer = response.get("response")
                question.answer = answer if isinstance(answer, dict) else {}
            else:
                question.answer = {"behavior": "deny", "message": str(response.get("error"))}
            if not self._open:
                self.state("running")
            self._cond.notify_all()

    def _hear_request(self, request_id: str, request: dict[str, Any]) -> None:
        subtype = request.get("subtype")
        if subtype == "initialize":
            self._initialize(request_id)
        elif subtype == "interrupt":
            self._interrupt(request_id, bool(request.get("cancel_queued")))
        elif subtype == "set_model":
            model = request.get("model")
            self.model = "demo" if model in (None, "default") else str(model)
            self._succeed(request_id, {"model": self.model})
        elif subtype == "set_permission_mode" and request.get("mode") in PERMISSION_MODES:
            self._succeed(request_id, {"mode": request["mode"]})
            self.set_permission_mode(str(request["mode"]))
        elif subtype == "set_permission_mode":
            self._fail(request_id, f"Unknown permission mode: {request.get('mode')}")
        elif subtype == "cancel_async_message":
            self._cancel(request_id, str(request.get("message_uuid")))
        else:
            self._fail(request_id, f"Unsupported control request subtype: {subtype}")

    def _initialize(self, request_id: str) -> None:
        with self._cond:
            pending = [
                {
                    "type": "control_request",
                    "request_id": question.request_id,
                    "request": question.request,
                }
                for question in self._open.values()
            ]
        self._succeed(
            request_id,
            {
                "commands": [],
                "agents": [],
                "models": [{"value": "demo", "displayName": "Demo", "description": "No model"}],
                "account": {},
                "output_style": "default",
                "available_output_styles": ["default"],
            },
            pending_permission_requests=pending,
            pending_user_dialog_requests=[],
        )

    def _interrupt(self, request_id: str, cancel_queued: bool) -> None:
        with self._cond:
            receipt: dict[str, Any] = {"still_queued": [prompt.uuid for prompt in self._queue]}
            if cancel_queued:
                receipt = {"still_queued": [], "cancelled": receipt["still_queued"]}
                for prompt in self._queue:
                    self.lifecycle(prompt.uuid, "cancelled")
                self._queue.clear()
            # Withdrawals, then the receipt, then whatever the turn has to say about it.
            self._withdraw(list(self._open.values()))
            self._interrupted = self._acting
            self._succeed(request_id, receipt)
            self._settle()
            self._cond.notify_all()

    def _cancel(self, request_id: str, uuid: str) -> None:
        with self._cond:
            queued = [prompt for prompt in self._queue if prompt.uuid == uuid]
            for prompt in queued:
                self._queue.remove(prompt)
                self.lifecycle(prompt.uuid, "cancelled")
            self._succeed(request_id, {"cancelled": bool(queued), "message_uuid": uuid})
            self._settle()
            self._cond.notify_all()

    def _settle(self) -> None:
        """Tell that all is done, once it is."""
        if self._running and not self._acting and not self._queue:
            self._running = False
            self.state("idle")

    def _succeed(self, request_id: str, answer: dict[str, Any], **beside: Any) -> None:
        response = {"subtype": "success", "request_id": request_id, "response": answer, **beside}
        self.wire.send({"type": "control_response", "response": response})

    def _fail(self, request_id: str, error: str) -> None:
        response = {"subtype": "error", "request_id": request_id, "error": error}
        self.wire.send({"type": "control_response", "response": response})

    # --- acting ---

    def _act(self) -> None:
        while True:
            with self._cond:
                self._acting = False
                self._settle()
                self._cond.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                prompt = self._queue.popleft()
                self._acting = True
                self._interrupted = False
                self._cond.notify_all()
            self.turns += 1
            self._transcript.accept(prompt.uuid, prompt.text, self.turns)
            Turn(self, prompt, self.turns).run()

    def echo(self, prompt: Prompt) -> None:
        """The replay of `prompt`: it has been accepted."""
        line = {**prompt.line, "isReplay": True, "session_id": self.wire.session}
        self.wire.send({**line, "uuid": prompt.uuid, "parent_tool_use_id": None})

    def state(self, state: str) -> None:
        self.wire.beside("system", subtype="session_state_changed", state=state)

    def lifecycle(self, prompt: str, state: str) -> None:
        self.wire.beside("command_lifecycle", command_uuid=prompt, state=state)

    def set_permission_mode(self, mode: str) -> None:
        self.permission_mode = mode
        self.wire.beside("system", subtype="status", status=None, permissionMode=mode)

    def queued(self) -> int:
        with self._cond:
            return len(self._queue)

    def check(self) -> None:
        """Raise `Interrupted` if the turn has been told to stop."""
        if self._interrupted:
            raise Interrupted

    def wait_until(self, moment: float) -> None:
        """Wait for a `time.monotonic` moment, or raise `Interrupted` before it."""
        with self._cond:
            self._cond.wait_for(lambda: self._interrupted, max(0.0, moment - time.monotonic()))
        self.check()

    def ask(self, requests: list[dict[str, Any]]) -> list[Question]:
        """Put questions to the host, all at once; answers come into them."""
        questions = [Question(self.wire.uuid(), request) for request in requests]
        with self._cond:
            if self._interrupted:
                raise Interrupted
            self.state("requires_action")
            for question in questions:
                self.wire.send(
                    {
                        "type": "control_request",
                        "request_id": question.request_id,
                        "request": question.request,
                    }
                )
                if self._closed:
                    question.answer = {"behavior": "deny", "message": "stdin closed"}
                else:
                    self._open[question.request_id] = question
        return questions

    def wait_answers(self, questions: list[Question]) -> None:
        """Wait until all are answered; `Interrupted` otherwise."""
        with self._cond:
            self._cond.wait_for(
                lambda: self._interrupted or all(q.answer is not None for q in questions)
            )
        self.check()

    def withdraw(self, questions: list[Question]) -> int:
        """Take back those that are still open; returns how many."""
        with self._cond:
            return self._withdraw([q for q in questions if q.request_id in self._open])

    def _withdraw(self, questions: list[Question]) -> int:
        for question in questions:
            del self._open[question.request_id]
            self.wire.send({"type": "control_cancel_request", "request_id": question.request_id})
        if questions and not self._open:
            self.state("running")
        return len(questions)


def _text(frame: dict[str, Any]) -> str:
    """A prompt's text, whether it came as a string or as blocks."""
    message = frame.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return content
    parts = []
    for block in content if isinstance(content, list) else []:
        if isinstance(block, dict):
            text = block.get("text")
            parts.append(text if isinstance(text, str) else f"[{block.get('type')}]")
    return "\n".join(parts)
