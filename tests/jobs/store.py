"""Files and storage in a folder, for workers in tests: small, real, and able to go away.

FOLDER/NAME        an object; its key is NAME
FOLDER/NAME.json   its row: {"owner", "size", "sha256", "name"}
FOLDER/away        while this exists, storage does not answer
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path

import trio
from sqlalchemy import Connection

from holdoverd.errors import StorageRefused, StorageUnavailable
from holdoverd.jobs.objects import InputFile, ResultFile
from holdoverd.jobs.worker import main
from holdoverd.settings import Settings

PIECE_BYTES = 64 << 10


class Folder:
    """Both `FileTable` and `Objects`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.delay_s = float(os.environ.get("TEST_DELAY_S") or 0)

    def put(self, name: str, data: bytes, *, owner: str = "default", sha256: str = "") -> str:
        """A file that is ready; its id."""
        (self.folder / name).write_bytes(data)
        row = {
            "owner": owner,
            "size": len(data),
            "sha256": sha256 or hashlib.sha256(data).hexdigest(),
            "name": name,
        }
        (self.folder / f"{name}.json").write_text(json.dumps(row))
        return name

    def find(self, cx: Connection, file_id: str) -> InputFile | None:
        try:
            row = json.loads((self.folder / f"{file_id}.json").read_text())
        except FileNotFoundError:
            return None
        return InputFile(
            id=file_id,
            owner=row["owner"],
            name=row["name"],
            key=file_id,
            size=row["size"],
            sha256=row["sha256"],
            content_type="application/octet-stream",
            ready=True,
        )

    def add(self, cx: Connection, result: ResultFile, now: int) -> str:
        return result.key

    def _check(self) -> None:
        if (self.folder / "away").exists():
            raise StorageUnavailable("the folder is away")

    async def read(self, key: str, offset: int) -> AsyncGenerator[bytes, None]:
        self._check()
        try:
            file = (self.folder / key).open("rb")
        except FileNotFoundError as error:
            raise StorageRefused(f"no object {key}", "NoSuchKey") from error
        with file:
            file.seek(offset)
            while piece := file.read(PIECE_BYTES):
                self._check()
                await trio.sleep(self.delay_s)
                yield piece

    async def write(self, key: str, pieces: AsyncIterator[bytes]) -> None:
        self._check()
        path = self.folder / key.replace("/", "_")
        with path.with_suffix(".new").open("wb") as out:
            async for piece in pieces:
                out.write(piece)
        path.with_suffix(".new").replace(path)

    async def remove(self, key: str) -> None:
        self._check()
        (self.folder / key.replace("/", "_")).unlink(missing_ok=True)


def open_folder(settings: Settings, env: Mapping[str, str]) -> tuple[Folder, Folder]:
    folder = Folder(Path(env["TEST_STORE"]))
    return folder, folder


if __name__ == "__main__":
    sys.exit(main(open_=open_folder))
