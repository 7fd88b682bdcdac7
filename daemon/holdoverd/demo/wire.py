"""The demo agent's stdout: whole lines, one writer at a time, names that can be foretold."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

try:  # hashlib would load OpenSSL: four megabytes, and a third of the start-up time
    from _sha1 import sha1  # type: ignore[import-not-found]
except ImportError:
    from hashlib import sha1
try:
    from _sha2 import sha256  # type: ignore[import-not-found]  # Python 3.12 and later
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]
    except ImportError:
        from hashlib import sha256

__all__ = ["Wire", "sha256_hex"]


def sha256_hex(data: bytes) -> str:
    return str(sha256(data).hexdigest())


class Wire:
    """Frames of one session to a descriptor.

    `salt` tells this process of the session from the ones before it, so that no uuid repeats.
    """

    def __init__(self, descriptor: int, session: str, salt: str) -> None:
        self.session = session
        self._descriptor = descriptor
        self._namespace = bytes.fromhex(session.replace("-", ""))
        self._salt = salt
        # Per series: what turns say is numbered apart from what is said in between, whose place
        # among the turns' frames depends on when the host speaks.
        self._counts = {"turns": 0, "beside": 0}
        self._lock = threading.Lock()

    def uuid(self, series: str = "turns") -> str:
        """The next uuid: version 5 in the session's namespace, so the same in every run."""
        with self._lock:
            self._counts[series] += 1
            name = f"{self._salt}:{series}:{self._counts[series]}".encode()
        digest = bytearray(sha1(self._namespace + name).digest()[:16])  # noqa: S324 - uuid5 is SHA-1
        digest[6] = digest[6] & 0x0F | 0x50
        digest[8] = digest[8] & 0x3F | 0x80
        text = digest.hex()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def name(self, prefix: str) -> str:
        """The next id of another kind: ``msg_…``, ``toolu_…``."""
        return f"{prefix}_demo{self.uuid().replace('-', '')[:20]}"

    def frame(self, kind: str, **fields: Any) -> None:
        """A frame with the envelope that nearly all carry."""
        self.send({"type": kind, **fields, "session_id": self.session, "uuid": self.uuid()})

    def beside(self, kind: str, **fields: Any) -> None:
        """A frame that is not part of a turn: levels, queues."""
        uuid = self.uuid("beside")
        self.send({"type": kind, **fields, "session_id": self.session, "uuid": uuid})

    def send(self, value: dict[str, Any]) -> None:
        self.line(json.dumps(value, ensure_ascii=False, separators=(",", ":")))

    def line(self, text: str, end: str = "\n") -> None:
        """`text` as it is; a whole line at a time, whoever else writes."""
        # A lone surrogate in a prompt is echoed as its escape was read: it has no UTF-8.
        data = memoryview((text + end).encode("utf-8", "backslashreplace"))
        with self._lock:
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except BrokenPipeError:
                # Nobody reads any more: the keeper is gone, and there is nobody to tell.
                os._exit(1)
