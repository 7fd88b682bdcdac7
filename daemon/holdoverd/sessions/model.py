"""What one session is, and what each thing that happens to it changes. No I/O, no clock of its own.

The owner feeds lines of the spool and acts of people in; out comes a `Step`: rows to commit in one
transaction and events to show afterwards, in order. The model is then ahead of the catalogue by
that step, so the owner either commits it or, for an act of a person that could not be stored,
goes back to the save point that it took before.
"""

from collections import OrderedDict
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from signal import SIGKILL
from typing import Any, Literal, TypeAlias

from holdoverd.agents import host_frames
from holdoverd.agents.stream_json import Frame, OpenBlocks, OversizeLine
from holdoverd.catalogue.records import (
    Change,
    Kind,
    LaunchRow,
    MessageRow,
    OutboxRow,
    PermissionRow,
    PromptRow,
    SessionRow,
    ThreadRow,
)
from holdoverd.errors import Conflict, Gone, NotFound, TooLarge, Unprocessable
from holdoverd.ids import new_id
from holdoverd.sessions.bodies import context_of, dumps, input_of, json_object, suggestions
from holdoverd.sessions.levels import Facts, TurnTracker, state_of

MAIN = "main"

MAX_STATUSES = 64
"""Latest-value frames kept for a viewer who comes later; the one heard least recently goes."""

MAX_STATUS_CHARS = 64 * 1024
"""A status longer than this is shown live but not kept: it would be rewritten at every commit."""

MAX_RECENT_UUIDS = 4096
"""Frames are recognised by uuid (stream-json.md §13.2) among at least this many latest of the
session, and at most twice as many."""

MAX_NOTICED_FAULTS = 20
"""Unreadable lines of one launch that get a notice of their own; the rest are counted."""

MAX_QUEUED_PROMPTS = 100

MAX_LINE_BYTES = 16 * 1024 * 1024
"""The keeper's bound for one line of the agent's stdin (PROTOCOL.md)."""

MAX_TOOL_THREADS = 4096

_WITHDRAWAL = "holdover-withdraw-"
"""How the id of a `cancel_async_message` begins; the prompt's own follows, for its answer."""

SUBAGENT_TOOLS = frozenset({"Agent", "Task"})
"""Tools whose use starts a sub-agent, and with it a thread (stream-json.md §9)."""


_FLAGS = ("purging", "creating", "reload_due", "_live_changed", "_saved_small")
"""What an act of a person may alter beside the records."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Part of a message still being said; `body` is the agent's line."""

    thread: str
    body: str


@dataclass(frozen=True, slots=True)
class Status:
    """The latest value of something that is not history; `body` is the agent's line."""

    name: str
    body: str


Event: TypeAlias = MessageRow | Delta | Status


@dataclass(slots=True)
class Step:
    """What to commit, then what to show, in order."""

    change: Change = field(default_factory=Change)
    events: list[Event] = field(default_factory=list)
    launch_ended: bool = False
    initialized: bool = False
    kept_prompts: list[str] = field(default_factory=list)
    """Prompts that the agent was asked to give back and has not: they run, or have run."""
    levels_changed: bool = False
    """A thread was opened or closed; other levels show in the change itself."""

    @property
    def must_commit(self) -> bool:
        """False where nothing but live frames came: reading those again costs nobody anything."""
        change = self.change
        return bool(
            self.launch_ended
            or change.messages
            or change.threads
            or change.permissions
            or change.prompts
            or change.outbox
            or change.session
            or (change.launch is not None and change.launch.state != "live")
        )

    @property
    def size_hint(self) -> int:
        """About how many bytes storing it writes."""
        return sum(len(m.body) for m in self.change.messages)


class SavePoint:
    """The parts of a model that an act of a person may alter, as they were.

    Records are put back in place: others hold on to the same ones.
    """

    def __init__(self, model: "SessionModel") -> None:
        records: list[Any] = [
            model.row,
            *model.threads.values(),
            *model.permissions.values(),
            *model.prompts.values(),
        ]
        if model.launch is not None:
            records.append(model.launch)
        self._records = [(record, copy(record)) for record in records]
        self._dicts = [
            (live, dict(live)) for live in (model.threads, model.permissions, model.prompts)
        ]
        self._model = model
        self._flags = {name: getattr(model, name) for name in _FLAGS}

    def restore(self) -> None:
        for record, saved in self._records:
            for item in fields(record):
                setattr(record, item.name, getattr(saved, item.name))
        for live, before in self._dicts:
            live.clear()
            live.update(before)  # type: ignore[arg-type]
        for name, value in self._flags.items():
            setattr(self._model, name, value)


