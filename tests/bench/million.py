"""One session of a million messages, in a catalogue that a real daemon serves.

**Pages**: the first and the last full page of the session, fetched by turns over one connection to
the admin socket; each run's figure is the 99th percentile of its fetches, beside 5 ms; and the last
page's median beside the first's.

**Search**: queries of one to three words, common, rare and absent ones, phrases, beginnings of
words, in everything and in the session; each run's figure is the 95th percentile, beside 300 ms.
Messages have about 90 words of a vocabulary of 50,000, as frequent as Zipf's law has it, so that
the commonest word stands in most of them.

**session ls**: from exec to exit against this daemon, beside `--help` of a one-command click
program.

**Storing**: messages like those with the index of search and without, by turns into new catalogues:
5 to a change, 20 sessions at once, which are indexed as they are stored; 50 to a change, 4 sessions,
which are indexed later. And that alone, beside storing them.
"""

import http.client
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode

import trio

from holdoverd.catalogue import changes, searched, sessions
from holdoverd.catalogue.records import Change, MessageRow, SessionRow, ThreadRow
from holdoverd.catalogue.store import Catalogue
from tests.bench.rows import Row
from tests.live.up import Up, running

MESSAGES = int(os.environ.get("BENCH_MESSAGES", "1000000"))
SESSION = "s_million000000000"
RUNS = 5
FETCHES = 400
STORED = 20_000
PAGE_MS = 5.0
SEARCH_MS = 300.0

ONE_COMMAND = Path(__file__).with_name("one_command.py")
HOLDOVER = "import sys\nfrom holdover.main import main\nsys.exit(main())\n"


class Lines:
    """Bodies of messages, the same in every run."""

    def __init__(self) -> None:
        self._random = random.Random(7)
        letters = "etaoinshrdlucmfwypvbgk"
        words: set[str] = set()
        while len(words) < 50_000:
            words.add("".join(self._random.choices(letters, k=self._random.randint(2, 11))))
        self.words = sorted(words)
        self._random.shuffle(self.words)
        self._weights = list(itertools.accumulate(1 / rank for rank in range(1, 50_001)))

    def take(self, first: int, count: int) -> list[MessageRow]:
        said = self._random.choices(self.words, cum_weights=self._weights, k=90 * count)
        return [
            MessageRow(
                seq, seq, "main", 1_700_000_000_000 + seq, "assistant", f"u{seq}", None, None,
                _body(" ".join(said[90 * at : 90 * at + 90])),
            )
            for at, seq in enumerate(range(first, first + count))
        ]  # fmt: skip

    def queries(self) -> list[str]:
        """Forty, the same in every run."""
        choose = random.Random(11)

        def word(low: int, high: int) -> str:
            return self.words[choose.randrange(low, high)]

        def ten(make: Callable[[], str]) -> list[str]:
            return [make() for _ in range(10)]

        return [
            *ten(lambda: word(0, 50)),
            *ten(lambda: f"{word(0, 2000)} {word(1000, 50_000)}"),
            *ten(lambda: f'"{word(0, 300)} {word(0, 300)}"'),
            *(f"{word(0, 50_000)[:4]}*" for _ in range(4)),
            *(f"{word(20, 200)} {word(20, 200)} {word(20, 200)}" for _ in range(4)),
            "nowhere",
            "AND (",
        ]


def _body(words: str) -> str:
    return (
        '{"type":"assistant","message":{"id":"msg_01","role":"assistant","content":'
        f'[{{"type":"text","text":"{words}"}}],"usage":{{"output_tokens":5}}}},'
        '"session_id":"00000000-0000-4000-8000-000000000000","parent_tool_use_id":null}'
    )


def _row(session: str) -> SessionRow:
    now = time.time_ns() // 1_000_000
    return SessionRow(
        session, "e1", "default", "holdover-agent", "demo", "agent", "/srv", "A long one", None,
        "default", None, "dormant", 0, 0.0, None, socket.gethostname(), 1, "0", 1, None, "{}", now,
        now, None,
    )  # fmt: skip


async def _store(catalogue: Catalogue, lines: Lines, count: int, session: str, each: int) -> None:
    opened = Change(threads=[ThreadRow("main", None, None, 0, "open")])
    await catalogue.write(lambda cx: sessions.create_session(cx, _row(session), opened))
    for first in range(1, count + 1, each):
        change = Change(messages=lines.take(first, min(each, count + 1 - first)))
        await catalogue.write(partial(_apply, session=session, change=change))


async def _index(catalogue: Catalogue) -> None:
    """All that is behind, without the pauses that the daemon makes."""
    while (session := await catalogue.read(searched.session_behind)) is not None:
        await catalogue.write(partial(searched.fill_slice, session=session, size=1000))


def _apply(cx: Any, session: str, change: Change) -> None:
    sessions.apply_change(cx, session, 1, change)


def _stored_per_s(lines: Lines, at_once: int, each: int, filled: list[float] | None) -> float:
    """Messages a second; `filled` gets how many were indexed a second afterwards."""
    count = STORED // at_once
    prepared = {
        f"s_{number}": [Change(messages=lines.take(at, each)) for at in range(1, count, each)]
        for number in range(at_once)
    }

    async def one(catalogue: Catalogue, session: str) -> None:
        opened = Change(threads=[ThreadRow("main", None, None, 0, "open")])
        await catalogue.write(lambda cx: sessions.create_session(cx, _row(session), opened))
        for change in prepared[session]:
            await catalogue.write(partial(_apply, session=session, change=change))

    async def all_of_them(catalogue: Catalogue) -> float:
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for session in prepared:
                nursery.start_soon(one, catalogue, session)
        stored = STORED / (time.perf_counter() - began)
        if filled is not None:
            began = time.perf_counter()
            await _index(catalogue)
            filled.append(STORED / (time.perf_counter() - began))
        return stored

    with tempfile.TemporaryDirectory() as folder:
        catalogue = Catalogue.open(f"sqlite:///{folder}/catalogue.db")
        try:
            return trio.run(all_of_them, catalogue)
        finally:
            catalogue.close()


