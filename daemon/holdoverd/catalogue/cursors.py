"""Cursors of lists: where the next page begins, opaque to clients, safe to get back from anybody."""

import base64
import binascii
import json
from collections.abc import Sequence

from holdoverd.errors import BadRequest


def encode(kind: str, values: Sequence[int | str]) -> str:
    """A cursor of the list `kind`, made of the sort key of the last item shown."""
    text = json.dumps([kind, *values], ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(cursor: str, kind: str, types: Sequence[type]) -> list[int | str]:
    """What `encode` was given; BadRequest when this is no cursor of `kind` with such values."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode()
        values = json.loads(text)
    except (binascii.Error, ValueError, RecursionError):
        values = None
    if (
        isinstance(values, list)
        and values[:1] == [kind]
        and [type(value) for value in values[1:]] == list(types)
        # Beyond 64 bits the driver would refuse it, and half a character too.
        and all(0 <= v < 2**63 if isinstance(v, int) else _is_sound(v) for v in values[1:])
    ):
        return values[1:]
    raise BadRequest("This cursor is not one of ours for this list; start again without a cursor.")


def _is_sound(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
