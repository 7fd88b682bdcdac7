"""Records for the tests of the catalogue: valid, small, and different where it matters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from holdoverd.catalogue.records import (
    Change,
    LaunchRow,
    MessageRow,
    OutboxRow,
    PermissionRow,
    PromptRow,
    SessionRow,
    ThreadRow,
)

SESSION = "s_0000000000000001"

# A test of what SQLite alone does.
on_sqlite = pytest.mark.parametrize("database", ["sqlite"])

_ROW = SessionRow(
    id=SESSION,
    epoch="e1",
    owner="default",
    account="holdover-agent",
    agent="demo",
    agent_session="0b9e4c6e-5f2a-4d2c-9d0d-9a3c7d1f2b11",
    cwd="/srv/project",
    title="A title",
    model=None,
    permission_mode="default",
    share=None,
    state="idle",
    last_seq=0,
    cost_usd=0.0,
    context=None,
    host="alpha",
    generation=1,
    release="0.1.0",
    owner_epoch=1,
    error=None,
    live="{}",
    created_at=1_000,
    updated_at=1_000,
    ended_at=None,
)


def session_id(number: int) -> str:
    return f"s_{number:016d}"


def a_session(**changed: Any) -> SessionRow:
    return replace(_ROW, **changed)


def main_thread(n: int = 0) -> ThreadRow:
    return ThreadRow("main", None, None, n, "open")


def message(seq: int, n: int | None = None, **changed: Any) -> MessageRow:
    """A message of `main` whose n is its seq, unless told otherwise."""
    body = f'{{"type":"assistant","number":{seq}}}'
    row = MessageRow(
        seq, seq if n is None else n, "main", 2_000 + seq, "assistant", f"u{seq}", None, None, body
    )
    return structs.replace(row, **changed)


def messages(first: int, last: int) -> list[MessageRow]:
    return [message(seq) for seq in range(first, last + 1)]


def a_launch(name: str = "l_1", **changed: Any) -> LaunchRow:
    row = LaunchRow(
        id=name,
        session=SESSION,
        nonce="0" * 32,
        owner_epoch=1,
        state="live",
        offset=0,
        replay_from=0,
        last_n=0,
        created_at=3_000,
        boot_id="boot",
    )
    return replace(row, **changed)


def a_permission(request_id: str = "p_1", **changed: Any) -> PermissionRow:
    row = PermissionRow(
        request_id, "req-7", "l_1", 1, "main", '{"subtype":"can_use_tool"}', 4_000, "open", None
    )
    return replace(row, **changed)


def a_prompt(name: str = "prompt-1", **changed: Any) -> PromptRow:
    return replace(PromptRow(name, 1, "digest", "queued", None), **changed)


def full_change() -> Change:
    """A change with every piece in it, for a session that has nothing yet."""
    return Change(
        messages=[message(1), message(2, 1, thread="toolu_1"), message(3, 2)],
        threads=[main_thread(2), ThreadRow("toolu_1", "main", "Look around", 1, "open")],
        permissions=[a_permission()],
        prompts=[a_prompt()],
        outbox=[OutboxRow("l_1", 1, "line", None, 1), OutboxRow("l_1", 2, "line", "{}", None)],
        launch=a_launch(last_n=2),
        session={"state": "waiting", "updated_at": 5_000, "cost_usd": 0.25},
    )
