"""Doors in memory, a real catalogue and the real storage: what the tests of files ask."""

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from holdoverd.catalogue import audit, schema
from holdoverd.catalogue.store import Catalogue
from holdoverd.files.services import FileServices
from holdoverd.ids import now_ms
from holdoverd.storage.client import Store
from tests.files.put import Answer, send
from tests.files.weed import KEYS, storage_settings
from tests.http import kit
from tests.http.kit import Doors, open_doors


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def put(
    part: Mapping[str, Any], body: bytes, headers: Mapping[str, str] | None = None
) -> Answer:
    """What a client does with a part's URL."""
    sent = {**part["headers"], **(headers or {})}
    return await trio.to_thread.run_sync(partial(send, part["method"], part["url"], body, sent))


async def get(url: str, headers: Mapping[str, str] | None = None) -> Answer:
    return await trio.to_thread.run_sync(partial(send, "GET", url, None, headers))


class Anybody:
    """Sees everything."""

    owner = "default"
    actor = "test"

    def may_see(self, _file: object, /) -> bool:
        return True

    def may_send(self, _upload: object, /) -> bool:
        return True


class House:
    """An instance's doors; `ask` is by the admin door and asserts nothing."""

    def __init__(self, doors: Doors, services: FileServices, catalogue: Catalogue) -> None:
        self.doors = doors
        self.services = services
        self.catalogue = catalogue

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> kit.Answer:
        return await self.doors.admin(method, path, body, **headers)

    async def call(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        """The JSON of an answer that has to be a success."""
        answer = await self.ask(method, path, body, **headers)
        assert answer.status < 300, f"{method} {path}: {answer.status} {answer.body!r}"
        return answer.json() if answer.body else None

    async def new(self, data: bytes, name: str = "a.bin", **more: object) -> Any:
        """``POST /v1/files`` for these bytes."""
        return await self.call("POST", "/v1/files", {"name": name, "size": len(data), **more})

    async def put_all(self, made: Any, data: bytes) -> list[dict[str, object]]:
        """Put every part whose URL came; what `complete` takes."""
        size = made["upload"]["part_size"]
        parts: list[dict[str, object]] = []
        for part in made["upload"]["parts"]:
            start = (part["number"] - 1) * size
            answer = await put(part, data[start : start + size])
            assert answer.status == 200, answer
            parts.append({"number": part["number"], "etag": answer.headers["etag"]})
        return parts

    async def complete(self, made: Any, parts: object) -> kit.Answer:
        path = f"/v1/uploads/{made['upload']['id']}/complete"
        return await self.ask("POST", path, {"parts": parts})

    async def put_file(self, data: bytes, name: str = "a.bin", **more: object) -> Any:
        """A ready file."""
        made = await self.new(data, name, **more)
        answer = await self.complete(made, await self.put_all(made, data))
        assert answer.status == 200, answer.body
        return answer.json()["file"]

    async def download(self, file_id: str) -> bytes:
        answer = await self.ask("GET", f"/v1/files/{file_id}/download")
        assert answer.status == 302, answer.body
        return (await get(answer.headers["location"])).body

    async def keys(self) -> list[str]:
        """The keys of all objects in storage."""
        keys, _ = await self.services.files.store.list_keys()
        return [item.key for item in keys]

    async def open_uploads(self) -> list[str]:
        found, _ = await self.services.files.store.list_multipart()
        return [item.key for item in found]

    async def acts(self, subject: str | None = None) -> list[str]:
        """The actions on record, oldest first."""
        rows, _ = await self.catalogue.read(
            lambda cx: audit.list_rows(cx, subject=subject, limit=500)
        )
        return [row.action for row in reversed(rows)]

    async def states(self) -> dict[str, str]:
        """{file id: state} of all files."""
        table = schema.files
        query = table.select().with_only_columns(table.c.id, table.c.state)
        return await self.catalogue.read(
            lambda cx: {row.id: row.state for row in cx.execute(query)}
        )


@asynccontextmanager
async def open_house(
    endpoint: str,
    folder: Path,
    *,
    now: Callable[[], int] = now_ms,
    context: Mapping[str, Any] | None = None,
    **storage: object,
) -> AsyncIterator[House]:
    """`storage`: keys of ``[storage]``; `context`: more of `Context`."""
    settings = storage_settings(endpoint, **storage)
    catalogue = Catalogue.open(f"sqlite:///{folder / 'catalogue.db'}")
    try:
        services = FileServices.make(catalogue, Store(settings, KEYS), settings, now)
        async with open_doors(catalogue, files=services, **(context or {})) as doors:
            yield House(doors, services, catalogue)
    finally:
        catalogue.close()
