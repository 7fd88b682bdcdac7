"""What people do to a session. Pure, as the model is.

What is refused raises. Whoever asks takes a save point before (`SessionModel.save_point`), and goes
back to it where an act was refused half-way, or could not be stored.
"""

from collections.abc import Mapping
from typing import Any

from holdoverd.agents import host_frames
from holdoverd.catalogue.records import MessageRow, PermissionRow, PromptRow
from holdoverd.errors import Conflict, Gone, NotFound, Unprocessable
from holdoverd.ids import new_id
from holdoverd.sessions.bodies import dumps, input_of, json_object, suggestions
from holdoverd.sessions.model import SessionModel, Step

MAX_QUEUED_PROMPTS = 100

WITHDRAWAL = "holdover-withdraw-"
"""How the id of a `cancel_async_message` begins; the prompt's own follows, for its answer."""


def prompt(
    model: SessionModel, step: Step, prompt_id: str, body: str, digest: str, at: int
) -> MessageRow:
    """Accept a prompt, whose `body` is the line for the agent (stream-json.md §4.1).

    Raises Gone (the session has ended) and Conflict (too many wait).
    """
    if model.row.ended_at is not None:
        raise Gone(f"Session {model.row.id} has ended; start a new one, or adopt its agent's.")
    if len(model.prompts) >= MAX_QUEUED_PROMPTS:
        raise Conflict(
            f"{MAX_QUEUED_PROMPTS} prompts wait in session {model.row.id}; wait for the agent "
            "to take some, or interrupt it."
        )
    message = model.store(step, "user", body, at, uuid=prompt_id, client_id=prompt_id)
    live = model.launch is not None and model.launch.state == "live"
    prompt = PromptRow(
        prompt_id,
        message.seq,
        digest,
        "queued",
        model.launch.id if live and model.launch is not None else None,
    )
    model.prompts[prompt_id] = prompt
    step.change.prompts.append(prompt)
    if live:
        model.command(step, None, seq=message.seq)
    return message


def cancel_prompt(model: SessionModel, step: Step, prompt_id: str, at: int) -> PromptRow:
    """Withdraw a queued prompt; the one that is returned is ``cancelled`` where that is done.

    One that was numbered for an agent waits in the agent's own queue: it is asked to give it
    back, and what it says decides (`agent_lines`, `Step.kept_prompts`). Raises NotFound where no
    such prompt waits.
    """
    prompt = model.prompts.get(prompt_id)
    if prompt is None:
        raise NotFound(f"No prompt {prompt_id[:64]!r} waits in session {model.row.id}.")
    if prompt.launch is not None and model.launch is not None:
        request_id = f"{WITHDRAWAL}{prompt_id}-{new_id('w')}"
        model.command(step, host_frames.cancel_async_message(request_id, prompt_id))
    elif prompt.launch is not None:
        # Its agent died: whether it had been taken is found out when the next is started.
        raise Conflict(
            f"Prompt {prompt_id} was with an agent that has died; whether it was taken shows "
            "when the session is resumed."
        )
    else:
        prompt.state = "cancelled"
        del model.prompts[prompt_id]
        step.change.prompts.append(prompt)
        model.notice_cancelled(step, prompt, at)
    return prompt


def answer(
    model: SessionModel,
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
    if model.row.ended_at is not None:
        raise Gone(f"Session {model.row.id} has ended; its agent waits for no answer.")
    permission = model.permissions.get(request_id)
    if permission is None:
        raise NotFound(f"Session {model.row.id} has no open permission {request_id}.")
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
    del model.permissions[request_id]
    step.change.permissions.append(permission)
    model.store(step, "answer", dumps(body), at, thread=permission.thread, request_id=request_id)
    model.command(step, line)
    return permission


def set_columns(model: SessionModel, step: Step, columns: Mapping[str, Any]) -> None:
    """Title, model, permission mode or share, as a person set it."""
    for name, value in columns.items():
        if getattr(model.row, name) != value:
            setattr(model.row, name, value)
            step.change.session[name] = value


def end(model: SessionModel, step: Step, at: int, *, purge: bool = False) -> None:
    """Nothing more will be asked of this session. Its agent is stopped by the owner.

    `purge`: once it has no agent it goes, with all that it said.
    """
    if purge and not model.purging:
        model.purging = True
        step.change.session["updated_at"] = at
    if model.row.ended_at is None:
        model.row.ended_at = at
        step.change.session["ended_at"] = at
        for prompt in model.prompts.values():
            prompt.state = "cancelled"
            step.change.prompts.append(prompt)
            model.settle(prompt.id)
        model.prompts.clear()
