"""Which prompts a demo session has accepted, on disk, so that it can be resumed."""

from __future__ import annotations

import json
import os

from .wire import sha256_hex


class Transcript:
    """``$HOME/.local/state/holdover-demo/<session>.jsonl``, one line per accepted prompt."""

    def __init__(self, session: str, home: str) -> None:
        self._folder = os.path.join(home, ".local", "state", "holdover-demo")
        self.path = os.path.join(self._folder, f"{session}.jsonl")
        self._session = session

    def exists(self) -> bool:
        return os.path.exists(self.path)

    def turns(self) -> int:
        """How many prompts the session has accepted so far."""
        try:
            with open(self.path, "rb") as lines:
                return sum(1 for _ in lines)
        except FileNotFoundError:
            return 0

    def accept(self, uuid: str, prompt: str, turn: int) -> None:
        """Note a prompt, in one write, before anybody is told that it was taken."""
        data = prompt.encode("utf-8", "backslashreplace")
        line = {
            "type": "user",
            "uuid": uuid,
            "sessionId": self._session,
            "turn": turn,
            "bytes": len(data),
            "sha256": sha256_hex(data),
        }
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        try:
            os.write(descriptor, json.dumps(line).encode() + b"\n")
        finally:
            os.close(descriptor)
