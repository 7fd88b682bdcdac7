"""The shape of every request body and query: types, lengths, allowed values. Pure functions.

A value of the wrong type, or a field that is missing, is a 400; a value of the right type that
cannot be meant (too long, not on the list, a control character) is a 422. Either message names the
field. What comes out holds only known fields, so that nothing unchecked travels further; fields
that contract.md does not know are ignored.
"""

import json
import re
from collections.abc import Mapping
from typing import TypeVar

from holdoverd.callers import ACCOUNT_NAME
from holdoverd.errors import BadRequest, TooLarge, Unprocessable
from holdoverd.http.wire import SCOPES

Json = dict[str, object]
T = TypeVar("T")

MAX_HTTP_PROMPT_BYTES = 1024 * 1024
MAX_STREAM_PROMPT_BYTES = 10 * 1024 * 1024
MAX_LIST = 500
DEFAULT_LIST = 50
MAX_INTEGER = 2**53 - 1  # what every JSON reader can hold
MAX_LIFETIME_S = 100 * 366 * 24 * 3600

STATES = ("starting", "idle", "working", "waiting", "dormant", "ended", "failed")
PERMISSION_MODES = ("default", "acceptEdits", "plan", "bypassPermissions", "dontAsk", "auto")
SHARES = ("read", "write")
JOB_STATES = ("ready", "running", "done", "dead", "cancelled")
MAX_PARAMS_BYTES = 65_536

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_INTEGER = re.compile(r"[0-9]{1,16}")


class Fields:
    """One JSON object, read field by field. `within` prefixes names in messages (``prompt.``)."""

    def __init__(self, data: Mapping[str, object], within: str = "") -> None:
        self._data = data
        self._within = within

    def __contains__(self, name: str) -> bool:
        return name in self._data

    def _typed(self, name: str, kind: type[T], said: str, *, required: bool) -> T | None:
        if name not in self._data:
            if required:
                raise BadRequest(f"The field `{self._within}{name}` is missing; send {said}.")
            return None
        value = self._data[name]
        # bool is an int to Python and is not to JSON
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise BadRequest(
                f"The field `{self._within}{name}` has to be {said}, not {_json_type(value)}."
            )
        return value

    def text(
        self,
        name: str,
        *,
        required: bool = False,
        nullable: bool = False,
        max_chars: int = 500,
        one_line: bool = True,
        empty: bool = False,
    ) -> str | None:
        """A string; None when it is left out, or null where that is allowed."""
        if nullable and name in self._data and self._data[name] is None:
            return None
        value = self._typed(name, str, "a string", required=required)
        if value is None:
            return None
        if not value and not empty:
            raise Unprocessable(f"The field `{self._within}{name}` is empty; leave it out instead.")
        if len(value) > max_chars:
            raise Unprocessable(
                f"The field `{self._within}{name}` has {len(value)} characters and may have"
                f" {max_chars}; shorten it."
            )
        if one_line and any(ord(c) < 32 or ord(c) == 127 for c in value):
            raise Unprocessable(
                f"The field `{self._within}{name}` holds a control character; remove it."
            )
        return value

    def choice(
        self,
        name: str,
        choices: tuple[str, ...],
        *,
        required: bool = False,
        nullable: bool = False,
    ) -> str | None:
        value = self.text(name, required=required, nullable=nullable, empty=True, one_line=False)
        if value is not None and value not in choices:
            raise Unprocessable(
                f"The field `{self._within}{name}` is {value[:50]!r} and has to be one of"
                f" {', '.join(choices)}."
            )
        return value

    def flag(self, name: str) -> bool | None:
        return self._typed(name, bool, "true or false", required=False)

    def integer(
        self, name: str, *, low: int = 0, high: int = MAX_INTEGER, required: bool = False
    ) -> int | None:
        value = self._typed(name, int, "an integer", required=required)
        if value is not None and not low <= value <= high:
            bounds = f"of at least {low}" if value < low else f"of at most {high}"
            raise Unprocessable(f"The field `{self._within}{name}` has to be an integer {bounds}.")
        return value

    def lifetime_s(self, name: str, *, required: bool = False) -> int | None:
        """Seconds from now, so few that the moment when they are over can be told to anybody."""
        return self.integer(name, low=1, high=MAX_LIFETIME_S, required=required)

    def mapping(self, name: str) -> Json | None:
        return self._typed(name, dict, "an object", required=False)

    def array(self, name: str, *, max_items: int, required: bool = False) -> list[object] | None:
        value = self._typed(name, list, "an array", required=required)
        if value is not None and len(value) > max_items:
            raise Unprocessable(
                f"The field `{self._within}{name}` has {len(value)} items and may have {max_items}."
            )
        return value

    def texts(self, name: str, *, max_items: int, required: bool = False) -> list[str] | None:
        value = self.array(name, max_items=max_items, required=required)
        if value is None:
            return None
        items = [item for item in value if isinstance(item, str)]
        if len(items) != len(value):
            raise BadRequest(f"The field `{self._within}{name}` has to be an array of strings.")
        return items


