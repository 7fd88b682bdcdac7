"""What one session is, and the `Step` in which it changes. No I/O, no clock of its own.

What happens to it is told by `agent_lines` (the spool), `launches` (its agent's comings and goings)
and `acts` (people), with what is here. Out comes a `Step`: rows to commit in one transaction and
events to show afterwards, in order. The model is then ahead of the catalogue by that step, so the
owner either commits it or, for an act of a person that could not be stored, goes back to the save
point that it took before.
"""

from collections import OrderedDict
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from holdoverd.agents.stream_json import OpenBlocks
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
from holdoverd.errors import TooLarge
from holdoverd.sessions.bodies import dumps, json_object
from holdoverd.sessions.levels import Facts, TurnTracker, state_of

MAIN = "main"

MAX_RECENT_UUIDS = 4096
"""Frames are recognised by uuid (stream-json.md §13.2) among at least this many latest of the
session, and at most twice as many."""

MAX_LINE_BYTES = 16 * 1024 * 1024
"""The keeper's bound for one line of the agent's stdin (PROTOCOL.md)."""

_FLAGS = ("purging", "creating", "reload_due", "live_changed", "_saved_small")
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


@dataclass(slots=True)
class AgentProcess:
    """What the agent's present process has shown of itself; the next one begins anew.

    `ready`: it has answered the handshake or said something; `faults`: its unreadable lines;
    `initialize_id`: the handshake that it has yet to answer; `echoes`: it has echoed a prompt;
    `replying`: it is in the middle of a reply.
    """

    turn: TurnTracker = field(default_factory=TurnTracker)
    ready: bool = False
    faults: int = 0
    initialize_id: str | None = None
    echoes: bool = False
    replying: bool = False
    tool_threads: OrderedDict[str, str] = field(default_factory=OrderedDict)
    """{tool_use id: thread}, for uses outside `main` that have no result yet"""


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
        self.process = AgentProcess(
            TurnTracker(live.get("turn")),
            ready=bool(live.get("ready")),
            faults=int(live.get("faults") or 0),
            initialize_id=live.get("initialize_id"),
            echoes=bool(live.get("echoes")),
            replying=bool(live.get("replying")),
            tool_threads=OrderedDict(live.get("tool_threads") or {}),
        )
        # {name: line}, oldest heard first
        self.statuses: OrderedDict[str, str] = OrderedDict(live.get("statuses") or {})
        # The latest reply in `main`: what it says of its tokens is read when its turn is over.
        self.reply: str | None = None
        self.conversation_begun = bool(live.get("begun"))
        """The agent has taken a prompt at some time: it has a conversation to go on with."""
        self.creating = bool(live.get("creating"))
        """Nobody has been told of this session yet: it goes if its first launch does."""
        self.purging = bool(live.get("purging"))
        """The session has ended and goes, rows and all, as soon as it has no agent."""
        self.reload_due = bool(live.get("reload_due"))
        """Its skills were changed during a turn: the agent is told once that is over."""
        # Prompts that wait no more, so that a late echo of one is not taken for a foreign prompt.
        self.settled: OrderedDict[str, None] = OrderedDict()
        # The larger part of the live state is written out again only when it has changed.
        self.live_changed = False
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
                ready=self.process.ready,
                open_permissions=len(self.permissions),
                queued_prompts=len(self.prompts),
                turn_open=self.process.turn.open,
            )
        )

    @property
    def adopting(self) -> bool:
        """Its first agent is to go on with a conversation from elsewhere."""
        return self.creating and self.conversation_begun

    @property
    def turn_open(self) -> bool:
        return self.launch is not None and self.process.turn.open

    @property
    def has_tasks(self) -> bool:
        """The agent runs something in the background."""
        return self.launch is not None and self.process.turn.has_tasks

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

    def store(
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
        """Append a message to the log; a thread that nobody has opened opens beneath `main`."""
        row = self.threads.get(thread)
        if row is None:
            row = self.open_thread(step, thread, parent=MAIN, title=None)
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
        return self.store(step, "notice", body, at)

    def notice_cancelled(self, step: Step, prompt: PromptRow, at: int) -> None:
        self.notice(
            step,
            "prompt_cancelled",
            "A prompt was withdrawn before the agent took it up.",
            at,
            {"prompt_id": prompt.id, "seq": prompt.seq},
        )

    def withdraw(self, step: Step, permissions: Sequence[PermissionRow], at: int) -> None:
        """The agent waits for these no more; the log says so in the place of an answer."""
        for permission in permissions:
            permission.state = "withdrawn"
            del self.permissions[permission.request_id]
            step.change.permissions.append(permission)
            self.store(
                step,
                "answer",
                dumps({"outcome": "withdrawn", "answered_by": None}),
                at,
                thread=permission.thread,
                request_id=permission.request_id,
            )

    def seal(self, step: Step, at: int) -> Step:
        """Add what follows from the step as a whole: levels and the live state. Call it last."""
        state = self.state
        if state != self.row.state:
            self.row.state = state
            step.change.session["state"] = state
        if not step.must_commit:
            return step
        small = {
            "turn": self.process.turn.save(),
            "ready": self.process.ready,
            "faults": self.process.faults,
            "initialize_id": self.process.initialize_id,
            "echoes": self.process.echoes,
            "replying": self.process.replying,
            "begun": self.conversation_begun,
            "creating": self.creating,
            "purging": self.purging,
            "reload_due": self.reload_due,
        }
        if self.live_changed or small != self._saved_small:
            self.live_changed, self._saved_small = False, small
            self.row.live = dumps(
                {**small, "statuses": self.statuses, "tool_threads": self.process.tool_threads}
            )
            step.change.session["live"] = self.row.live
        self.row.updated_at = at
        step.change.session["updated_at"] = at
        return step

    # -- what it keeps track of ---------------------------------------------------------------

    def seen(self, uuid: str) -> bool:
        """Whether a frame or prompt of this uuid is among the latest."""
        return uuid in self.prompts or uuid in self._recent

    def seen_before(self, uuid: str | None) -> bool:
        """The same of a frame that has come, which counts as seen from now on."""
        if uuid is None:
            return False
        if uuid in self._recent:
            return True
        self._recent[uuid] = None
        if len(self._recent) > 2 * MAX_RECENT_UUIDS:
            self._recent = dict.fromkeys(list(self._recent)[-MAX_RECENT_UUIDS:])
        return False

    def settle(self, prompt_id: str) -> None:
        """The prompt waits no more, and a late echo of it is nobody else's."""
        self.settled[prompt_id] = None
        if len(self.settled) > MAX_RECENT_UUIDS:
            self.settled.popitem(last=False)

    def open_thread(self, step: Step, thread: str, *, parent: str, title: str | None) -> ThreadRow:
        row = ThreadRow(thread, parent, title, 0, "open")
        self.threads[thread] = row
        step.change.threads.append(row)
        step.levels_changed = True
        return row

    def close_thread(self, step: Step, thread: str | None) -> None:
        """The sub-agent of this thread is done; nothing where it is none, or `main`."""
        row = self.threads.get(thread or "")
        if row is not None and row.thread != MAIN and row.state != "done":
            # Nothing open in it will go on; an open block would pin the spool (`replay_from`).
            self.blocks.close(row.thread)
            row.state = "done"
            step.levels_changed = True
            if row not in step.change.threads:
                step.change.threads.append(row)

    def cut_turn(self, step: Step, by: Literal["agent", "reboot"] | None) -> None:
        """Mark the turn that was under way when the agent ended; None: another has begun."""
        if self.row.turn_cut != by:
            self.row.turn_cut = by
            step.change.session["turn_cut"] = by
            step.levels_changed = True

    def announce(self, step: Step) -> None:
        """Somebody is about to be told of this new session: it stays, whatever its launch does."""
        self.creating = False
        step.change.launch = self.launch
        step.levels_changed = True

    def fresh_process(self) -> None:
        """What was known of the agent's process is not true of the next."""
        self.process = AgentProcess()
        self.blocks = OpenBlocks()
        self.statuses.clear()
        self.reload_due = False  # it looks when it starts
        self.live_changed = True

    # -- what its agent is told ---------------------------------------------------------------

    def command(
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

    def control(self, step: Step, line: str) -> None:
        """A control request of ours (interrupt, model, mode) to the agent that runs."""
        self.command(step, line)

    def reload_skills(self, step: Step, line: str) -> None:
        """Have the agent look at its skills again by `line`: at once where it is idle, else it is owed."""
        self.reload_due = self.row.state != "idle"
        if not self.reload_due:
            self.command(step, line)
        elif self.row.live:
            step.change.session["live"] = self.row.live  # what is owed is stored

    def close_stdin(self, step: Step) -> None:
        """Let the agent finish and leave (stream-json.md §11)."""
        self.command(step, None, end=True)
