"""An instance's files in a process of its own, which dies at a step: `python -m tests.files.mortal`.

Prints what it makes, so that whoever comes after knows what to go on with.
"""

import json
import os
import signal
import sys
from collections.abc import Callable

import trio

from holdoverd.callers import Caller
from holdoverd.catalogue.store import Catalogue
from holdoverd.files.service import Files
from holdoverd.files.uploads import NewFile, Uploads
from holdoverd.files.who import AsCaller
from holdoverd.storage.client import Store
from tests.files.put import send
from tests.files.weed import KEYS, storage_settings

DATA = b"what is to be kept"
WHO = AsCaller(Caller("default", "holdover-agent", frozenset({"admin"}), None, admin=True))

# What is done, and the steps at which to die: each that is told of on the way, by name.
STEPS: dict[str, tuple[str, ...]] = {
    "complete": (
        "asked",
        "row",
        "opened in storage",
        "open",
        "put",
        "listed",
        "completed in storage",
        "looked at",
        "on the disk",
        "ready",
    ),
    "abort": ("given up", "aborted in storage", "deleted in storage", "erased"),
    "delete": ("deleted", "deleted in storage", "erased"),
}


def main(endpoint: str, bucket: str, url: str, scenario: str, step: str) -> None:
    def observe(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = storage_settings(endpoint, bucket=bucket)
    files = Files(Catalogue.open(url), Store(settings, KEYS), settings, observe=observe)
    trio.run(play, files, scenario, observe)


async def play(files: Files, scenario: str, observe: Callable[[str], None]) -> None:
    uploads = Uploads(files)
    made = await uploads.create(WHO, NewFile("a", "", len(DATA), None, "text/plain"))
    upload, file = made["upload"], made["file"]
    assert isinstance(upload, dict)
    assert isinstance(file, dict)
    answer = await trio.to_thread.run_sync(send, "PUT", upload["parts"][0]["url"], DATA)
    etag = answer.headers["etag"]
    print(json.dumps({"upload": upload["id"], "file": file["id"], "etag": etag}), flush=True)
    observe("put")
    if scenario == "abort":
        await uploads.abort(WHO, upload["id"])
        return
    await uploads.complete(WHO, upload["id"], {1: etag})
    if scenario == "delete":
        await files.delete(WHO, file["id"])


if __name__ == "__main__":
    main(*sys.argv[1:])