def _json_type(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", dict: "an object", list: "an array"}
    return names.get(type(value), "a string" if isinstance(value, str) else "a number")


def _present(**values: object) -> Json:
    """The fields that were sent."""
    return {name: value for name, value in values.items() if value is not None}


# --- sessions --------------------------------------------------------------------------------


def new_session(data: Mapping[str, object]) -> Json:
    """``POST /v1/sessions``; the keys that were sent, checked. `owner` is dealt with apart."""
    fields = Fields(data)
    if "cwd" in fields and data["cwd"] is None:
        raise Unprocessable(
            "The field `cwd` is null; leave it out for a new workspace, or name an existing folder."
        )
    if "repo" in fields and data["repo"] is None:
        raise Unprocessable("The field `repo` is null; leave it out where nothing is to be cloned.")
    spec = _present(
        agent=fields.text("agent", max_chars=64),
        cwd=fields.text("cwd", max_chars=4096),
        title=fields.text("title", nullable=True),
        model=fields.text("model", nullable=True, max_chars=200),
        permission_mode=fields.choice("permission_mode", PERMISSION_MODES),
        share=fields.choice("share", SHARES, nullable=True),
    )
    if (repo := fields.mapping("repo")) is not None:
        within = Fields(repo, "repo.")
        spec["repo"] = _present(
            url=within.text("url", required=True, max_chars=2000), ref=within.text("ref")
        )
        if "cwd" in spec:
            raise Unprocessable("`repo` is cloned into a new workspace; send it without `cwd`.")
    if (first := fields.mapping("prompt")) is not None:
        spec["prompt"] = prompt(first, MAX_HTTP_PROMPT_BYTES, "prompt.")
    return spec


def adoption(data: Mapping[str, object]) -> Json:
    """``POST /v1/sessions/adopt``, as a new session's spec; `owner` and `account` are apart."""
    fields = Fields(data)
    found = fields.text("agent_session", required=True, max_chars=64)
    if found is None or not _UUID.fullmatch(found):
        raise Unprocessable("The field `agent_session` has to be a UUID, as the agent shows it.")
    return _present(
        agent=fields.text("agent", max_chars=64),
        agent_session=found.lower(),
        cwd=fields.text("cwd", required=True, max_chars=4096),
        title=fields.text("title", nullable=True),
    )


def session_changes(data: Mapping[str, object]) -> Json:
    """``PATCH``, and the stream's ``set``: what was sent, null included (null is: as it was)."""
    fields = Fields(data)
    values: Json = {
        "title": fields.text("title", nullable=True),
        "model": fields.text("model", nullable=True, max_chars=200),
        "permission_mode": fields.choice("permission_mode", PERMISSION_MODES),
        "share": fields.choice("share", SHARES, nullable=True),
    }
    return {name: value for name, value in values.items() if name in fields}


def prompt(data: Mapping[str, object], max_bytes: int, within: str = "") -> Json:
    """A prompt: a client's UUID and a text or content blocks; TooLarge over `max_bytes`."""
    fields = Fields(data, within)
    prompt_id = fields.text("id", required=True, one_line=False)
    if prompt_id is None or not _UUID.fullmatch(prompt_id):
        raise Unprocessable(
            f"The field `{within}id` has to be a UUID made by the client; it is what makes sending"
            " the prompt again harmless."
        )
    if ("text" in fields) == ("content" in fields):
        raise BadRequest(f"A prompt has one of `{within}text` and `{within}content`.")
    result: Json = {"id": prompt_id.lower()}
    if "text" in fields:
        text = fields.text("text", one_line=False, max_chars=max_bytes + 1)
        assert text is not None, "it was there"
        if len(text) > max_bytes // 4 and len(text.encode()) > max_bytes:
            raise TooLarge(
                f"The prompt has more than {max_bytes // 1024**2} MiB of text; put it in a file."
            )
        result["text"] = text
    else:
        result["content"] = _content(fields, within)
    attachments = fields.texts("attachments", max_items=100)
    if attachments:
        result["attachments"] = attachments
    return result


def _content(fields: Fields, within: str) -> list[object]:
    blocks = fields.array("content", max_items=1000)
    if not blocks:
        raise Unprocessable(f"The field `{within}content` is empty; send at least one block.")
    for block in blocks:
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise BadRequest(f"Every block of `{within}content` is an object with a `type`.")
    return blocks


def answer(data: Mapping[str, object]) -> Json:
    """An answer to a permission."""
    fields = Fields(data)
    result = _present(
        request_id=fields.text("request_id", required=True, max_chars=200),
        behavior=fields.choice("behavior", ("allow", "deny"), required=True),
        updated_input=fields.mapping("updated_input"),
        message=fields.text("message", max_chars=65_536, one_line=False, empty=True),
        remember=fields.mapping("remember"),
    )
    if result["behavior"] == "deny" and "updated_input" in result:
        raise Unprocessable("`updated_input` goes with `allow`; a denied tool has no input.")
    return result


def cancel_queued(data: Mapping[str, object]) -> bool:
    """``POST …/interrupt``."""
    return Fields(data).flag("cancel_queued") or False


# --- jobs ------------------------------------------------------------------------------------


def new_job(data: Mapping[str, object]) -> Json:
    """``POST /v1/jobs``. Whether the processor takes the params is the job service's to say."""
    fields = Fields(data)
    params = fields.mapping("params")
    # They travel in an environment variable, of which the kernel takes 128 KiB.
    if params is not None and len(json.dumps(params)) > MAX_PARAMS_BYTES:
        raise Unprocessable(
            f"`params` has more than {MAX_PARAMS_BYTES} bytes; put what is large in a file."
        )
    return _present(
        processor=fields.text("processor", required=True, max_chars=64),
        files=fields.texts("files", max_items=100),
        params=params,
        session=fields.text("session", max_chars=64),
    )


# --- tokens ----------------------------------------------------------------------------------


def new_token(data: Mapping[str, object]) -> Json:
    """``POST /v1/tokens``; `scopes` without repetition."""
    fields = Fields(data)
    scopes = fields.texts("scopes", max_items=len(SCOPES) * 2, required=True) or []
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise Unprocessable(
            (f"`scopes` holds {unknown[0][:50]!r}" if unknown else "`scopes` is empty")
            + f"; a token has some of {', '.join(sorted(SCOPES))}."
        )
    return _present(
        name=fields.text("name", required=True, max_chars=200),
        owner=owner(data),
        account=account(data),
        scopes=sorted(set(scopes)),
        expires_in_s=fields.lifetime_s("expires_in_s"),
    )


def owner(data: Mapping[str, object]) -> str | None:
    """The ``"owner"`` of any POST body, or of the query."""
    name = Fields(data).text("owner", max_chars=64)
    if name is not None and not _NAME.fullmatch(name):
        raise Unprocessable(
            f"{name!r} is no owner's name: letters, digits and . _ @ -, starting with a letter or"
            " digit."
        )
    return name


def account(data: Mapping[str, object]) -> str | None:
    """The ``"account"`` that a new owner is bound to: a Unix user's name."""
    name = Fields(data).text("account", max_chars=64)
    if name is not None and not ACCOUNT_NAME.fullmatch(name):
        raise Unprocessable(
            f"{name!r} is no account's name: letters, digits and _ . -, starting with a letter or _."
        )
    return name


# --- queries ---------------------------------------------------------------------------------


def query_integer(query: Mapping[str, str], name: str) -> int | None:
    """An integer of at least 0; None when left out."""
    text = query.get(name)
    if text is None:
        return None
    if not _INTEGER.fullmatch(text) or int(text) > MAX_INTEGER:
        raise BadRequest(f"The parameter `{name}` is {text[:50]!r} and has to be an integer ≥ 0.")
    return int(text)


def query_limit(query: Mapping[str, str]) -> int:
    limit = query_integer(query, "limit")
    if limit is None:
        return DEFAULT_LIST
    if not 1 <= limit <= MAX_LIST:
        raise BadRequest(f"The parameter `limit` is {limit} and has to be from 1 to {MAX_LIST}.")
    return limit


def query_flag(query: Mapping[str, str], name: str) -> bool:
    text = query.get(name, "false")
    if text not in ("true", "false"):
        raise BadRequest(f"The parameter `{name}` is {text[:50]!r} and has to be true or false.")
    return text == "true"


def query_choice(query: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str | None:
    text = query.get(name)
    if text is not None and text not in choices:
        raise BadRequest(
            f"The parameter `{name}` is {text[:50]!r} and has to be one of {', '.join(choices)}."
        )
    return text


def query_text(query: Mapping[str, str], name: str, max_chars: int = 500) -> str | None:
    """A parameter as it is; None when left out or empty (an empty filter filters nothing)."""
    text = query.get(name) or None
    if text is not None and (len(text) > max_chars or "\0" in text):
        raise BadRequest(f"The parameter `{name}` is too long or holds a NUL; shorten it.")
    return text


def query_cursor(query: Mapping[str, str]) -> tuple[int | None, str | None]:
    """``after`` and ``epoch`` of a stream: a cursor in messages is worth nothing without its epoch."""
    after = query_integer(query, "after")
    epoch = query_text(query, "epoch")
    if after and epoch is None:
        raise BadRequest("`after` needs `epoch`, which the session and every hello frame carry.")
    return after, epoch
