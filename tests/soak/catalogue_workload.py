"""The ingest in small: spools that nobody syncs, read into the real catalogue, checked to the byte.

`python -m tests.soak.catalogue_workload FOLDER [careless]` appends numbered lines to one spool per
session, stores them with the spool's offset in one change, and prints ``SESSION SEQ`` once that is
acknowledged. ``careless`` opens the catalogue without syncs: the check must find that out.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import sqlite3
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import trio
from sqlalchemy import Connection

from holdoverd.catalogue import dialect as dialect_module
from holdoverd.catalogue import messages as message_table
from holdoverd.catalogue import sessions
from holdoverd.catalogue.records import Change, MessageRow, OutboxRow
from holdoverd.catalogue.store import Catalogue
from tests.catalogue.examples import a_launch, a_session, main_thread

SESSIONS = 4


def line(session: str, seq: int) -> str:
    """The line of a number: its own length and content follow from it alone."""
    digest = hashlib.sha256(f"{session} {seq}".encode()).hexdigest()
    return f'{{"session":"{session}","seq":{seq},"hash":"{digest * (1 + seq % 20)}"}}'


def launch_of(session: str) -> str:
    return f"l_{session}"


class CatalogueWorkload:
    """See `tests.soak.power.Workload`."""

    def __init__(self, *, careless: bool = False) -> None:
        self._careless = careless

    def command(self, folder: Path) -> Sequence[str]:
        program = [sys.executable, "-m", "tests.soak.catalogue_workload", str(folder)]
        return [*program, "careless"] if self._careless else program

    def check(self, folder: Path, acknowledged: Sequence[str]) -> Counter[str]:
        promised: dict[str, int] = {}
        for acknowledgement in acknowledged:
            session, seq = acknowledgement.split()
            promised[session] = int(seq)
        return trio.run(_check, folder, promised)


async def _check(folder: Path, promised: dict[str, int]) -> Counter[str]:
    figures: Counter[str] = Counter()
    if not (folder / "catalogue.db").exists():
        assert not promised, "the catalogue itself is gone"
        return Counter(before_creation=1)
    try:
        catalogue = Catalogue.open(f"sqlite:///{folder}/catalogue.db")
    except Exception as error:
        raise AssertionError(f"the catalogue does not open: {error}") from error
    try:
        await catalogue.read(_integrity)
        for number in range(SESSIONS):
            session = f"s_{number}"
            figures += await catalogue.read(
                lambda cx, s=session: _check_session(cx, folder, s, promised.get(s, 0))
            )
        # And work goes on where it ended.
        for session in promised:
            row = await catalogue.read(lambda cx, s=session: sessions.session_row(cx, s))
            assert row is not None
            change = Change(messages=[_message(session, row.last_seq + 1)])
            await catalogue.write(
                lambda cx, r=row, c=change: sessions.apply_change(cx, r.id, r.owner_epoch, c)
            )
    finally:
        catalogue.close()
    return figures


def _integrity(cx: Connection) -> None:
    found = cx.exec_driver_sql("PRAGMA integrity_check").scalars().all()
    assert found == ["ok"], f"the database is damaged: {found[:3]}"
    assert cx.exec_driver_sql("PRAGMA foreign_key_check").all() == []


def _check_session(cx: Connection, folder: Path, session: str, promised: int) -> Counter[str]:
    loaded = sessions.load_session(cx, session)
    if loaded is None:
        assert promised == 0, f"{session} is gone"
        return Counter()
    last = loaded.row.last_seq
    assert last >= promised, f"{session}: {promised} acknowledged, {last} left"
    log = message_table.log_after(cx, session, 0, last + 10)
    assert [row.seq for row in log] == list(range(1, last + 1)), f"{session}: a gap or a repeat"
    assert [row.n for row in log] == list(range(1, last + 1))
    for row in log:
        assert row.body == line(session, row.seq), f"{session}: message {row.seq} is torn"
    assert [(row.thread, row.n) for row in loaded.threads] == [("main", last)]
    (launch,) = loaded.launches
    read = sum(len(row.body) + 1 for row in log)
    assert launch.offset == read, f"{session}: offset {launch.offset}, but {read} bytes are stored"
    # Acknowledged commands are gone, those numbered after are there: all one moment.
    assert [row.n for row in loaded.outbox] == ([last] if last else [])
    spool = folder / f"{session}.spool"
    content = spool.read_bytes() if spool.exists() else b""
    expected = "".join(f"{line(session, seq)}\n" for seq in range(1, last + 200)).encode()
    # A file nobody syncs may come back with its new length and without its last bytes: an append
    # within a block that the disk has already moves the length at the next commit of ext4's
    # journal, and any fsync of any file is one. The bytes are zero then, never another's.
    length = len(content)
    written = content.rstrip(b"\0")
    assert expected.startswith(written), f"{session}: the spool holds what was never appended"
    assert length <= len(expected)
    return Counter(
        sessions=1,
        messages=last,
        unacknowledged=last - promised,
        spools_shorter_than_offset=length < read,
        spools_ending_in_zeros=length > len(written),
    )


def _message(session: str, seq: int) -> MessageRow:
    return MessageRow(
        seq, seq, "main", seq, "assistant", f"{session}-{seq}", None, None, line(session, seq)
    )


async def _session(catalogue: Catalogue, folder: Path, session: str) -> None:
    spool = os.open(folder / f"{session}.spool", os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
    launch = a_launch(launch_of(session), session=session)
    opened = Change(threads=[main_thread()], launch=launch)
    await catalogue.write(lambda cx: sessions.create_session(cx, a_session(id=session), opened))
    sizes = random.Random(session)
    last = 0
    for number in itertools.count(1):
        count = sizes.randint(1, 8)
        for seq in range(last + 1, last + count + 1):
            os.write(spool, f"{line(session, seq)}\n".encode())
        content = os.pread(spool, 2**20, launch.offset)
        launch.offset += len(content)
        launch.replay_from = launch.offset
        launch.last_n = number
        messages = [_message(session, last + 1 + index) for index in range(content.count(b"\n"))]
        change = Change(
            messages=messages,
            threads=[main_thread(last + count)],
            launch=launch,
            outbox=[OutboxRow(launch.id, last + count, "line", None, last + 1)],
            outbox_acked=(launch.id, last) if last else None,
            session={"updated_at": number},
        )
        await catalogue.write(lambda cx, c=change: sessions.apply_change(cx, session, 1, c))
        last += count
        os.write(1, f"{session} {last}\n".encode())


async def _work(folder: Path) -> None:
    catalogue = Catalogue.open(f"sqlite:///{folder}/catalogue.db")
    async with trio.open_nursery() as nursery:
        for number in range(SESSIONS):
            nursery.start_soon(_session, catalogue, folder, f"s_{number}")


def _forget_to_sync() -> None:
    careful = dialect_module._pragmas

    def careless(connection: sqlite3.Connection, *pragmas: str) -> None:
        careful(connection, *pragmas)
        careful(connection, "synchronous=OFF")

    dialect_module._pragmas = careless


if __name__ == "__main__":
    if sys.argv[2:] == ["careless"]:
        _forget_to_sync()
    trio.run(_work, Path(sys.argv[1]))
