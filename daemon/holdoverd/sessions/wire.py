"""Sessions and messages in the wire's form (contract.md, Sessions). Text out, ready to send.

A message's body goes out as the text it came as: it is never parsed and written again.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from holdoverd.catalogue.messages import (
    PREVIEW_CHARACTERS,
    WHOLE_BODY_BYTES,
    StoredMessage,
    body_size,
)
from holdoverd.catalogue.records import MessageRow, PermissionRow, SessionRow, ThreadRow
from holdoverd.sessions.model import MAIN

_encode = msgspec.json.Encoder().encode
_MAIN = f'"{MAIN}"'


def dumps(value: object) -> str:
    """JSON text of plain values; an unpaired surrogate becomes an escape, as JSON wants it."""
    try:
        return _encode(value).decode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))


def message_json(row: MessageRow) -> str:
    """One message. `row.body` is valid JSON text; it is embedded unchanged."""
    body = row.body
    # A character has at most four bytes: shorter texts need no counting.
    if len(body) > WHOLE_BODY_BYTES // 4 or type(row) is StoredMessage:
        body = _shown_body(row)
    # Once for every line of every agent: what needs no encoder does without.
    thread = _MAIN if row.thread == MAIN else dumps(row.thread)
    uuid = "null" if row.uuid is None else dumps(row.uuid)
    if row.client_id is None and row.request_id is None:
        ids = '"client_id":null'
    else:
        ids = f'"client_id":{dumps(row.client_id)}'
        if row.request_id is not None:
            ids += f',"request_id":{dumps(row.request_id)}'
    return (
        f'{{"seq":{row.seq},"n":{row.n},"thread":{thread},"at":{row.at},"kind":"{row.kind}",'
        f'"uuid":{uuid},{ids},"body":{body}}}'
    )


def _shown_body(row: MessageRow) -> str:
    """The body, or its beginning in the contract's form where it is over `WHOLE_BODY_BYTES`."""
    if isinstance(row, StoredMessage):
        size = row.size if row.truncated else 0
    else:
        size = body_size(row.body)
    if size <= WHOLE_BODY_BYTES:
        return row.body
    return dumps({"truncated": True, "size": size, "preview": row.body[:PREVIEW_CHARACTERS]})


def messages_frame(messages: Iterable[str]) -> str:
    """The stream's ``messages`` frame around messages in wire form."""
    return f'{{"type":"messages","messages":[{",".join(messages)}]}}'


def permission_view(row: PermissionRow) -> dict[str, Any]:
    """A pending permission (contract.md, after the session's fields)."""
    request = json.loads(row.request)
    return {
        "request_id": row.request_id,
        "seq": row.seq,
        "thread": row.thread,
        "tool_name": request.get("tool_name"),
        "input": request.get("input"),
        "suggestions": request.get("permission_suggestions") or [],
        "title": request.get("title") or request.get("display_name"),
        "at": row.at,
    }


def session_view(
    row: SessionRow,
    threads: Sequence[ThreadRow],
    permissions: Sequence[PermissionRow],
    queued: Sequence[str],
) -> dict[str, Any]:
    """A session's wire form as plain values; `permissions` are the open ones, `queued` prompt ids."""
    ordered = sorted(threads, key=lambda t: t.thread != MAIN)
    pending = sorted(permissions, key=lambda p: p.seq)
    return {
        "id": row.id,
        "epoch": row.epoch,
        "owner": row.owner,
        "account": row.account,
        "agent": row.agent,
        "agent_session": row.agent_session,
        "cwd": row.cwd,
        "title": row.title,
        "model": row.model,
        "permission_mode": row.permission_mode,
        "share": row.share,
        "state": row.state,
        "last_seq": row.last_seq,
        "threads": [
            {
                "thread": t.thread,
                "parent_thread": t.parent_thread,
                "title": t.title,
                "n": t.n,
                "state": t.state,
            }
            for t in ordered
        ],
        "pending": [permission_view(p) for p in pending],
        "queued": list(queued),
        "cost_usd": row.cost_usd,
        "context": json.loads(row.context) if row.context else None,
        "host": row.host,
        "generation": row.generation,
        "release": row.release,
        "error": json.loads(row.error) if row.error else None,
        "turn_cut": row.turn_cut,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "ended_at": row.ended_at,
    }


def levels_of(view: dict[str, Any]) -> tuple[Any, ...]:
    """What a ``session`` frame is sent for: everything but counters and clocks."""
    return (
        [(t["thread"], t["title"], t["state"]) for t in view["threads"]],
        [p["request_id"] for p in view["pending"]],
        view["queued"],
        *(
            view[key]
            for key in (
                "state",
                "title",
                "model",
                "permission_mode",
                "share",
                "cwd",
                "cost_usd",
                "context",
                "error",
                "turn_cut",
                "generation",
                "ended_at",
            )
        ),
    )
