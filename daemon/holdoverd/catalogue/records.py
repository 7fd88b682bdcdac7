"""What the catalogue stores, as plain records: rows in, rows out, no database in sight.

A session's owner computes a `Change` from the rules, commits it whole or not at all
(`sessions.apply_change`), and only then lets anyone hear of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, Literal, TypeVar

from msgspec import Struct

Kind = Literal[
    "user", "assistant", "result", "system", "permission", "answer", "notice"
]  # contract.md, Messages


class MessageRow(Struct, gc=False):
    """One stored line. `body` is the agent's own line, unchanged, or JSON text of Holdover's.

    A Struct, unlike the others: there may be tens of thousands a second of these, and a Struct is
    made by C and not walked by the garbage collector.
    """

    seq: int
    n: int
    thread: str
    at: int
    kind: Kind
    uuid: str | None
    client_id: str | None
    request_id: str | None
    body: str


@dataclass(slots=True)
class ThreadRow:
    """A conversation in a session: ``main``, or one sub-agent named by its tool_use id."""

    thread: str
    parent_thread: str | None
    title: str | None
    n: int
    state: Literal["open", "done"]


@dataclass(slots=True)
class PermissionRow:
    """A question of the agent's. `request` is the JSON text of its control_request's ``request``."""

    request_id: str
    agent_request_id: str
    launch: str
    seq: int
    thread: str
    request: str
    at: int
    state: Literal["open", "allow", "deny", "withdrawn"] = "open"
    answered_by: str | None = None


@dataclass(slots=True)
class PromptRow:
    """A prompt and how far it came.

    ``queued``: not yet echoed by an agent; ``echoed``: the agent has taken it; ``cancelled``;
    ``uncertain``: its agent died and nothing shows whether the prompt was seen.
    `launch` is the launch whose keeper it was numbered for, None while no agent runs.
    """

    id: str
    seq: int
    digest: str
    state: Literal["queued", "echoed", "cancelled", "uncertain"]
    launch: str | None


@dataclass(slots=True)
class OutboxRow:
    """One numbered command for a launch's keeper: a line for its agent, or the end of its stdin.

    `line` None means: the body of message `seq`.
    """

    launch: str
    n: int
    kind: Literal["line", "end"]
    line: str | None
    seq: int | None


@dataclass(slots=True)
class LaunchRow:
    """One start of an agent process, its spool and how far that has been read.

    `offset`: every line before it is in the catalogue or was live only. `replay_from` <= `offset`:
    where a new owner starts reading to rebuild the open blocks shown live. `state`: ``starting``
    (the right to launch is taken, no answer yet), ``live``, ``ended`` (read to its end).
    `outcome`: JSON text of the end record, None while unknown.
    """

    id: str
    session: str
    nonce: str
    owner_epoch: int
    state: Literal["starting", "live", "ended"]
    offset: int
    replay_from: int
    last_n: int
    created_at: int
    boot_id: str
    agent_pid: int | None = None
    keeper_pid: int | None = None
    outcome: str | None = None


@dataclass(slots=True)
class SessionRow:
    """A session as stored; the wire's form adds threads, pending permissions and queued prompts."""

    id: str
    epoch: str
    owner: str
    account: str
    agent: str
    agent_session: str
    cwd: str | None
    title: str | None
    model: str | None
    permission_mode: str
    share: Literal["read", "write"] | None
    state: str
    last_seq: int
    cost_usd: float
    context: str | None
    host: str
    generation: int
    release: str
    owner_epoch: int
    error: str | None
    live: str
    created_at: int
    updated_at: int
    ended_at: int | None
    turn_cut: Literal["agent", "reboot"] | None = None
    """What cut the latest turn off, until another begins."""


@dataclass(slots=True)
class Change:
    """Everything one step alters in one session; stored in one transaction, fenced by its epoch.

    `session` holds column values of `SessionRow` to set. Thread, permission, prompt and launch
    rows are upserts by key; `outbox_acked` = (launch, n) deletes that launch's rows up to n.
    `job_told` is a job whose end the messages tell of: once only.
    """

    messages: list[MessageRow] = field(default_factory=list)
    threads: list[ThreadRow] = field(default_factory=list)
    permissions: list[PermissionRow] = field(default_factory=list)
    prompts: list[PromptRow] = field(default_factory=list)
    outbox: list[OutboxRow] = field(default_factory=list)
    outbox_acked: tuple[str, int] | None = None
    launch: LaunchRow | None = None
    job_told: str | None = None
    session: dict[str, object] = field(default_factory=dict)

    def detach(self) -> None:
        """Hold copies of the rows: whoever has the originals may go on while these are stored."""
        self.threads = [_copied(row) for row in self.threads]
        self.permissions = [_copied(row) for row in self.permissions]
        self.prompts = [_copied(row) for row in self.prompts]
        self.launch = None if self.launch is None else _copied(self.launch)


_R = TypeVar("_R", ThreadRow, PermissionRow, PromptRow, LaunchRow)
_VALUES: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    of: attrgetter(*(item.name for item in fields(of)))
    for of in (ThreadRow, PermissionRow, PromptRow, LaunchRow)
}


def _copied(row: _R) -> _R:
    """As `copy.copy`, in a third of the time: there are two for every line of a slow agent."""
    return type(row)(*_VALUES[type(row)](row))