def storing() -> Iterator[Row]:
    add = searched.add
    for at_once, each in ((20, 5), (4, 50)):
        later = each > searched.AT_ONCE
        with_index: list[float] = []
        without: list[float] = []
        filled: list[float] = []
        for _ in range(RUNS):
            with_index.append(_stored_per_s(Lines(), at_once, each, filled if later else None))
            changes.searched.add = lambda *_: None
            try:
                without.append(_stored_per_s(Lines(), at_once, each, None))
            finally:
                changes.searched.add = add
        what = "indexed later" if later else "and indexing"
        yield Row(
            f"storing, {each} to a change, {what}", "messages/s", with_index, "storing alone",
            without,
        )  # fmt: skip
        if later:
            yield Row("indexing them later", "messages/s", filled, "storing alone", without)


class _Asked:
    """One connection that is kept, as a client's is."""

    def __init__(self, path: Path) -> None:
        self._connection = http.client.HTTPConnection("localhost", timeout=60)
        self._connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.sock.connect(str(path))

    def ms(self, target: str) -> tuple[float, Any]:
        began = time.perf_counter()
        self._connection.request("GET", target)
        response = self._connection.getresponse()
        data = response.read()
        taken = (time.perf_counter() - began) * 1000
        assert response.status in (200, 400), data
        return taken, json.loads(data)


def _percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def pages(asked: _Asked) -> Iterator[Row]:
    last = MESSAGES // 100 - 1
    target = f"/v1/sessions/{SESSION}/messages?thread=main&page="
    slow: dict[int, list[float]] = {0: [], last: []}
    usual: dict[int, list[float]] = {0: [], last: []}
    for run in range(RUNS + 1):
        taken: dict[int, list[float]] = {0: [], last: []}
        for _ in range(FETCHES):
            for page, figures in taken.items():
                ms, answer = asked.ms(f"{target}{page}")
                figures.append(ms)
                assert len(answer["messages"]) == 100
        for page, found in taken.items():
            if run:  # the first warms
                slow[page].append(_percentile(found, 0.99))
                usual[page].append(median(found))
    for page, name in ((0, "first"), (last, "last")):
        yield Row(
            f"{name} page of {MESSAGES:,} messages, p99", "ms", slow[page], "its bound",
            [PAGE_MS] * RUNS, at_most=1.0,
        )  # fmt: skip
    yield Row(
        f"last page of {MESSAGES:,} messages", "ms", usual[last], "the first", usual[0], at_most=1.2
    )


def searches(asked: _Asked, queries: list[str]) -> Row:
    slow: list[float] = []
    each: dict[str, float] = {}
    for run in range(RUNS + 1):
        taken: list[float] = []
        for query in queries:
            for within in ({}, {"session": SESSION}):
                ms, _ = asked.ms("/v1/search?" + urlencode({"q": query, **within}))
                taken.append(ms)
                key = query + (" in the session" if within else "")
                each[key] = max(ms, each.get(key, 0.0)) if run else 0.0
        if run:
            slow.append(_percentile(taken, 0.95))
    return Row(
        f"search in {MESSAGES:,} messages, p95", "ms", slow, "its bound", [SEARCH_MS] * RUNS,
        at_most=1.0, details={"slowest_of_each_query_ms": each},
    )  # fmt: skip


def listing(up: Up, folder: Path, command: str, shown: bytes) -> Row:
    """`holdover COMMAND ls` against this daemon, beside `--help`; `shown` is in what it prints."""
    script = folder / "holdover_script.py"
    script.write_text(HOLDOVER)
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HOLDOVER_")},
        "HOLDOVER_RUNTIME_DIR": str(up.runtime),
    }
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    programs = {"ls": [str(script), command, "ls"], "help": [str(ONE_COMMAND), "--help"]}
    times: dict[str, list[float]] = {"ls": [], "help": []}
    for _ in range(26):
        for name, program in programs.items():
            began = time.perf_counter()
            ran = subprocess.run(
                [sys.executable, *program], env=env, stdout=subprocess.PIPE, check=True
            )
            times[name].append((time.perf_counter() - began) * 1000)
            assert name == "help" or shown in ran.stdout
    return Row(
        f"`holdover {command} ls`", "ms", times["ls"][1:], "--help of a one-command click program",
        times["help"][1:], at_most=2.5,
    )  # fmt: skip


def measure() -> Iterator[Row]:
    yield from storing()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lines = Lines()
        (folder / "state").mkdir()
        catalogue = Catalogue.open(f"sqlite:///{folder}/state/catalogue.db")
        trio.run(_store, catalogue, lines, MESSAGES, SESSION, 500)
        trio.run(_index, catalogue)
        catalogue.close()
        with running(folder) as up:
            asked = _Asked(up.admin_socket)
            yield from pages(asked)
            yield searches(asked, lines.queries())
            yield listing(up, folder, "session", SESSION.encode())
