"""How each kind of agent is started: argument vector, environment, where it keeps transcripts.

A preset adds what one kind of agent needs (`claude`, `demo`); without one, a command is run as
it stands. Never a shell string, and nothing of a client's choosing that could be read as a flag:
values are joined to their flag with ``=`` and checked.
"""

import re
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from ..errors import BadRequest
from ..settings import AgentSettings
from .host_frames import check_permission_mode

__all__ = ["AgentSettings", "Launch", "build_launch", "check_agent_session", "check_model"]

# Model names such as "claude-opus-4-5[1m]", "us.anthropic.claude:0", "arn:aws:…/x".
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]+-]{0,199}")


@dataclass(frozen=True, slots=True)
class Launch:
    """What the keeper is told. `transcripts` are globs in which prompts' uuids are looked up."""

    argv: tuple[str, ...]
    env: dict[str, str]
    transcripts: tuple[str, ...]


# https://code.claude.com/docs/en/headless; reasons beside the flags that are not obvious.
_CLAUDE_FLAGS: Final = (
    "-p",
    "--output-format=stream-json",
    "--input-format=stream-json",
    "--verbose",  # required by stream-json in print mode
    "--include-partial-messages",
    "--replay-user-messages",  # the echo is the receipt that a prompt was accepted
    "--permission-prompt-tool=stdio",  # ask us; without it every question becomes a denial
)
_CLAUDE_ENV: Final = {
    "CLAUDE_CODE_ENTRYPOINT": "holdover",
    "CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS": "1",  # else no session_state_changed
    "CLAUDE_CODE_STARTUP_FAILURE_RESULTS": "1",  # a result that says why, not stderr alone
    "DISABLE_AUTOUPDATER": "1",  # many sessions share an installation; the operator updates it
}

# The reason comes back as `resume_reason` in the frames of that turn.
_GO_ON_REASON: Final = {
    by: {"CLAUDE_CODE_RESUME_INTERRUPTED_TURN": "1", "CLAUDE_CODE_RESUME_REASON": reason}
    for by, reason in (("agent", "agent_exited"), ("reboot", "host_restarted"))
}


def build_launch(
    agent: AgentSettings,
    *,
    agent_session: str,
    resume: bool,
    go_on: str | None = None,
    model: str | None = None,
    permission_mode: str | None = None,
) -> Launch:
    """The launch of `agent` for the session `agent_session` (a UUID), new or resumed.

    `go_on`: what cut the latest turn off (``agent`` or ``reboot``), if the agent is to go on with it
    without being told to.

    Raises `BadRequest` if the id, the model or the mode is not one that an agent may be given.
    """
    session = check_agent_session(agent_session)
    flags = [f"--resume={session}" if resume else f"--session-id={session}"]
    if permission_mode is not None:
        flags.append(f"--permission-mode={check_permission_mode(permission_mode)}")
    if model is not None:
        flags.append(f"--model={check_model(model)}")
    match agent.preset:
        case "claude":
            if permission_mode is None:
                flags.append("--permission-mode=default")
            config = agent.env.get("CLAUDE_CONFIG_DIR", "~/.claude").rstrip("/")
            return Launch(
                (*agent.command, *_CLAUDE_FLAGS, *flags),
                {**_CLAUDE_ENV, **(_GO_ON_REASON.get(go_on, {}) if go_on else {}), **agent.env},
                (f"{config}/projects/*/{session}.jsonl",),
            )
        case "demo":
            return Launch(
                (*agent.command, *flags),
                {**({"HOLDOVER_GO_ON": go_on} if go_on else {}), **agent.env},
                (f"~/.local/state/holdover-demo/{session}.jsonl",),
            )
        case None:
            added = agent.resume_args if resume else ()
            argv = (*agent.command, *(arg.replace("{agent_session}", session) for arg in added))
            return Launch(argv, dict(agent.env), ())


def check_agent_session(agent_session: str) -> str:
    """`agent_session` if it is a UUID in its usual form; it becomes a flag and a file's name."""
    try:
        usual = str(UUID(agent_session)) == agent_session.lower()
    except ValueError:
        usual = False
    if not usual:
        raise BadRequest(
            f"agent_session {agent_session[:64]!r} is not a UUID; give the id under which the "
            "agent keeps the conversation"
        )
    return agent_session


def check_model(model: str) -> str:
    """`model`, if it looks like a model's name; else `BadRequest`."""
    if not _MODEL.fullmatch(model):
        raise BadRequest(
            f"model {model[:64]!r} is not a model's name; use letters, digits and . _ : / @ [ ] + -"
        )
    return model
