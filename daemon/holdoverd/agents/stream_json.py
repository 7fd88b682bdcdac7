"""Lines of an agent's stdout: cutting bytes into lines, and telling what each line is.

`LineSplitter` turns chunks into lines; `classify` turns a line into a `Frame`. Both are pure and
never raise on an agent's account. What is kept is the agent's own text (`Frame.raw`), unchanged;
the other fields are only what the daemon itself must know about it. Field names follow the
protocol; a field of an unexpected type counts as absent, it never spoils its neighbours.

A raw line travels unchanged inside wire frames that browsers hand to ``JSON.parse``, so a line
only counts as JSON if it is strictly so: valid UTF-8, no NaN, no bare control characters, no
trailing text, not nested deeper than `MAX_DEPTH`, no number beyond `MAX_DIGITS`.
"""

import re
from array import array
from collections.abc import Callable
from itertools import accumulate
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import DecodeError, Raw, Struct, ValidationError

from .frames import (
    MAIN,
    STORED,
    ControlRequest,
    ControlResponse,
    EndRecord,
    EventMessage,
    Frame,
    Kind,
    PendingRequest,
    StreamDelta,
    StreamEvent,
    ToolUse,
)
from .lines import MAX_LINE_BYTES, LineSplitter, OversizeLine
from .open_blocks import OpenBlocks

__all__ = [
    "MAIN",
    "MAX_DEPTH",
    "MAX_LINE_BYTES",
    "STORED",
    "ControlRequest",
    "ControlResponse",
    "EndRecord",
    "Frame",
    "Kind",
    "LineSplitter",
    "OpenBlocks",
    "OversizeLine",
    "PendingRequest",
    "StreamDelta",
    "StreamEvent",
    "ToolUse",
    "classify",
]

# Python's own readers stop near 1,000 levels, less what the caller's stack has used. A fixed
# limit well below makes the verdict the same wherever the line is read again.
MAX_DEPTH: Final = 400
# Identifiers become database keys, URLs and names in status lists; longer ones are not believed.
MAX_ID_CHARS: Final = 512
MAX_TITLE_CHARS: Final = 200

# `system` subtypes and other types that are part of the conversation and so are stored. The
# sets of the protocol are open: whatever stands in neither is passed on live.
_STORED_SUBTYPES: Final = frozenset(
    {
        "compact_boundary",
        "local_command_output",
        "informational",
        "permission_denied",
        "model_refusal_fallback",
        "model_refusal_no_fallback",
        "memory_recall",
        "files_persisted",
    }
)
_STORED_TYPES: Final = frozenset({"conversation_reset", "tool_use_summary"})
_IGNORED_TYPES: Final = frozenset({"keep_alive", "transcript_mirror"})
_SPOKEN: Final = frozenset({"assistant", "user"})
# How their lines usually begin; one that begins otherwise is only read the longer way.
_OPENINGS: Final = (
    b'{"type":"assistant"',
    b'{"type":"user"',
    b'{"type": "assistant"',
    b'{"type": "user"',
)
# Tools that start a sub-agent; their input says what it is for.
_AGENT_TOOLS: Final = frozenset({"Agent", "Task", "Skill"})


# What is read out of a line. Every field is optional; strings may be anything.


class _Block(Struct, gc=False):
    type: str | None = None
    id: str | None = None
    name: str | None = None
    tool_use_id: str | None = None
    input: Raw = Raw(b"")


class _Message(Struct, gc=False):
    id: str | None = None
    content: str | list[_Block] | None = None


class _Pending(Struct, gc=False):
    request_id: str | None = None
    request: Raw = Raw(b"")


class _Response(Struct, gc=False):
    subtype: str | None = None
    request_id: str | None = None
    error: str | None = None
    response: Raw = Raw(b"")
    pending_permission_requests: list[_Pending] | None = None


class _Receipt(Struct, gc=False):
    still_queued: list[str] | None = None
    cancelled: list[str] | None = None


class _Request(Struct, gc=False):
    subtype: str | None = None
    tool_name: str | None = None
    tool_use_id: str | None = None
    agent_id: str | None = None
    title: str | None = None
    display_name: str | None = None
    input: Raw = Raw(b"")
    permission_suggestions: Raw = Raw(b"")


class _Task(Struct, gc=False):
    task_id: str | None = None
    id: str | None = None


