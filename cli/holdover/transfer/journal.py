"""What survives a broken transfer: a small file for each, which the same command finds again.

It lies in the user's state folder, 0600, named after what the transfer is: the server, the local path
and the place there. No signed URL is in it: those are asked for anew.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdover.places import home

MAX_AGE_S = 14 * 86_400


def folder(env: Mapping[str, str] = os.environ) -> Path:
    base = env.get("XDG_STATE_HOME")
    return (Path(base) if base else home(env) / ".local" / "state") / "holdover" / "transfers"


class Journal:
    """One transfer's record. Losing it costs a second transfer, so trouble with it is ignored."""

    def __init__(self, *what: str, env: Mapping[str, str] = os.environ) -> None:
        digest = hashlib.sha256("\0".join(what).encode(errors="surrogateescape")).hexdigest()
        self._path = folder(env) / f"{digest[:32]}.json"
        self._lock = threading.Lock()

    def read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write(self, record: Mapping[str, Any]) -> None:
        """Keep `record` instead of what was kept; whole or not at all. Any thread may call it."""
        with self._lock, contextlib.suppress(OSError):
            if not self._path.parent.is_dir():
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = self._path.with_suffix(".new")
            with os.fdopen(
                os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"
            ) as file:
                json.dump(record, file)
            draft.replace(self._path)

    def forget(self) -> None:
        """The transfer is over, or cannot be gone on with. Old ones of others go as well."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
            for other in self._path.parent.iterdir():
                if time.time() - other.stat().st_mtime > MAX_AGE_S:
                    other.unlink()
