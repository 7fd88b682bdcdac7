"""A million files in the catalogue of one owner, on SQLite: how long the slowest of a hundred requests
takes to list, to search and to look at one. Each goes the whole way, from the bytes of the request
to those of the answer, by a connection in memory: HTTP, token, scope, database, JSON. What is listed:
the newest; a page in the middle; a folder; what is found by a word that one file has, by a word
that every file has, by a common one and a rare, and by two common ones; each for an owner and for an
administrator. The bound is 10 ms, in each of three rounds. Then `holdover file ls` against a daemon that serves this catalogue, beside
`--help` of a one-command click program.

Signing: part URLs a second, as the answer that opens an upload has them, on one core. Beside it
boto3's `generate_presigned_url` for the same part, in turns.
"""

import random
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from pathlib import Path

import trio

from holdoverd.catalogue.store import Catalogue
from holdoverd.files.services import FileServices
from holdoverd.storage.client import Store
from tests.bench.million import listing
from tests.bench.rows import Row
from tests.files.weed import KEYS, storage_settings
from tests.http.kit import Doors, open_doors
from tests.live.up import running

FILES = 1_000_000
ROUNDS = 3
REQUESTS = 500
BOUND_MS = 10.0
SIGN_BOUND = 2_000
SIGNED = 2_000

MONTHS = ("january", "february", "march", "april", "may", "june")


def measure() -> list[Row]:
    return [*_lists(), *_signing()]


def _lists() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="holdover-bench-") as folder:
        path = Path(folder) / "state/catalogue.db"
        path.parent.mkdir()
        url = f"sqlite:///{path}"
        Catalogue.open(url).close()
        _fill(path)
        rows = trio.run(_ask_all, url)
        with running(Path(folder)) as up:
            return [*rows, listing(up, Path(folder), "file", _name(FILES - 1).encode())]


def _name(number: int) -> str:
    return f"report {MONTHS[number % 6]} n{number:07d}.pdf"


def _fill(path: Path) -> None:
    """As the daemon would have stored them, in one transaction."""
    cx = sqlite3.connect(path)
    cx.execute("PRAGMA synchronous=OFF")
    cx.execute("PRAGMA cache_size=-400000")
    files: Iterator[tuple[object, ...]] = (
        (f"f_{n:016d}", "default", _name(n), f"team/{n % 1000}", 10_000, None, "size",
         "application/pdf", "ready", f"f/o_{n:016d}", 1_700_000_000_000 + n)
        for n in range(FILES)
    )  # fmt: skip
    words: Iterator[tuple[object, ...]] = (
        (word, f"f_{n:016d}", "default")
        for n in range(FILES)
        for word in ("report", MONTHS[n % 6], f"n{n:07d}", "pdf")
    )
    with cx:
        cx.executemany(
            "INSERT INTO files (id, owner, name, path, size, sha256, verified, content_type, state,"
            " key, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            files,
        )
        while chunk := list(islice(words, 400_000)):
            # In the order of the largest index: b-trees grow at their ends then.
            cx.executemany("INSERT INTO file_words VALUES (?, ?, ?)", sorted(chunk))  # type: ignore[type-var]
        cx.execute("INSERT INTO usage VALUES ('default', ?, ?, NULL)", (FILES * 10_000, FILES))
    cx.close()


async def _ask_all(url: str) -> list[Row]:
    catalogue = Catalogue.open(url)
    settings = storage_settings("http://127.0.0.1:1")
    services = FileServices.make(catalogue, Store(settings, KEYS), settings)
    try:
        async with open_doors(catalogue, files=services) as doors:
            return await _rows(doors)
    finally:
        catalogue.close()


async def _rows(doors: Doors) -> list[Row]:
    tokens = {scope: (await doors.token("default", (scope,)))[0] for scope in ("read", "admin")}
    token = ""
    client = doors.client()
    chosen = random.Random(8)

    async def ask(path: str) -> dict[str, object]:
        answer = await client.ask("GET", path, Authorization=f"Bearer {token}")
        assert answer.status == 200, answer.body
        found: dict[str, object] = answer.json()
        return found

    from holdoverd.catalogue import cursors

    def some() -> int:
        return chosen.randrange(FILES)

    def deep() -> str:
        n = some()
        return cursors.encode("new", (1_700_000_000_000 + n, f"f_{n:016d}"))

    asked = {
        "list: the newest": lambda: "/v1/files",
        "list: a page in the middle": lambda: f"/v1/files?cursor={deep()}",
        "list: a folder of 1,000": lambda: f"/v1/files?path=team/{some() % 1000}",
        "search: a word of one file": lambda: f"/v1/files?q=n{some():07d}",
        "search: a word of every file": lambda: "/v1/files?q=report",
        "search: two words that every file has": lambda: "/v1/files?q=report+pdf",
        "search: two common words that no file has both of": lambda: "/v1/files?q=january+february",
        "search: two words": lambda: f"/v1/files?q=report+n{some():07d}",
        "look at one": lambda: f"/v1/files/f_{some():016d}",
    }
    # An administrator's lists are of everybody's files, and go by indexes of their own.
    admins = {f"{name}, an administrator": asked[name] for name in list(asked)[:8]}
    rows = []
    for name, path in (asked | admins).items():
        token = tokens["admin" if name in admins else "read"]
        runs = [await _p99(ask, path) for _ in range(ROUNDS)]
        rows.append(
            Row(
                f"1,000,000 files; {name}, p99",
                "ms",
                runs,
                "the bound",
                [BOUND_MS] * ROUNDS,
                at_most=1,
            )
        )
    return rows


async def _p99(ask: Callable[[str], Awaitable[object]], path: Callable[[], str]) -> float:
    times = []
    for _ in range(REQUESTS):
        target = path()
        started = time.perf_counter()
        await ask(target)
        times.append((time.perf_counter() - started) * 1000)
    return sorted(times)[int(len(times) * 0.99)]


def _signing() -> list[Row]:
    import boto3
    from botocore.config import Config

    settings = storage_settings("http://127.0.0.1:8333")
    store = Store(settings, KEYS)
    digest = "ab" * 32
    s3 = boto3.session.Session(KEYS.access_key, KEYS.secret_key, region_name="us-east-1").client(
        "s3", endpoint_url="http://127.0.0.1:8333", config=Config(signature_version="s3v4")
    )
    part = {"Bucket": "holdover", "Key": "f/o_1", "UploadId": "u", "ContentLength": 5}

    def ours(number: int) -> None:
        store.sign_part("f/o_1", "u", number, 5, digest, 3600)

    def theirs(number: int) -> None:
        s3.generate_presigned_url("upload_part", {**part, "PartNumber": number}, 3600)

    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(ROUNDS):
        for name, sign in (("ours", ours), ("theirs", theirs)):
            started = time.perf_counter()
            for number in range(1, SIGNED + 1):
                sign(number)
            rates[name].append(SIGNED / (time.perf_counter() - started))
    return [
        Row("signing part URLs", "URLs/s", rates["ours"], "boto3", rates["theirs"]),
        Row(
            "the same",
            "URLs/s",
            rates["ours"],
            "the bound",
            [float(SIGN_BOUND)] * ROUNDS,
            at_least=1,
        ),
    ]