class _Patch(Struct, gc=False):
    status: str | None = None


class _AgentInput(Struct, gc=False):
    description: str | None = None
    skill: str | None = None


class _Envelope(Struct, gc=False):
    type: str | None = None
    subtype: str | None = None
    uuid: str | None = None
    session_id: str | None = None
    parent_tool_use_id: str | None = None
    message: str | _Message | None = None  # a plain string in permission_denied
    event: StreamEvent | None = None
    isReplay: bool | None = None  # noqa: N815 - the protocol's name
    user_message_uuid: str | None = None
    user_message_uuids: list[str] | None = None
    request_id: str | None = None
    request: Raw = Raw(b"")
    response: _Response | None = None
    state: str | None = None
    model: str | None = None
    permissionMode: str | None = None  # noqa: N815
    claude_code_version: str | None = None
    is_error: bool | None = None
    total_cost_usd: float | None = None
    queued_turn_count: int | None = None
    result_index: int | None = None
    terminal_reason: str | None = None
    startup_failure_reason: str | None = None
    task_id: str | None = None
    tool_use_id: str | None = None
    description: str | None = None
    status: Raw = Raw(b"")
    patch: _Patch | None = None
    tasks: list[_Task] | None = None
    command_uuid: str | None = None
    nonce: str | None = None
    signal: int | None = None
    oom: bool | None = None
    cut: bool | None = None
    at: int | None = None


class _Spoken(Struct, gc=False):
    """Those fields of `_Envelope` that count in ``assistant`` and ``user``: most lines, and all
    of the long ones, are these, and a smaller record is read and thrown away in half the time.
    """

    type: str | None = None
    subtype: str | None = None
    uuid: str | None = None
    session_id: str | None = None
    parent_tool_use_id: str | None = None
    message: str | _Message | None = None
    isReplay: bool | None = None  # noqa: N815 - the protocol's name
    user_message_uuid: str | None = None
    user_message_uuids: list[str] | None = None


_decode_envelope: Final = msgspec.json.Decoder(_Envelope).decode
_decode_spoken: Final = msgspec.json.Decoder(_Spoken).decode
_decode_fields: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_items: Final = msgspec.json.Decoder(list[Raw]).decode

_S = TypeVar("_S", bound=Struct)


# The structs inside structs, by (struct, field): alone, or as the items of a list.
_INSIDE: Final[dict[tuple[str, str], type[Struct]]] = {
    ("_Envelope", "message"): _Message,
    ("_Envelope", "event"): StreamEvent,
    ("_Envelope", "response"): _Response,
    ("_Envelope", "patch"): _Patch,
    ("StreamEvent", "message"): EventMessage,
    ("StreamEvent", "delta"): StreamDelta,
}
_LISTED: Final[dict[tuple[str, str], type[Struct]]] = {
    ("_Envelope", "tasks"): _Task,
    ("_Message", "content"): _Block,
    ("_Response", "pending_permission_requests"): _Pending,
}
# Per struct: {field: (decoder of the field's own type, struct inside it, struct of its items)}
_FieldPlan = dict[str, tuple[Callable[[Raw], Any], type[Struct] | None, type[Struct] | None]]


def _plan(struct: type[Struct]) -> _FieldPlan:
    plan: _FieldPlan = {}
    for field in msgspec.structs.fields(struct):
        place = (struct.__name__, field.name)
        decode = msgspec.json.Decoder(field.type).decode
        plan[field.name] = (decode, _INSIDE.get(place), _LISTED.get(place))
    return plan


_TOP: Final[tuple[type[Struct], ...]] = (_Envelope, _Request, _Receipt, _AgentInput)
_PLANS: Final[dict[type[Struct], _FieldPlan]] = {
    struct: _plan(struct) for struct in (*_TOP, *_INSIDE.values(), *_LISTED.values())
}


def _lenient(struct: type[_S], text: bytes | Raw) -> _S:
    """`struct` from a JSON object, field by field; a field of another type counts as absent.

    Raises `DecodeError` or `RecursionError` only if `text` is not JSON or not an object.
    """
    plan = _PLANS[struct]
    values: dict[str, object] = {}
    for name, raw in _decode_fields(text).items():
        if name not in plan:
            continue
        decode, inside, listed = plan[name]
        opening = bytes(memoryview(raw)[:1])
        try:
            if inside is not None and opening == b"{":
                values[name] = _lenient(inside, raw)
            elif listed is not None and opening == b"[":
                values[name] = [
                    _lenient(listed, item)
                    for item in _decode_items(raw)
                    if bytes(memoryview(item)[:1]) == b"{"
                ]
            else:
                values[name] = decode(raw)
        except DecodeError:
            continue
    return struct(**values)


