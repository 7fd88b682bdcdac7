"""A prompt on its way in: checked, turned into the agent's line, and accepted once."""

import hashlib
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from holdoverd.agents import host_frames
from holdoverd.errors import BadRequest, Conflict, TooLarge, Unprocessable
from holdoverd.ids import now_ms
from holdoverd.sessions import acts
from holdoverd.sessions.model import MAX_LINE_BYTES, Step
from holdoverd.sessions.owner import OwnedSession
from holdoverd.sessions.wire import dumps

MAX_COMMANDS_WAITING = 1000
"""Numbered commands that a keeper has not taken yet: an agent that does not read its stdin."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """`body` is the line for the agent; `digest` tells another content under the same id."""

    id: str
    body: str
    digest: str


class PromptKnown(Conflict):
    """A prompt with this id was accepted between the look-up and the turn."""


def check_prompt(owned: OwnedSession, prompt: dict[str, Any]) -> Prompt:
    """Raises BadRequest, Unprocessable, TooLarge."""
    text, content = prompt.get("text"), prompt.get("content")
    if prompt.get("attachments"):
        # Those of a prompt to a session that is there were carried and named before; see
        # files/carrier.py.
        raise Unprocessable(
            "`attachments` need a workspace to go to: make the session first, then send the "
            "prompt with its attachments."
        )
    prompt_id = prompt.get("id") or str(uuid4())
    try:
        if str(UUID(prompt_id)) != prompt_id.lower():
            raise ValueError
    except ValueError:
        raise BadRequest(f"The prompt's id {prompt_id[:64]!r} is not a UUID.") from None
    body = host_frames.user_prompt(
        prompt_id,
        text if text is not None else content or [],
        agent_session=owned.model.row.agent_session,
    )
    if len(body) > MAX_LINE_BYTES // 4 and len(body.encode()) > MAX_LINE_BYTES:
        raise TooLarge(
            f"Prompt {prompt_id} is larger than {MAX_LINE_BYTES:,} bytes; put its text "
            "into a file and name that."
        )
    digest = hashlib.sha256(dumps({"text": text, "content": content}).encode()).hexdigest()
    return Prompt(prompt_id, body, digest)


def accept_prompt(step: Step, owned: OwnedSession, accepted: Prompt) -> int:
    """Its seq. Raises PromptKnown, Capacity, and what the model raises."""
    if owned.knows_prompt(accepted.id):
        raise PromptKnown(accepted.id)
    owned.check_room(MAX_COMMANDS_WAITING)
    return acts.prompt(owned.model, step, accepted.id, accepted.body, accepted.digest, now_ms()).seq
