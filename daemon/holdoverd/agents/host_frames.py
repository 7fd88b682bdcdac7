"""Lines that a host writes to an agent's stdin. Pure: arguments in, one line of JSON out.

Every function returns a single line without its newline. Values that are JSON already (an
input to echo, a suggestion to apply) are passed as text and embedded as they are: what the
agent said goes back to it unchanged.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from ..errors import BadRequest

PERMISSION_MODES: Final = ("default", "acceptEdits", "plan", "bypassPermissions", "dontAsk", "auto")

_CONTENT = dict[str, Any]


def initialize(request_id: str, *, title: str | None = None) -> str:
    """The first line to a new process. Its answer names commands, models, open permissions.

    Asks for sub-agents' text (their threads are shown), for interrupts that spare background
    tasks, and for no dialog kinds: an undeclared kind must not be answered.
    """
    request: dict[str, object] = {
        "subtype": "initialize",
        "hooks": None,
        "forwardSubagentText": True,
        "promptSuggestions": False,
        "agentProgressSummaries": True,
        "perTaskStopAffordance": True,
        "supportedDialogKinds": [],
    }
    if title is not None:
        request["title"] = title
    return _control_request(request_id, request)


def user_prompt(
    prompt_id: str,
    content: str | Sequence[Mapping[str, Any]],
    *,
    agent_session: str,
    human: bool = True,
) -> str:
    """A prompt; `prompt_id` (the client's uuid) comes back in the replay echo.

    `human` stamps the origin as the keyboard; prompts of other origins are not to pass gates
    that ask for a person. Text becomes one text block, blocks are sent as given.
    """
    blocks: Sequence[Mapping[str, Any]]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    line: dict[str, object] = {
        "type": "user",
        "uuid": prompt_id,
        "session_id": agent_session,
        "parent_tool_use_id": None,
        "message": {"role": "user", "content": blocks},
    }
    if human:
        line["origin"] = {"kind": "human"}
    return _line(line)


def allow(
    request_id: str,
    *,
    updated_input: str,
    tool_use_id: str | None = None,
    updated_permissions: Sequence[str] = (),
) -> str:
    """Permission granted. `updated_input` (JSON) is always sent: older agents require it.

    `updated_permissions` are the chosen suggestions, each JSON.
    """
    answer: dict[str, object] = {"behavior": "allow", "updatedInput": _json(updated_input)}
    if updated_permissions:
        answer["updatedPermissions"] = [_json(text) for text in updated_permissions]
    if tool_use_id is not None:
        answer["toolUseID"] = tool_use_id
    return _success(request_id, answer)


def deny(request_id: str, message: str, *, interrupt: bool = False) -> str:
    """Permission refused; `message` is what the model reads, `interrupt` also ends its turn."""
    return _success(request_id, {"behavior": "deny", "message": message, "interrupt": interrupt})


def unsupported(request_id: str, subtype: str | None) -> str:
    """The answer to a request we do not know, so that the agent does not wait for ever."""
    return error_response(request_id, f"unsupported subtype {subtype or '(none)'}")


def error_response(request_id: str, error: str) -> str:
    """A control request of the agent's that failed."""
    response = {"subtype": "error", "request_id": request_id, "error": error}
    return _line({"type": "control_response", "response": response})


def interrupt(request_id: str, *, cancel_queued: bool = False) -> str:
    """Stop the current turn. The receipt lists the prompts that will run all the same."""
    request: dict[str, object] = {"subtype": "interrupt"}
    if cancel_queued:
        request["cancel_queued"] = True
    return _control_request(request_id, request)


def set_model(request_id: str, model: str | None) -> str:
    """Change the model from the next turn on; None is the agent's default."""
    return _control_request(request_id, {"subtype": "set_model", "model": model})


def set_permission_mode(request_id: str, mode: str) -> str:
    """Change the permission mode; lost when the process ends, so the host sets it again."""
    return _control_request(
        request_id, {"subtype": "set_permission_mode", "mode": check_permission_mode(mode)}
    )


def reload_skills(request_id: str) -> str:
    """Look at the skills' folders again; the agent itself does so when it starts."""
    return _control_request(request_id, {"subtype": "reload_skills"})


def cancel_async_message(request_id: str, prompt_id: str) -> str:
    """Withdraw a queued prompt; the answer tells whether that was still possible."""
    return _control_request(
        request_id, {"subtype": "cancel_async_message", "message_uuid": prompt_id}
    )


def check_permission_mode(mode: str) -> str:
    """`mode`, if the protocol knows it; else `BadRequest`."""
    if mode not in PERMISSION_MODES:
        raise BadRequest(
            f"permission_mode {mode[:64]!r} is not known; use one of {', '.join(PERMISSION_MODES)}"
        )
    return mode


def _control_request(request_id: str, request: Mapping[str, object]) -> str:
    return _line({"type": "control_request", "request_id": request_id, "request": request})


def _success(request_id: str, answer: Mapping[str, object]) -> str:
    response = {"subtype": "success", "request_id": request_id, "response": answer}
    return _line({"type": "control_response", "response": response})


def _json(text: str) -> Raw:
    # A JSON text may hold newlines between its tokens, a line may not. Inside strings a
    # newline is always escaped, so these are white space.
    return Raw(text.replace("\n", " ").replace("\r", " ").encode())


def _line(value: Mapping[str, object]) -> str:
    return msgspec.json.encode(value).decode()