def _read(struct: type[_S], decode: Callable[[bytes | Raw], _S], text: bytes | Raw) -> _S:
    """`struct` from a JSON text, empty where the text is no object of that kind at all."""
    try:
        return decode(text)
    except ValidationError:
        try:
            return _lenient(struct, text)
        except DecodeError:
            return struct()


_decode_request: Final = msgspec.json.Decoder(_Request).decode
_decode_receipt: Final = msgspec.json.Decoder(_Receipt).decode
_decode_agent_input: Final = msgspec.json.Decoder(_AgentInput).decode
_decode_status: Final = msgspec.json.Decoder(int | str | None).decode

# Every escape, so that the `\\` before a literal "ud800" is consumed as the pair it is.
_ESCAPES: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|u([dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def _without_lone_surrogates(line: bytes) -> bytes:
    """The line with every lone surrogate escape replaced by one of equal length.

    Agents written in JavaScript cut strings between the halves of a pair and print ``\\ud83d``.
    That is JSON, and browsers read it; msgspec refuses it. Only the copy that is parsed is mended.
    """
    return _ESCAPES.sub(lambda m: rb"\ufffd" if m.group(1) else m.group(0), line)


_STRINGS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # +1, -1 as signed bytes


def _too_deep(line: bytes) -> bool:
    """Whether a valid JSON text nests deeper than `MAX_DEPTH`; nearly free for usual lines."""
    if len(line) <= 2 * MAX_DEPTH:
        return False
    # Finding is several times faster than counting, and most lines hold one list at most.
    few = line.find(b"[", line.find(b"[") + 1) < 0
    lists = 1 if few else line.count(b"[")
    # An object in an object takes five bytes at least, as in {"":{}}: a short line needs no look.
    if lists + len(line) // 5 < MAX_DEPTH or lists + line.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _STRINGS.sub(b"", line).translate(_STEPS, _NOT_BRACKETS)
    return max(accumulate(array("b", brackets))) > MAX_DEPTH


# json.loads, which clients written in Python read us with, refuses integers of more digits.
MAX_DIGITS: Final = 4000
_TWO_DIGITS: Final = re.compile(rb"[0-9]{2}")
_LONG_NUMBER: Final = re.compile(rb"[0-9]{%d}" % (MAX_DIGITS + 1))


def _too_long_a_number(line: bytes) -> bool:
    """Whether a number (not: digits in a string) has more than `MAX_DIGITS` digits in a row."""
    if len(line) <= MAX_DIGITS:
        return False
    # So many digits in a row cover two neighbours of these samples, which few texts do.
    if not _TWO_DIGITS.search(line[:: MAX_DIGITS // 2]) or not _LONG_NUMBER.search(line):
        return False
    return _LONG_NUMBER.search(_STRINGS.sub(b"", line)) is not None


def _clean(text: str | None) -> str | None:
    """An identifier fit to be a key, or None; see `MAX_ID_CHARS`."""
    if text and len(text) <= MAX_ID_CHARS and text.isprintable():
        return text
    return None


def _title(text: str | None) -> str | None:
    """One line of text for people, bounded and printable."""
    if not text:
        return None
    shown = " ".join(text[: 2 * MAX_TITLE_CHARS].split())
    shown = "".join(c if c.isprintable() else "\ufffd" for c in shown)
    if len(shown) > MAX_TITLE_CHARS or len(text) > 2 * MAX_TITLE_CHARS:
        shown = shown[: MAX_TITLE_CHARS - 1] + "…"
    return shown or None


def _text(raw: Raw, parsed: bytes, original: bytes) -> str | None:
    """The agent's own text of a JSON value that was found in `parsed`; None where absent."""
    value = bytes(raw)
    if not value:
        return None
    if parsed is not original:
        # Mending kept every length, so the same slice of the original is what was really said.
        start = parsed.find(value)
        value = original[start : start + len(value)]
    return value.decode()


def _ids(values: list[str] | None) -> tuple[str, ...]:
    return tuple(value for value in values or () if _clean(value))


def classify(line: bytes) -> Frame:
    """What `line` (without its newline) is. Never raises.

    ``user`` `assistant` `result` `system`: a message of the log. ``replay``: the agent's echo of
    a prompt. ``delta``: part of a message in the making. ``status``: anything else, live only,
    the unknown included. ``end``: claims to be a keeper's end record. ``ignore``: blank or a
    heartbeat. ``noise``: no JSON object by its first byte; ``invalid``: one, but not strict JSON;
    for both `raw` is the line as far as it is UTF-8.
    """
    if not line.startswith(b"{"):
        blank = not line or line.isspace()
        return Frame("ignore" if blank else "noise", line.decode("utf-8", "replace"))
    try:
        raw = line.decode()
    except UnicodeDecodeError:
        return Frame("invalid", line.decode("utf-8", "replace"))
    parsed = line
    try:
        if line.startswith(_OPENINGS):
            try:
                spoken = _decode_spoken(line)
            except ValidationError:
                pass  # read leniently below
            else:
                if spoken.type in _SPOKEN and not (_too_deep(line) or _too_long_a_number(line)):
                    parent = spoken.parent_tool_use_id
                    if parent is not None:
                        parent = _clean(parent)
                    return _conversation_frame(spoken, raw, parent, parent or MAIN)
        try:
            found = _decode_envelope(line)
        except ValidationError:
            found = _lenient(_Envelope, line)
    except RecursionError:
        return Frame("invalid", raw)
    except DecodeError:
        if not _SURROGATE.search(line):
            return Frame("invalid", raw)
        parsed = _without_lone_surrogates(line)
        try:
            found = _lenient(_Envelope, parsed)
        except (DecodeError, RecursionError):
            return Frame("invalid", raw)
    if _too_deep(line) or _too_long_a_number(line):
        return Frame("invalid", raw)
    return _frame(found, raw, parsed, line)


def _frame(found: _Envelope, raw: str, parsed: bytes, line: bytes) -> Frame:
    kind = found.type
    parent = _clean(found.parent_tool_use_id)
    thread = parent or MAIN
    if kind == "stream_event":
        return Frame(
            "delta",
            raw,
            kind,
            None,
            _clean(found.uuid),
            _clean(found.session_id),
            parent,
            thread,
            event=found.event,
        )
    if kind in _SPOKEN:
        return _conversation_frame(found, raw, parent, thread)
    if kind == "result":
        return Frame(
            "result",
            raw,
            kind,
            _clean(found.subtype),
            _clean(found.uuid),
            _clean(found.session_id),
            parent,
            thread,
            user_message_uuids=_answered(found),
            is_error=found.is_error is True,
            total_cost_usd=found.total_cost_usd,
            queued_turn_count=found.queued_turn_count,
            result_index=found.result_index,
            terminal_reason=_clean(found.terminal_reason),
            startup_failure_reason=_clean(found.startup_failure_reason),
        )
    if kind == "control_request" and (request_id := _clean(found.request_id)):
        request = _control_request(found.request, parsed, line)
        return Frame("control_request", raw, kind, request_id=request_id, request=request)
    if kind == "control_cancel_request" and (request_id := _clean(found.request_id)):
        return Frame("control_cancel", raw, kind, request_id=request_id)
    if kind == "control_response" and found.response is not None:
        answer = found.response
        if request_id := _clean(answer.request_id):
            response = _control_response(answer, parsed, line)
            return Frame("control_response", raw, kind, request_id=request_id, response=response)
    if kind == "holdover_end":
        return Frame("end", raw, kind, end=_end_record(found))
    if kind in _IGNORED_TYPES:
        return Frame("ignore", raw, kind)
    return _status_frame(found, raw, parent, thread)


def _answered(found: _Envelope | _Spoken) -> tuple[str, ...]:
    if found.user_message_uuids is not None:
        return _ids(found.user_message_uuids)
    return _ids([found.user_message_uuid]) if found.user_message_uuid else ()


def _conversation_frame(
    found: _Envelope | _Spoken, raw: str, parent: str | None, thread: str
) -> Frame:
    message = found.message if isinstance(found.message, _Message) else None
    content = message.content if message is not None else None
    uses: tuple[ToolUse, ...] = ()
    results: tuple[str, ...] = ()
    if isinstance(content, list):
        for block in content:
            if block.type == "tool_use" and (use_id := _clean(block.id)):
                name = _clean(block.name) or "?"
                uses += (ToolUse(use_id, name, _purpose(name, block.input)),)
            elif block.type == "tool_result" and (use_id := _clean(block.tool_use_id)):
                results += (use_id,)
    kind: Literal["assistant", "user", "replay"] = "assistant"
    if found.type != "assistant":
        kind = "replay" if found.isReplay is True else "user"
    subtype, session_id = found.subtype, found.session_id
    answers = found.user_message_uuid is not None or found.user_message_uuids is not None
    return Frame(
        kind,
        raw,
        found.type,
        None if subtype is None else _clean(subtype),
        _clean(found.uuid),
        None if session_id is None else _clean(session_id),
        parent,
        thread,
        None if message is None else _clean(message.id),
        uses,
        results,
        _answered(found) if answers else (),
    )


def _purpose(name: str, given: Raw) -> str | None:
    if name not in _AGENT_TOOLS or not bytes(given):
        return None
    wanted = _read(_AgentInput, _decode_agent_input, given)
    return _title(wanted.description or wanted.skill)


def _control_request(request: Raw, parsed: bytes, line: bytes) -> ControlRequest:
    asked = _read(_Request, _decode_request, request) if bytes(request) else _Request()
    return ControlRequest(
        _text(request, parsed, line) or "null",
        _clean(asked.subtype),
        _clean(asked.tool_name),
        _clean(asked.tool_use_id),
        _clean(asked.agent_id),
        _title(asked.title or asked.display_name),
        _text(asked.input, parsed, line),
        _text(asked.permission_suggestions, parsed, line),
    )


def _control_response(answer: _Response, parsed: bytes, line: bytes) -> ControlResponse:
    receipt = _Receipt()
    if bytes(answer.response):
        receipt = _read(_Receipt, _decode_receipt, answer.response)
    pending: tuple[PendingRequest, ...] | None = None
    if answer.pending_permission_requests is not None:
        pending = tuple(
            PendingRequest(request_id, _control_request(one.request, parsed, line))
            for one in answer.pending_permission_requests
            if (request_id := _clean(one.request_id))
        )
    return ControlResponse(
        answer.subtype == "success",
        answer.error,
        _text(answer.response, parsed, line),
        None if receipt.still_queued is None else _ids(receipt.still_queued),
        None if receipt.cancelled is None else _ids(receipt.cancelled),
        pending,
    )


def _status(raw: Raw) -> int | str | None:
    try:
        return _decode_status(raw) if bytes(raw) else None
    except DecodeError:
        return None


def _end_record(found: _Envelope) -> EndRecord:
    status = _status(found.status)
    return EndRecord(
        found.nonce,
        status if isinstance(status, int) else None,
        found.signal,
        found.oom is True,
        found.cut is True,
        found.at,
    )


def _status_frame(found: _Envelope, raw: str, parent: str | None, thread: str) -> Frame:
    kind, subtype = found.type, _clean(found.subtype)
    stored = kind in _STORED_TYPES or (kind == "system" and subtype in _STORED_SUBTYPES)
    task_id, tool_use_id = _clean(found.task_id), _clean(found.tool_use_id)
    name = subtype or _clean(kind) or "unknown"
    if about := task_id or tool_use_id:
        name = f"{name}:{about}"
    status = _status(found.status)
    if found.patch is not None:
        status = found.patch.status
    tasks: tuple[str, ...] | None = None
    if subtype == "background_tasks_changed" and found.tasks is not None:
        tasks = tuple(
            task_id for task in found.tasks if (task_id := _clean(task.task_id or task.id))
        )
    return Frame(
        "system" if stored else "status",
        raw,
        _clean(kind),
        subtype,
        _clean(found.uuid),
        _clean(found.session_id),
        parent,
        thread,
        user_message_uuids=_answered(found),
        status_name=None if stored else name[:MAX_ID_CHARS],
        state=_clean(found.state),
        model=_clean(found.model),
        permission_mode=_clean(found.permissionMode),
        version=_clean(found.claude_code_version),
        command_uuid=_clean(found.command_uuid),
        task_id=task_id,
        tool_use_id=tool_use_id,
        task_status=_clean(status) if isinstance(status, str) else None,
        task_title=_title(found.description),
        background_tasks=tasks,
    )