class SessionModel:
    """One session in memory, as its owner holds it.

    `prompts` holds those queued only, `permissions` those open only.
    """

    def __init__(
        self,
        row: SessionRow,
        *,
        threads: Sequence[ThreadRow] = (),
        permissions: Sequence[PermissionRow] = (),
        prompts: Sequence[PromptRow] = (),
        launch: LaunchRow | None = None,
        recent_uuids: Sequence[str] = (),
    ) -> None:
        self.row = row
        self.threads = {t.thread: t for t in threads}
        self.threads.setdefault(MAIN, ThreadRow(MAIN, None, None, 0, "open"))
        self.permissions = {p.request_id: p for p in permissions if p.state == "open"}
        self.prompts = {p.id: p for p in prompts if p.state == "queued"}
        self.launch = launch
        self.boot_id: str | None = None
        """Of the host's present boot, where its owner tells."""
        self.bare = False
        """Its agent is of no known kind, and may echo no prompt: nobody asked it to."""
        self.wanted = False
        """The owner is about to start an agent; forgotten with the owner, decided anew by the next."""
        self.blocks = OpenBlocks()
        # Latest last. Trimmed by halves: a dict that loses its first key with each new one slows
        # down, and an OrderedDict costs twice as much a line.
        self._recent: dict[str, None] = dict.fromkeys(recent_uuids)
        live = json_object(row.live)
        # {name: line}, oldest heard first
        self.statuses: OrderedDict[str, str] = OrderedDict(live.get("statuses") or {})
        # {tool_use id: thread}, for uses outside `main` that have no result yet
        self._tool_threads: OrderedDict[str, str] = OrderedDict(live.get("tool_threads") or {})
        self._turn = TurnTracker(live.get("turn"))
        self._ready = bool(live.get("ready"))
        self._faults = int(live.get("faults") or 0)
        # The latest reply in `main`: what it says of its tokens is read when its turn is over.
        self._reply: str | None = None
        self._initialize_id: str | None = live.get("initialize_id")
        # Of this process: it has echoed a prompt; and it is in the middle of a reply.
        self._echoes = bool(live.get("echoes"))
        self._replying = bool(live.get("replying"))
        self.conversation_begun = bool(live.get("begun"))
        """The agent has taken a prompt at some time: it has a conversation to go on with."""
        self.creating = bool(live.get("creating"))
        """Nobody has been told of this session yet: it goes if its first launch does."""
        self.purging = bool(live.get("purging"))
        """The session has ended and goes, rows and all, as soon as it has no agent."""
        self.reload_due = bool(live.get("reload_due"))
        """Its skills were changed during a turn: the agent is told once that is over."""
        # Prompts that wait no more, so that a late echo of one is not taken for a foreign prompt.
        self._settled: OrderedDict[str, None] = OrderedDict()
        # The larger part of the live state is written out again only when it has changed.
        self._live_changed = False
        self._saved_small: dict[str, object] = {}

    # -- what is true now ---------------------------------------------------------------------

    @property
    def state(self) -> str:
        """The session's level; see `levels`."""
        return state_of(
            Facts(
                ended=self.row.ended_at is not None,
                failed=self.row.error is not None,
                launch=self.launch is not None,
                wanted=self.wanted,
                ready=self._ready,
                open_permissions=len(self.permissions),
                queued_prompts=len(self.prompts),
                turn_open=self._turn.open,
            )
        )

    @property
    def adopting(self) -> bool:
        """Its first agent is to go on with a conversation from elsewhere."""
        return self.creating and self.conversation_begun

    @property
    def turn_open(self) -> bool:
        return self.launch is not None and self._turn.open

    @property
    def has_tasks(self) -> bool:
        """The agent runs something in the background."""
        return self.launch is not None and self._turn.has_tasks

    def has_rested(self, idle_ms: float, at: int) -> bool:
        """Nothing has happened for so long at `at`, and nothing is under way.

        Of one that changed in the future nobody can tell: the clock was set back since. It counts by
        how far that is, since it would not be at rest for as long again otherwise.
        """
        idle = self.row.state == "idle" and not self.has_tasks
        return idle and abs(at - self.row.updated_at) >= idle_ms

    def queued_ids(self) -> list[str]:
        """Prompts that no agent has taken yet, in the order in which they were accepted."""
        return [p.id for p in sorted(self.prompts.values(), key=lambda p: p.seq)]

    def save_point(self) -> SavePoint:
        """For steps made of acts of people only: these alter nothing that it does not hold."""
        return SavePoint(self)

    # -- storing ------------------------------------------------------------------------------

    def _store(
        self,
        step: Step,
        kind: Kind,
        body: str,
        at: int,
        *,
        thread: str = MAIN,
        uuid: str | None = None,
        client_id: str | None = None,
        request_id: str | None = None,
    ) -> MessageRow:
        row = self.threads.get(thread)
        if row is None:
            row = self._open_thread(step, thread, parent=MAIN, title=None)
        elif row.state == "done" and kind in ("assistant", "user"):
            # An agent in the background: its tool use is answered at once, and it goes on.
            row.state = "open"
            step.levels_changed = True
        self.row.last_seq = seq = self.row.last_seq + 1
        row.n = n = row.n + 1
        message = MessageRow(seq, n, thread, at, kind, uuid, client_id, request_id, body)
        change = step.change
        change.messages.append(message)
        step.events.append(message)
        if row not in change.threads:
            change.threads.append(row)
        change.session["last_seq"] = seq
        return message

    def notice(
        self, step: Step, code: str, text: str, at: int, data: dict[str, Any] | None = None
    ) -> MessageRow:
        """A line of Holdover's own in the log (contract.md: `notice.body`)."""
        body = dumps({"code": code, "text": text, "data": data or {}})
        return self._store(step, "notice", body, at)

    def _open_thread(self, step: Step, thread: str, *, parent: str, title: str | None) -> ThreadRow:
        row = ThreadRow(thread, parent, title, 0, "open")
        self.threads[thread] = row
        step.change.threads.append(row)
        step.levels_changed = True
        return row

    def _command(
        self, step: Step, line: str | None, *, seq: int | None = None, end: bool = False
    ) -> None:
        """Number a line, or the end of stdin, for the keeper of the present launch.

        Raises TooLarge for a line that no keeper takes.
        """
        launch = self.launch
        assert launch is not None, "only a session with a launch has a keeper to send to"
        if line is not None and len(line) > MAX_LINE_BYTES // 4:
            size = len(line.encode())
            if size > MAX_LINE_BYTES:
                raise TooLarge(
                    f"The agent would have to be sent {size:,} bytes in one line; the most is "
                    f"{MAX_LINE_BYTES:,}. Deny the request, or interrupt the agent."
                )
        launch.last_n += 1
        kind: Literal["line", "end"] = "end" if end else "line"
        step.change.outbox.append(OutboxRow(launch.id, launch.last_n, kind, line, seq))
        step.change.launch = launch

    def seal(self, step: Step, at: int) -> Step:
        """Add what follows from the step as a whole: levels and the live state. Call it last."""
        state = self.state
        if state != self.row.state:
            self.row.state = state
            step.change.session["state"] = state
        if not step.must_commit:
            return step
        small = {
            "turn": self._turn.save(),
            "ready": self._ready,
            "faults": self._faults,
            "initialize_id": self._initialize_id,
            "echoes": self._echoes,
            "replying": self._replying,
            "begun": self.conversation_begun,
            "creating": self.creating,
            "purging": self.purging,
            "reload_due": self.reload_due,
        }
        if self._live_changed or small != self._saved_small:
            self._live_changed, self._saved_small = False, small
            self.row.live = dumps(
                {**small, "statuses": self.statuses, "tool_threads": self._tool_threads}
            )
            step.change.session["live"] = self.row.live
        self.row.updated_at = at
        step.change.session["updated_at"] = at
        return step

    # -- what the agent says ------------------------------------------------------------------

    def line(
        self, step: Step, frame: Frame | OversizeLine, *, start: int, at: int, stored: bool = False
    ) -> None:
        """One line of the spool, which began at offset `start`.

        `stored`: the line lies before the committed offset and is read again only to rebuild the
        open blocks; nothing of it is stored or answered a second time.
        """
        if stored:
            if not isinstance(frame, OversizeLine):
                self.blocks.apply(frame, start)
            return
        if isinstance(frame, OversizeLine):
            self._fault(
                step,
                f"The agent sent a line of {frame.size:,} bytes, more than Holdover keeps; "
                "its beginning is in this notice, the rest is lost.",
                at,
                {"size": frame.size, "preview": frame.preview.decode("utf-8", "replace")},
            )
            return
        match frame.kind:
            case "assistant" | "user" | "system":
                self._conversation(step, frame, start, at)
            case "result":
                self._result(step, frame, start, at)
            case "delta":
                self._ready = True
                self.blocks.apply(frame, start)
                step.events.append(Delta(frame.thread, frame.raw))
            case "status":
                self._status(step, frame, at)
            case "replay":
                self._echo(step, frame, at)
            case "control_request":
                self._asked(step, frame, at)
            case "control_cancel":
                self._withdraw(
                    step,
                    [
                        p
                        for p in self.permissions.values()
                        if p.agent_request_id == frame.request_id
                    ],
                    at,
                )
            case "control_response":
                self._answered(step, frame, at)
            case "end":
                self._end_record(step, frame, at)
            case "invalid":
                self._fault(
                    step,
                    "The agent sent a line that is not valid JSON; it was left out.",
                    at,
                    {"size": len(frame.raw), "preview": frame.raw[:4096]},
                )
            case "ignore" | "noise":
                pass

    def seen(self, uuid: str) -> bool:
        """Whether a frame or prompt of this uuid is among the latest."""
        return uuid in self.prompts or uuid in self._recent

    def _seen_before(self, uuid: str | None) -> bool:
        if uuid is None:
            return False
        if uuid in self._recent:
            return True
        self._recent[uuid] = None
        if len(self._recent) > 2 * MAX_RECENT_UUIDS:
            self._recent = dict.fromkeys(list(self._recent)[-MAX_RECENT_UUIDS:])
        return False

    def _conversation(self, step: Step, frame: Frame, start: int, at: int) -> None:
        self.blocks.apply(frame, start)
        if self._seen_before(frame.uuid):
            return
        self._ready = True
        if frame.kind == "assistant":
            self._taken_up(step, frame)
            self._turn.opened()
            self._cut_turn(step, None)
            if frame.thread == MAIN:
                self._reply = frame.raw
        self._store(step, _KINDS[frame.kind], frame.raw, at, thread=frame.thread, uuid=frame.uuid)
        for use in frame.tool_uses:
            if use.name in SUBAGENT_TOOLS and use.id not in self.threads:
                self._open_thread(step, use.id, parent=frame.thread, title=use.title)
            elif frame.thread != MAIN:
                self._tool_threads[use.id] = frame.thread
                self._live_changed = True
                if len(self._tool_threads) > MAX_TOOL_THREADS:
                    self._tool_threads.popitem(last=False)
        for tool_use_id in frame.tool_results:
            if self._tool_threads.pop(tool_use_id, None) is not None:
                self._live_changed = True
            self._close_thread(step, tool_use_id)

    def _close_thread(self, step: Step, thread: str | None) -> None:
        row = self.threads.get(thread or "")
        if row is not None and row.thread != MAIN and row.state != "done":
            # Nothing open in it will go on; an open block would pin the spool (`replay_from`).
            self.blocks.close(row.thread)
            row.state = "done"
            step.levels_changed = True
            if row not in step.change.threads:
                step.change.threads.append(row)

    def _result(self, step: Step, frame: Frame, start: int, at: int) -> None:
        self.blocks.apply(frame, start)
        if self._seen_before(frame.uuid):
            return
        self._ready = True
        self._taken_up(step, frame)
        self._replying = False
        self._turn.result(frame.queued_turn_count or 0)
        self._store(step, "result", frame.raw, at, uuid=frame.uuid)
        if frame.total_cost_usd is not None and frame.total_cost_usd != self.row.cost_usd:
            # Cumulative over the conversation: the latest value, never a sum (stream-json.md §5.3).
            self.row.cost_usd = frame.total_cost_usd
            step.change.session["cost_usd"] = frame.total_cost_usd
        context = context_of(self._reply, frame.raw)
        if context is not None and context != self.row.context:
            self.row.context = context
            step.change.session["context"] = context

    def _status(self, step: Step, frame: Frame, at: int) -> None:
        name = frame.status_name or frame.subtype or frame.type or "unknown"
        if frame.subtype == "init":
            self._init(step, frame, at)
        elif frame.subtype == "session_state_changed" and frame.state is not None:
            self._ready = True
            self._turn.said(frame.state)
        elif frame.background_tasks is not None:
            self._turn.tasks(frame.background_tasks)
        elif frame.task_id is not None and frame.subtype == "task_started":
            self._turn.task(frame.task_id, running=True)
        elif frame.task_id is not None and frame.subtype == "task_notification":
            self._turn.task(frame.task_id, running=False)
        elif frame.command_uuid is not None and frame.state == "cancelled":
            self._dropped(step, frame.command_uuid, at)
        if frame.subtype == "task_notification":
            self._close_thread(step, frame.tool_use_id)
        self.blocks.apply(frame)
        step.events.append(Status(name, frame.raw))
        self._live_changed = True
        self.statuses.pop(name, None)
        if len(frame.raw) <= MAX_STATUS_CHARS:
            self.statuses[name] = frame.raw
        if frame.subtype == "task_notification":
            for phase in ("task_started", "task_progress", "task_updated"):
                self.statuses.pop(f"{phase}:{frame.task_id}", None)
        while len(self.statuses) > MAX_STATUSES:
            self.statuses.popitem(last=False)

    def _init(self, step: Step, frame: Frame, at: int) -> None:
        """``system/init`` opens every turn and tells what the agent really runs with."""
        self._ready = True
        for column, value in (("model", frame.model), ("permission_mode", frame.permission_mode)):
            if value and getattr(self.row, column) != value:
                setattr(self.row, column, value)
                step.change.session[column] = value
        if self.row.cwd is None and isinstance(cwd := json_object(frame.raw).get("cwd"), str):
            self.row.cwd = cwd
            step.change.session["cwd"] = cwd
        session = frame.session_id
        if session and session != self.row.agent_session:
            # The agent forked: follow it in the open, or the next resume continues the wrong one.
            self.notice(
                step,
                "agent_session_changed",
                f"The agent goes on as session {session}; it was {self.row.agent_session}.",
                at,
                {"from": self.row.agent_session, "to": session},
            )
            self.row.agent_session = session
            step.change.session["agent_session"] = session

    def _echo(self, step: Step, frame: Frame, at: int) -> None:
        """The agent's receipt for a prompt. Its own row stands in the log already."""
        self._ready = True
        self._echoes = True
        prompt = self.prompts.get(frame.uuid or "")
        if prompt is None and frame.uuid in self._settled:
            return
        if prompt is not None:
            self._took(step, prompt)
        elif not self._seen_before(frame.uuid):
            # Not ours: a command that the agent gave itself, or one typed on its own terminal.
            self._store(step, "user", frame.raw, at, thread=frame.thread, uuid=frame.uuid)

    def _took(self, step: Step, prompt: PromptRow) -> None:
        """The agent has a prompt: it is not sent again to another."""
        del self.prompts[prompt.id]
        self._turn.opened()
        self._cut_turn(step, None)
        self.conversation_begun = True
        prompt.state = "echoed"
        step.change.prompts.append(prompt)
        self._seen_before(prompt.id)

    def _taken_up(self, step: Step, frame: Frame) -> None:
        """A reply or a result shows which prompts the agent has, where it did not echo them.

        It names them (stream-json.md §13.6); or, of an agent that echoes nothing, it answers the
        oldest that waits.
        """
        for prompt_id in frame.user_message_uuids:
            if prompt_id in self.prompts:
                self._took(step, self.prompts[prompt_id])
        if frame.thread != MAIN:
            return
        if self.bare and not self._echoes and not self._replying and not frame.user_message_uuids:
            launch = self.launch.id if self.launch is not None else None
            for prompt_id in self.queued_ids():
                if self.prompts[prompt_id].launch == launch:
                    self._took(step, self.prompts[prompt_id])
                    break
        self._replying = True

    def _dropped(self, step: Step, prompt_id: str, at: int) -> None:
        """The agent has cancelled a prompt that waited in its queue; it will not run."""
        prompt = self.prompts.pop(prompt_id, None)
        if prompt is not None:
            prompt.state = "cancelled"
            step.change.prompts.append(prompt)
            self._settle(prompt_id)
            self._notice_cancelled(step, prompt, at)

    def _notice_cancelled(self, step: Step, prompt: PromptRow, at: int) -> None:
        self.notice(
            step,
            "prompt_cancelled",
            "A prompt was withdrawn before the agent took it up.",
            at,
            {"prompt_id": prompt.id, "seq": prompt.seq},
        )

    def _settle(self, prompt_id: str) -> None:
        self._settled[prompt_id] = None
        if len(self._settled) > MAX_RECENT_UUIDS:
            self._settled.popitem(last=False)

    def _asked(self, step: Step, frame: Frame, at: int) -> None:
        request = frame.request
        agent_request_id = frame.request_id or ""
        if request is None or self.launch is None or self.row.ended_at is not None:
            return  # an agent that is being ended gets no answers any more
        self._ready = True
        if request.subtype == "request_user_dialog":
            return  # an undeclared kind must not be answered (stream-json.md §6.1)
        if request.subtype != "can_use_tool":
            self._command(
                step,
                host_frames.unsupported(agent_request_id, request.subtype),
            )
            return
        if any(p.agent_request_id == agent_request_id for p in self.permissions.values()):
            return  # told both live and by the handshake
        thread = self._tool_threads.get(request.tool_use_id or "", MAIN)
        request_id = new_id("p")
        message = self._store(
            step, "permission", frame.raw, at, thread=thread, request_id=request_id
        )
        permission = PermissionRow(
            request_id,
            agent_request_id,
            self.launch.id,
            message.seq,
            thread,
            request.raw,
            at,
        )
        self.permissions[request_id] = permission
        step.change.permissions.append(permission)

    def _withdraw(self, step: Step, permissions: Sequence[PermissionRow], at: int) -> None:
        for permission in permissions:
            permission.state = "withdrawn"
            del self.permissions[permission.request_id]
            step.change.permissions.append(permission)
            self._store(
                step,
                "answer",
                dumps({"outcome": "withdrawn", "answered_by": None}),
                at,
                thread=permission.thread,
                request_id=permission.request_id,
            )

    def _answered(self, step: Step, frame: Frame, at: int) -> None:
        """An answer to a request of ours; any other id is the echo of an answer of ours."""
        for prompt_id in (frame.response.cancelled if frame.response else None) or ():
            self._dropped(step, prompt_id, at)
        if frame.request_id is not None and frame.request_id.startswith(_WITHDRAWAL):
            prompt_id = frame.request_id[len(_WITHDRAWAL) :][:36]
            told = json_object(frame.response.response) if frame.response else {}
            if told.get("cancelled") is True:
                self._dropped(step, prompt_id, at)
            else:
                step.kept_prompts.append(prompt_id)
        if frame.request_id is not None and frame.request_id == self._initialize_id:
            self._initialize_id = None
            self._ready = True
            step.initialized = True

    def _fault(self, step: Step, text: str, at: int, data: dict[str, Any]) -> None:
        self._faults += 1
        if self._faults < MAX_NOTICED_FAULTS:
            self.notice(step, "line_unreadable", text, at, data)
        elif self._faults == MAX_NOTICED_FAULTS:
            self.notice(
                step,
                "line_unreadable",
                "The agent keeps sending lines that cannot be read; further ones are left out "
                "without a notice.",
                at,
            )

    def _end_record(self, step: Step, frame: Frame, at: int) -> None:
        """The keeper's last line. Any other nonce is an agent's forgery: noise."""
        if (
            self.launch is not None
            and frame.end is not None
            and frame.end.nonce == self.launch.nonce
        ):
            # Read only after a reboot, it was written while the host went down.
            rebooted = self.boot_id is not None and self.launch.boot_id != self.boot_id
            self.launch_over(step, frame.raw, at, rebooted=rebooted)

    def history(
        self, step: Step, said: Sequence[tuple[int, Frame]], left_out: int, at: int
    ) -> None:
        """What was said before this session was made; for one that has no launch yet.

        `left_out`: how many messages before these are not told.
        """
        if left_out:
            self.notice(
                step,
                "history_cut",
                f"{left_out:,} earlier messages of this conversation are not in this log; the agent "
                "knows them all the same.",
                at,
                {"left_out": left_out},
            )
        for when, frame in said:
            if frame.kind in ("assistant", "user", "system"):
                self._conversation(step, frame, 0, when or at)
        for thread in list(self.threads):
            self._close_thread(step, thread)

    # -- launches -----------------------------------------------------------------------------

    def launch_begun(self, step: Step, launch: LaunchRow) -> None:
        """The lock is held and an agent may be started; stored before anything is sent."""
        self.launch = launch
        self.wanted = False
        self._fresh_process()
        step.change.launch = launch

    def _fresh_process(self) -> None:
        self.blocks = OpenBlocks()
        self.statuses.clear()
        self._tool_threads.clear()
        self._turn = TurnTracker()
        self._ready = False
        self._faults = 0
        self._initialize_id = None
        self._echoes = self._replying = False
        self.reload_due = False  # it looks when it starts
        self._live_changed = True

    def launch_live(
        self,
        step: Step,
        *,
        keeper_pid: int | None,
        agent_pid: int | None,
        cwd: str | None,
        first_lines: Sequence[str],
        initialize_id: str | None,
        at: int,
        resumed: bool,
    ) -> None:
        """The keeper has answered: number the handshake, then every prompt that waits.

        Prompts numbered for an earlier launch must have been settled (`settle_prompts`) before.
        """
        launch = self.launch
        assert launch is not None, "a launch goes live only after it has begun"
        launch.state = "live"
        self.creating = False
        launch.keeper_pid, launch.agent_pid = keeper_pid, agent_pid
        step.change.launch = launch
        if cwd is not None and self.row.cwd != cwd:
            self.row.cwd = cwd
            step.change.session["cwd"] = cwd
        if self.row.error is not None:
            self.row.error = None
            step.change.session["error"] = None
        self._initialize_id = initialize_id
        if resumed:
            self.notice(step, "resumed", "The agent was started again; the session goes on.", at)
        for line in first_lines:
            self._command(step, line)
        for prompt_id in self.queued_ids():
            prompt = self.prompts[prompt_id]
            prompt.launch = launch.id
            step.change.prompts.append(prompt)
            self._command(step, None, seq=prompt.seq)

    def unsettled_prompts(self) -> list[PromptRow]:
        """Prompts that an earlier agent process may have seen: it died before an echo of them."""
        current = self.launch.id if self.launch else None
        return [p for p in self.prompts.values() if p.launch is not None and p.launch != current]

    def settle_prompts(
        self, step: Step, *, found: frozenset[str], searchable: bool, at: int
    ) -> None:
        """What the dead agent's transcript says of its unechoed prompts.

        `found`: the ids that occur in it: the agent had taken them. Absent ones are sent again
        with the same id. Where there is no transcript to search, only a person can tell.
        """
        for prompt in self.unsettled_prompts():
            if prompt.id in found:
                self.conversation_begun = True
                prompt.state = "echoed"
                del self.prompts[prompt.id]
                self._settle(prompt.id)
            elif searchable:
                prompt.launch = None
            else:
                prompt.state = "uncertain"
                del self.prompts[prompt.id]
                self._settle(prompt.id)
                self.notice(
                    step,
                    "prompt_uncertain",
                    "The agent died and nothing shows whether it had seen this prompt. "
                    "Send it again if it is still wanted.",
                    at,
                    {"prompt_id": prompt.id, "seq": prompt.seq},
                )
            step.change.prompts.append(prompt)

    def launch_abandoned(self, step: Step) -> None:
        """The launch on record never came to life; nothing was said and nothing is told."""
        launch = self.launch
        assert launch is not None, "only a launch that has begun can be abandoned"
        self._end_launch(step, launch)

    def _end_launch(self, step: Step, launch: LaunchRow) -> None:
        launch.state = "ended"
        step.change.launch = launch
        step.change.outbox_acked = (launch.id, launch.last_n)  # nobody will ever take the rest
        step.launch_ended = True
        self.launch = None

    def announce(self, step: Step) -> None:
        """Somebody is about to be told of this new session: it stays, whatever its launch does."""
        self.creating = False
        step.change.launch = self.launch
        step.levels_changed = True

    def launch_failed(self, step: Step, *, code: str, message: str, at: int) -> None:
        """No agent could be started. Prompts that wait stay queued: the next resume sends them."""
        if self.launch is not None:
            self._end_launch(step, self.launch)
        self.row.error = dumps({"code": code, "message": message})
        step.change.session["error"] = self.row.error
        self.notice(step, "launch_failed", message, at, {"code": code})

    def launch_over(
        self, step: Step, outcome: str | None, at: int, *, rebooted: bool = False
    ) -> None:
        """The agent is gone and its spool read to the end.

        `outcome`: the keeper's end record, or None: the keeper died too, and nobody knows how the
        agent ended. `rebooted`: the host was started anew since the agent was.
        """
        launch = self.launch
        assert launch is not None, "only a launch that has begun can end"
        self._withdraw(step, list(self.permissions.values()), at)
        ended = self.row.ended_at is not None
        told = json_object(outcome)
        status, signal, oom = told.get("status"), told.get("signal"), bool(told.get("oom"))
        data = {"status": status, "signal": signal, "oom": oom, "turn_cut": self._turn.open}
        if rebooted:
            data["rebooted"] = True
        if told.get("cut"):
            data["cut"] = True
        forks_refused = bool(told.get("forks_refused"))
        if forks_refused:
            data["forks_refused"] = True
        if oom and signal == SIGKILL:
            text = "The agent was ended by the kernel: it needed more memory than its unit allows."
        elif signal is not None:
            text = f"The agent was ended by signal {signal}."
        elif status is not None:
            text = f"The agent exited with status {status}."
        elif rebooted:
            text = "The agent ended with the host, which was started anew."
        else:
            text = "The agent is gone; how it ended is not known."
        if oom and signal != SIGKILL:
            text += " Before that the kernel had ended something of it for memory."
        if forks_refused:
            text += " It had asked for more processes than its unit allows."
        if not ended:
            text += " The next prompt resumes the session."
        launch.outcome = outcome
        if self._turn.open and not ended:
            # One that went with its unit went with the host, as far as anybody can tell.
            self._cut_turn(step, "reboot" if rebooted or told.get("stopped") else "agent")
        self._end_launch(step, launch)
        self._fresh_process()
        self.notice(step, "agent_exited", text, at, data)
        for thread in list(self.threads):
            self._close_thread(step, thread)

    def _cut_turn(self, step: Step, by: Literal["agent", "reboot"] | None) -> None:
        if self.row.turn_cut != by:
            self.row.turn_cut = by
            step.change.session["turn_cut"] = by
            step.levels_changed = True

    def spool_cut(self, step: Step, *, offset: int, size: int, at: int) -> None:
        """The spool is shorter than what was read of it: a power cut took its end."""
        launch = self.launch
        assert launch is not None, "a spool belongs to a launch"
        launch.offset = launch.replay_from = size
        step.change.launch = launch
        self.notice(
            step,
            "spool_cut",
            "The host lost power: the file that held the agent's last lines came back shorter. "
            "Everything read from it before is in this log.",
            at,
            {"offset": offset, "size": size},
        )

    # -- what people do -----------------------------------------------------------------------

    def prompt(self, step: Step, prompt_id: str, body: str, digest: str, at: int) -> MessageRow:
        """Accept a prompt, whose `body` is the line for the agent (stream-json.md §4.1).

        Raises Gone (the session has ended) and Conflict (too many wait).
        """
        if self.row.ended_at is not None:
            raise Gone(f"Session {self.row.id} has ended; start a new one, or adopt its agent's.")
        if len(self.prompts) >= MAX_QUEUED_PROMPTS:
            raise Conflict(
                f"{MAX_QUEUED_PROMPTS} prompts wait in session {self.row.id}; wait for the agent "
                "to take some, or interrupt it."
            )
        message = self._store(step, "user", body, at, uuid=prompt_id, client_id=prompt_id)
        live = self.launch is not None and self.launch.state == "live"
        prompt = PromptRow(
            prompt_id,
            message.seq,
            digest,
            "queued",
            self.launch.id if live and self.launch is not None else None,
        )
        self.prompts[prompt_id] = prompt
        step.change.prompts.append(prompt)
        if live:
            self._command(step, None, seq=message.seq)
        return message

    def cancel_prompt(self, step: Step, prompt_id: str, at: int) -> PromptRow:
        """Withdraw a queued prompt; the one that is returned is ``cancelled`` where that is done.

        One that was numbered for an agent waits in the agent's own queue: it is asked to give it
        back, and what it says decides (`_dropped`, `Step.kept_prompts`). Raises NotFound where no
        such prompt waits.
        """
        prompt = self.prompts.get(prompt_id)
        if prompt is None:
            raise NotFound(f"No prompt {prompt_id[:64]!r} waits in session {self.row.id}.")
        if prompt.launch is not None and self.launch is not None:
            request_id = f"{_WITHDRAWAL}{prompt_id}-{new_id('w')}"
            self._command(step, host_frames.cancel_async_message(request_id, prompt_id))
        elif prompt.launch is not None:
            # Its agent died: whether it had been taken is found out when the next is started.
            raise Conflict(
                f"Prompt {prompt_id} was with an agent that has died; whether it was taken shows "
                "when the session is resumed."
            )
        else:
            prompt.state = "cancelled"
            del self.prompts[prompt_id]
            step.change.prompts.append(prompt)
            self._notice_cancelled(step, prompt, at)
        return prompt

    def answer(
        self,
        step: Step,
        request_id: str,
        *,
        behavior: str,
        answered_by: str,
        updated_input: dict[str, Any] | None,
        message: str | None,
        remember: Any,
        at: int,
    ) -> PermissionRow:
        """Answer an open permission, for good.

        Raises NotFound when it is not open here, TooLarge when allowing it cannot be told to the
        agent, Unprocessable where `remember` is not one of its suggestions. The caller tells "answered before" and "withdrawn" from "never asked" by the catalogue.
        """
        if self.row.ended_at is not None:
            raise Gone(f"Session {self.row.id} has ended; its agent waits for no answer.")
        permission = self.permissions.get(request_id)
        if permission is None:
            raise NotFound(f"Session {self.row.id} has no open permission {request_id}.")
        if remember is not None and remember not in suggestions(permission.request):
            raise Unprocessable(
                f"`remember` is none of the suggestions of {request_id}; send one of them as it is."
            )
        if behavior == "allow":
            tool_use_id = json_object(permission.request).get("tool_use_id")
            line = host_frames.allow(
                permission.agent_request_id,
                # The input is always echoed: older agents require it (stream-json.md §7).
                updated_input=dumps(updated_input)
                if updated_input is not None
                else input_of(permission.request),
                tool_use_id=tool_use_id if isinstance(tool_use_id, str) else None,
                updated_permissions=[dumps(remember)] if remember is not None else (),
            )
        else:
            line = host_frames.deny(permission.agent_request_id, message or "The user declined.")
        body: dict[str, Any] = {"outcome": behavior, "answered_by": answered_by}
        for key, value in (
            ("message", message),
            ("updated_input", updated_input),
            ("remember", remember),
        ):
            if value is not None:
                body[key] = value
        permission.state = "allow" if behavior == "allow" else "deny"
        permission.answered_by = answered_by
        del self.permissions[request_id]
        step.change.permissions.append(permission)
        self._store(
            step, "answer", dumps(body), at, thread=permission.thread, request_id=request_id
        )
        self._command(step, line)
        return permission

    def control(self, step: Step, line: str) -> None:
        """A control request of ours (interrupt, model, mode) to the agent that runs."""
        self._command(step, line)

    def reload_skills(self, step: Step, line: str) -> None:
        """Have the agent look at its skills again by `line`: at once where it is idle, else it is owed."""
        self.reload_due = self.row.state != "idle"
        if not self.reload_due:
            self._command(step, line)
        elif self.row.live:
            step.change.session["live"] = self.row.live  # what is owed is stored

    def close_stdin(self, step: Step) -> None:
        """Let the agent finish and leave (stream-json.md §11)."""
        self._command(step, None, end=True)

    def set_columns(self, step: Step, **columns: Any) -> None:
        """Title, model, permission mode or share, as a person set it."""
        for name, value in columns.items():
            if getattr(self.row, name) != value:
                setattr(self.row, name, value)
                step.change.session[name] = value

    def end(self, step: Step, at: int, *, purge: bool = False) -> None:
        """Nothing more will be asked of this session. Its agent is stopped by the owner.

        `purge`: once it has no agent it goes, with all that it said.
        """
        if purge and not self.purging:
            self.purging = True
            step.change.session["updated_at"] = at
        if self.row.ended_at is None:
            self.row.ended_at = at
            step.change.session["ended_at"] = at
            for prompt in self.prompts.values():
                prompt.state = "cancelled"
                step.change.prompts.append(prompt)
                self._settle(prompt.id)
            self.prompts.clear()


_KINDS: dict[str, Kind] = {"assistant": "assistant", "user": "user", "system": "system"}
