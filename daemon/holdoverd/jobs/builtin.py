"""The processors that come with Holdover: their params, and what they are told beside the job."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdoverd.errors import Unprocessable
from holdoverd.settings import AgentSettings, ProcessorSettings, Settings

ALGORITHMS = ("sha256", "sha512", "sha1", "md5", "blake2b", "crc32")


@dataclass(frozen=True, slots=True)
class Param:
    """One param of a built-in processor; `choices` () for any value of the type."""

    kind: type
    said: str
    choices: tuple[object, ...] = ()


PARAMS: Mapping[str, Mapping[str, Param]] = {
    "checksum": {"algorithm": Param(str, "a string", ALGORITHMS)},
    "extract-text": {},
    "analyze": {
        "prompt": Param(str, "a string"),
        "model": Param(str, "a string"),
        "agent": Param(str, "a string"),
    },
}


def check_params(settings: Settings, name: str, params: Mapping[str, object]) -> ProcessorSettings:
    """The processor `name`, which takes `params`; raises Unprocessable and says what would do.

    A processor of the operator's own takes any; only it knows.
    """
    processor = settings.processors.get(name)
    if processor is None:
        raise Unprocessable(
            f"There is no processor {name[:50]!r}; known are {', '.join(sorted(settings.processors))}."
        )
    known = PARAMS.get(processor.builtin or "")
    if known is None:
        return processor
    for key, value in params.items():
        param = known.get(key)
        if param is None:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise Unprocessable(f"{name} has no param {key[:50]!r}; {takes}.")
        if not isinstance(value, param.kind):
            raise Unprocessable(f"The param `{key}` of {name} has to be {param.said}.")
        if param.choices and value not in param.choices:
            raise Unprocessable(
                f"The param `{key}` of {name} is {str(value)[:50]!r} and has to be one of "
                f"{', '.join(map(str, param.choices))}."
            )
    if processor.starts_agent:
        _agent(settings, params)
    return processor


def _agent(settings: Settings, params: Mapping[str, object]) -> AgentSettings:
    """The agent that `analyze` runs: the one asked for, the default, or the first that can.

    Raises Unprocessable by name where none is of a kind that can be run on a file.
    """
    usable = {name: agent for name, agent in settings.agents.items() if agent.preset == "claude"}
    asked = params.get("agent")
    if asked is not None and asked not in usable:
        raise Unprocessable(
            f"analyze cannot use the agent {str(asked)[:50]!r}: it takes one with preset = "
            f'"claude" ({", ".join(sorted(usable)) or "none is configured"}).'
        )
    if not usable:
        raise Unprocessable(
            'analyze needs an agent with preset = "claude"; configure [agents.claude].'
        )
    default = settings.sessions.default_agent
    return usable[str(asked)] if asked else usable.get(default) or next(iter(usable.values()))


def environment(settings: Settings, name: str) -> dict[str, str]:
    """What a processor is told beside its job: for `analyze`, every agent that it may be asked for."""
    processor = settings.processors.get(name)
    if processor is None or not processor.starts_agent:
        return {}
    usable: dict[str, Any] = {
        agent.name: {"command": list(agent.command), "env": dict(agent.env)}
        for agent in settings.agents.values()
        if agent.preset == "claude"
    }
    chosen = settings.sessions.default_agent
    return {
        "HOLDOVER_AGENTS": json.dumps(usable),
        "HOLDOVER_DEFAULT_AGENT": chosen if chosen in usable else next(iter(usable), ""),
    }
