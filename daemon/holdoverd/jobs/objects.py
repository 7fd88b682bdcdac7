"""What jobs need of files: their rows, their bytes, and a place for results. Given, not made here."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Connection

RESULTS_PREFIX = "results/"
"""Storage keys of results: ``results/<job>/<attempt>``. One without a file is swept away."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file as a job needs it. `sha256` in hex, None where nobody knows it."""

    id: str
    owner: str
    name: str
    key: str
    size: int
    sha256: str | None
    content_type: str
    ready: bool


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A result too large or too strange for text, stored under `key`."""

    job: str
    owner: str
    name: str
    key: str
    size: int
    sha256: str


class FileTable(Protocol):
    """Files in the catalogue; plain functions on a Connection, inside the caller's transaction."""

    def find(self, cx: Connection, file_id: str) -> InputFile | None:
        """The file, ready or not; None where there is none (or no longer)."""

    def add(self, cx: Connection, result: ResultFile, now: int) -> str:
        """Make a result a file of its owner's; its id."""


class Objects(Protocol):
    """Bytes in storage. Every method raises StorageUnavailable where it cannot be reached just now,
    StorageRefused where it answers and will not.
    """

    def read(self, key: str, offset: int) -> AsyncGenerator[bytes, None]:
        """The object's bytes from `offset`, in pieces of at most a MiB."""

    async def write(self, key: str, pieces: AsyncIterator[bytes]) -> None:
        """Store an object, of any length, whole or not at all."""

    async def remove(self, key: str) -> None:
        """Remove what was written and will not be published; nothing where there is none."""
