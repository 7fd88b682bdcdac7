"""What one line of an agent's stdout is: the records that `classify` hands out."""

from typing import Final, Literal

from msgspec import Raw, Struct

MAIN: Final = "main"

Kind = Literal[
    "user",
    "assistant",
    "result",
    "system",
    "delta",
    "status",
    "control_request",
    "control_response",
    "control_cancel",
    "replay",
    "end",
    "ignore",
    "noise",
    "invalid",
]
#: Kinds that become messages of the session's log.
STORED: Final[frozenset[Kind]] = frozenset({"user", "assistant", "result", "system"})


class ToolUse(Struct, frozen=True, gc=False):
    """A tool call in an assistant frame. `title` is set for tools that start a sub-agent."""

    id: str
    name: str
    title: str | None = None


class ControlRequest(Struct, frozen=True, gc=False):
    """The agent's question. `raw`, `input` and `suggestions` are its own JSON texts, unchanged."""

    raw: str
    subtype: str | None = None
    tool_name: str | None = None
    tool_use_id: str | None = None
    agent_id: str | None = None
    title: str | None = None
    input: str | None = None
    suggestions: str | None = None


class PendingRequest(Struct, frozen=True, gc=False):
    """A question that was open when the agent answered `initialize`; it may also come live."""

    request_id: str
    request: ControlRequest


class ControlResponse(Struct, frozen=True, gc=False):
    """The agent's answer to one of our requests; the id stands in `Frame.request_id`.

    `response` is its JSON text. `still_queued` and `cancelled` are an interrupt's receipt,
    None where the agent gives none. `pending` is None where the agent does not say, which
    does not mean that nothing is open.
    """

    ok: bool
    error: str | None = None
    response: str | None = None
    still_queued: tuple[str, ...] | None = None
    cancelled: tuple[str, ...] | None = None
    pending: tuple[PendingRequest, ...] | None = None


class EndRecord(Struct, frozen=True, gc=False):
    """How the agent ended, by its keeper. Only believe it if `nonce` is the launch's."""

    nonce: str | None
    status: int | None
    signal: int | None
    oom: bool
    cut: bool
    at: int | None


class StreamDelta(Struct, frozen=True, gc=False):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class EventMessage(Struct, frozen=True, gc=False):
    id: str | None = None


class StreamEvent(Struct, frozen=True, gc=False):
    """The event inside a `stream_event`. `content_block` is JSON, empty where there is none."""

    type: str | None = None
    index: int | None = None
    message: EventMessage | None = None
    content_block: Raw = Raw(b"")
    delta: StreamDelta | None = None


class Frame(Struct, frozen=True, gc=False):
    """One line of an agent's stdout; see the module for what `kind` and `raw` promise.

    `thread` is ``"main"`` or the id of the tool use whose agent speaks. Identifiers that are
    absurdly long or not printable count as absent. A `control_*` kind always has `request_id`.
    """

    kind: Kind
    raw: str
    type: str | None = None
    subtype: str | None = None
    uuid: str | None = None
    session_id: str | None = None
    parent_tool_use_id: str | None = None
    thread: str = MAIN
    #: assistant frames: the API message this block belongs to
    message_id: str | None = None
    tool_uses: tuple[ToolUse, ...] = ()
    #: ids of the tool uses that this user frame answers
    tool_results: tuple[str, ...] = ()
    #: prompts that this frame answers, by the uuid they were sent with
    user_message_uuids: tuple[str, ...] = ()
    #: live-only frames: the name under which the latest one is remembered
    status_name: str | None = None
    event: StreamEvent | None = None
    request_id: str | None = None
    request: ControlRequest | None = None
    response: ControlResponse | None = None
    end: EndRecord | None = None
    #: session_state_changed: idle | running | requires_action; command_lifecycle: queued |
    #: started | completed | cancelled, of the prompt `command_uuid`
    state: str | None = None
    command_uuid: str | None = None
    #: system/init, and status frames that name it
    model: str | None = None
    permission_mode: str | None = None
    version: str | None = None
    #: result frames
    is_error: bool = False
    total_cost_usd: float | None = None
    queued_turn_count: int | None = None
    result_index: int | None = None
    terminal_reason: str | None = None
    startup_failure_reason: str | None = None
    #: task frames, tool_progress
    task_id: str | None = None
    tool_use_id: str | None = None
    task_status: str | None = None
    task_title: str | None = None
    #: background_tasks_changed: the ids that run now (replaces what was known)
    background_tasks: tuple[str, ...] | None = None
