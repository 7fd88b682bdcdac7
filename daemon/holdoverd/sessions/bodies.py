"""What is read out of the agent's lines where a frame does not say it, and JSON text as it is stored."""

import json
from typing import Any

import msgspec


def dumps(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # an unpaired surrogate, legal in JSON only as an escape
        return json.dumps(value, separators=(",", ":"))
    return text


class _Request(msgspec.Struct):
    input: msgspec.Raw = msgspec.Raw(b"{}")


def input_of(request: str) -> str:
    """The agent's own text of a request's input: what it said goes back to it unchanged."""
    try:
        return bytes(msgspec.json.decode(request, type=_Request).input).decode()
    except msgspec.DecodeError:  # a lone surrogate, which msgspec refuses and agents send
        return dumps(json_object(request).get("input") or {})


_TOKENS = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "output_tokens",
)


def context_of(reply: str | None, result: str) -> str | None:
    """How full the agent's context is: ``{"used", "limit"}`` in tokens, as JSON text.

    `reply`: the turn's last reply, whose tokens are all that the next one begins with (a result's
    own are those of the whole turn); `result` knows each model's window. None where they do not say.
    """
    message = json_object(reply).get("message")
    message = message if isinstance(message, dict) else {}
    usage, models = message.get("usage"), json_object(result).get("modelUsage")
    if not isinstance(usage, dict) or not isinstance(models, dict):
        return None
    told = models.get(str(message.get("model")))
    windows = [
        m.get("contextWindow") for m in ([told] if told else models.values()) if isinstance(m, dict)
    ]
    limits = [window for window in windows if type(window) is int and window > 0]
    used = sum(n for name in _TOKENS if type(n := usage.get(name)) is int and n > 0)
    # Of several windows only a name tells which one is meant.
    return dumps({"used": used, "limit": limits[0]}) if used and len(set(limits)) == 1 else None


def suggestions(request: str) -> list[object]:
    found = json_object(request).get("permission_suggestions")
    return found if isinstance(found, list) else []


def json_object(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    value = json.loads(text)
    return value if isinstance(value, dict) else {}
