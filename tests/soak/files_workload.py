"""Files sent to a SeaweedFS on the disk whose power goes, and called ready by the real service.

`python -m tests.soak.files_workload FOLDER [careless]` prints ``FILE NUMBER`` once a file is ready.
``careless`` does not wait for the disk: the check must find that out.
"""

from __future__ import annotations

import hashlib
import http.client
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import trio

from holdoverd.callers import Caller
from holdoverd.catalogue import files as table
from holdoverd.catalogue.store import Catalogue
from holdoverd.files.service import Files
from holdoverd.files.uploads import NewFile, Uploads
from holdoverd.files.who import AsCaller
from holdoverd.storage.client import Store
from holdoverd.storage.disk import Disk
from tests.files.put import send
from tests.files.weed import KEYS, running_weed, storage_settings

WHO = AsCaller(Caller("default", "holdover-agent", frozenset({"admin"}), None, admin=True))
AT_ONCE = 3
START_S = 15


def content(number: int) -> bytes:
    """The bytes of a file: length and content follow from its number."""
    return hashlib.sha256(str(number).encode()).digest() * (1 + number * 97 % 3000)


class FilesWorkload:
    """See `tests.soak.power.Workload`."""

    def __init__(self, *, careless: bool = False) -> None:
        self._careless = careless

    def command(self, folder: Path) -> Sequence[str]:
        program = [sys.executable, "-m", "tests.soak.files_workload", str(folder)]
        return [*program, "careless"] if self._careless else program

    def check(self, folder: Path, acknowledged: Sequence[str]) -> Counter[str]:
        promised = {file: int(number) for file, number in map(str.split, acknowledged)}
        if not (folder / "catalogue.db").exists():
            assert not promised, "the catalogue itself is gone"
            return Counter(before_creation=1)
        with running_weed(folder / "weed") as endpoint:
            return trio.run(_check, folder, endpoint, promised)


async def _check(folder: Path, endpoint: str, promised: dict[str, int]) -> Counter[str]:
    catalogue = Catalogue.open(f"sqlite:///{folder}/catalogue.db")
    try:
        files = _files(catalogue, endpoint, None)
        rows = await catalogue.read(
            lambda cx: table.list_files(cx, owner=None, state="ready", limit=100_000)[0]
        )
        kept = {row.id: row for row in rows}
        for file in promised:
            assert file in kept, f"{file} was ready, and its row is gone"
        for row in rows:
            url = files.store.sign("GET", row.key, 300)
            status, body = await _read(url)
            assert status == 200, f"{row.id} is ready, and storage answers {status}: acknowledged"
            assert body == content(int(row.name)), f"{row.id} is damaged, and was acknowledged"
        # And work goes on.
        await _put(files, 0)
        return Counter(ready=len(rows), unacknowledged=len(kept.keys() - promised.keys()))
    finally:
        catalogue.close()


async def _read(url: str) -> tuple[int, bytes]:
    """The gateway answers before the volumes behind it do, and says 500 meanwhile."""
    with trio.move_on_after(START_S):
        while (answer := await trio.to_thread.run_sync(_get, url))[0] >= 500:
            await trio.sleep(0.2)
        return answer
    return 500, b""


def _get(url: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}")
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as error:
        return 0, str(error).encode()
    finally:
        connection.close()


def _files(catalogue: Catalogue, endpoint: str, disk: Disk | None) -> Files:
    settings = storage_settings(endpoint)
    return Files(catalogue, Store(settings, KEYS, disk=disk), settings)


async def _put(files: Files, number: int) -> str:
    data = content(number)
    uploads = Uploads(files)
    made = await uploads.create(WHO, NewFile(str(number), "", len(data), None, "text/plain"))
    upload, file = made["upload"], made["file"]
    assert isinstance(upload, dict)
    assert isinstance(file, dict)
    answer = await trio.to_thread.run_sync(send, "PUT", upload["parts"][0]["url"], data)
    assert answer.status == 200, answer
    await uploads.complete(WHO, upload["id"], {1: answer.headers["etag"]})
    return str(file["id"])


async def _work(folder: Path, endpoint: str, *, careless: bool) -> None:
    catalogue = Catalogue.open(f"sqlite:///{folder}/catalogue.db")
    disk = None if careless else Disk.below(endpoint, folder, folder / "weed")
    assert careless or disk is not None
    files = _files(catalogue, endpoint, disk)

    async def go_on(first: int) -> None:
        number = first
        while True:
            file = await _put(files, number)
            print(file, number, flush=True)
            number += AT_ONCE

    async with trio.open_nursery() as nursery:
        for first in range(1, AT_ONCE + 1):
            nursery.start_soon(go_on, first)


def main(folder: Path, *, careless: bool) -> None:
    with running_weed(folder / "weed") as endpoint:
        trio.run(lambda: _work(folder, endpoint, careless=careless))


if __name__ == "__main__":
    main(Path(sys.argv[1]), careless="careless" in sys.argv[2:])
