"""A full disk, a read-only one, locks, killed and rival writers: refused by name, nothing torn."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from sqlalchemy import Connection, func, select

from holdoverd.catalogue import dialect as dialect_module
from holdoverd.catalogue import messages as message_table
from holdoverd.catalogue import schema, sessions
from holdoverd.catalogue.records import Change
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError
from tests.catalogue.examples import (
    SESSION,
    a_session,
    main_thread,
    message,
    on_sqlite,
    session_id,
)
from tests.needs import needs_root

pytestmark = pytest.mark.slow

LONG_S = 120
ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def writer(url: str, session: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.catalogue.writer_process", url, session, str(count)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )


def sound(cx: Connection) -> None:
    """The file is whole, and no session has a gap or a repeat."""
    if cx.dialect.name == "sqlite":
        assert cx.exec_driver_sql("PRAGMA integrity_check").scalars().all() == ["ok"]
        assert cx.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    table = schema.messages
    for row in cx.execute(select(schema.sessions.c.id, schema.sessions.c.last_seq)):
        found = cx.execute(
            select(func.count(), func.min(table.c.seq), func.max(table.c.seq)).where(
                table.c.session == row.id
            )
        ).one()
        assert tuple(found) == (
            (row.last_seq, 1, row.last_seq) if row.last_seq else (0, None, None)
        )


@contextlib.contextmanager
def tmpfs(size: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


@needs_root
async def test_a_full_disk_refuses_by_name_and_tears_nothing() -> None:
    with tmpfs("3m") as folder:
        catalogue = Catalogue.open(f"sqlite:///{folder}/catalogue.db")
        try:
            opened = Change(threads=[main_thread()])
            await catalogue.write(lambda cx: sessions.create_session(cx, a_session(), opened))
            filler = folder / "filler"
            filler.write_bytes(b"x" * 2**20)
            stored = 0

            async def until_full() -> None:
                nonlocal stored
                for seq in range(1, 200):
                    change = Change(messages=[message(seq, body="x" * 50_000)])
                    await catalogue.write(
                        lambda cx, c=change: sessions.apply_change(cx, SESSION, 1, c)
                    )
                    stored = seq

            with pytest.raises(CatalogueError, match=r"catalogue\.db has no room left.*Free space"):
                await until_full()
            row = await catalogue.read(lambda cx: sessions.session_row(cx, SESSION))
            assert row is not None
            assert row.last_seq == stored > 0
            await catalogue.read(sound)
            filler.unlink()  # room again: the very next write goes on where the last one ended
            change = Change(messages=[message(stored + 1, body="x" * 50_000)])
            await catalogue.write(lambda cx: sessions.apply_change(cx, SESSION, 1, change))
            await catalogue.read(sound)
        finally:
            catalogue.close()


@needs_root
async def test_a_write_too_large_for_the_disk_leaves_small_ones_to_others() -> None:
    with tmpfs("4m") as folder:
        catalogue = Catalogue.open(f"sqlite:///{folder}/catalogue.db")
        try:
            for name in (session_id(1), session_id(2)):
                opened = Change(threads=[main_thread()])
                row = a_session(id=name)
                await catalogue.write(lambda cx, r=row, c=opened: sessions.create_session(cx, r, c))
            large = Change(messages=[message(1, body="x" * 8 * 2**20)])
            with pytest.raises(CatalogueError, match="no room left"):
                await catalogue.write(lambda cx: sessions.apply_change(cx, session_id(1), 1, large))
            small = Change(messages=[message(1)])
            await catalogue.write(lambda cx: sessions.apply_change(cx, session_id(2), 1, small))
            await catalogue.read(sound)
        finally:
            catalogue.close()


@needs_root
def test_a_disk_without_room_for_a_new_catalogue_says_so() -> None:
    with tmpfs("64k") as folder, pytest.raises(CatalogueError, match=r"no room left|No space left"):
        Catalogue.open(f"sqlite:///{folder}/catalogue.db")


@needs_root
def test_a_read_only_filesystem_is_named() -> None:
    with tmpfs("3m") as folder:
        url = f"sqlite:///{folder}/catalogue.db"
        Catalogue.open(url).close()
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        with pytest.raises(CatalogueError, match="Read-only file system"):
            Catalogue.open(url)


READ_ONLY = """
import os, sys
import trio
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError
from tests.catalogue.test_catalogue_trouble import write_one

def run(url):
    catalogue = Catalogue.open(url)
    try:
        trio.run(write_one, catalogue)
    finally:
        catalogue.close()

run(sys.argv[1] + ".warm")  # imports all it needs, which nobody may not be allowed to read
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    run(sys.argv[1])
except CatalogueError as error:
    print(error)
"""


async def write_one(catalogue: Catalogue) -> None:
    await catalogue.write(lambda cx: sessions.create_session(cx, a_session(), Change()))


@needs_root
def test_a_file_the_daemon_may_not_write_is_named() -> None:
    """Owned by somebody else: what a wrong `chown` after a restore leaves behind."""
    folder = Path(tempfile.mkdtemp())
    try:
        Catalogue.open(f"sqlite:///{folder}/catalogue.db").close()
        for path in folder.iterdir():
            path.chmod(0o666)
        (folder / "catalogue.db").chmod(0o444)
        folder.chmod(0o777)
        script = folder / "script.py"
        script.write_text(READ_ONLY)
        ran = subprocess.run(
            [sys.executable, str(script), f"sqlite:///{folder}/catalogue.db"],
            env=environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LONG_S,
            check=False,
        )
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    assert "cannot be written: it is read-only" in ran.stdout, ran.stderr
    assert "Check its owner and mode" in ran.stdout


@on_sqlite
async def test_a_stranger_that_holds_the_lock_is_reported_and_waited_out(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialect_module, "TURN_TIMEOUT_S", 0.05)  # SQLite's own patience here
    catalogue = Catalogue.open(url)
    stranger = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    try:
        stranger.execute("BEGIN IMMEDIATE")
        with pytest.raises(CatalogueError, match=r"is locked by another program.*fuser"):
            await write_one(catalogue)
        stranger.execute("ROLLBACK")
        await write_one(catalogue)
    finally:
        stranger.close()
        catalogue.close()


@on_sqlite
async def test_another_instance_that_is_stopped_is_reported_by_its_turn(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = Catalogue.open(url)
    other = dialect_module.dialect_for(url)
    monkeypatch.setattr(
        dialect_module.SQLiteDialect, "turn", lambda self, _s=0: self._turn.held(0.01)
    )
    try:
        with other.turn():
            with pytest.raises(CatalogueError, match="did not finish within"):
                await write_one(catalogue)
            # Reading needs no turn.
            assert await catalogue.read(lambda cx: sessions.session_row(cx, SESSION)) is None
        await write_one(catalogue)
    finally:
        other.close()
        catalogue.close()


@on_sqlite
async def test_a_damaged_file_is_named(url: str) -> None:
    catalogue = Catalogue.open(url)
    await write_one(catalogue)
    catalogue.close()
    path = Path(url.removeprefix("sqlite:///"))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(CatalogueError, match=r"is damaged.*restore the last backup"):
        Catalogue.open(url)


def test_a_writer_killed_at_any_moment_has_stored_what_it_acknowledged(url: str) -> None:
    stored = 0
    for acks in (1, 2, 5, 9, 14):
        child = writer(url, SESSION, 0)
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(acks)]
        child.kill()
        child.wait(LONG_S)
        # Not communicate(): it would pass over what readline() has taken into its buffer already.
        with child.stdout as told:
            rest = told.read()
        # The last line may be cut; a line that is whole was acknowledged.
        acknowledged += [int(line) for line in rest.splitlines(keepends=True) if line[-1] == "\n"]
        assert acknowledged[0] == stored + 3  # it went on exactly where the last one ended
        catalogue = Catalogue.open(url)
        trio.run(catalogue.read, sound)
        row = trio.run(catalogue.read, lambda cx: sessions.session_row(cx, SESSION))
        catalogue.close()
        assert row is not None
        assert acknowledged[-1] <= row.last_seq <= acknowledged[-1] + 3
        stored = row.last_seq


def test_two_instances_write_at_once_and_neither_starves(url: str) -> None:
    """Each commits back to back, as in a handover under load; each has to come to its end."""
    children = [writer(url, session_id(number), 600) for number in (1, 2)]
    output = [child.communicate(timeout=LONG_S)[0].splitlines() for child in children]
    expected = [str(seq) for seq in range(3, 601, 3)]
    assert output == [[*expected, "done"]] * 2
    catalogue = Catalogue.open(url)
    trio.run(catalogue.read, sound)
    found = trio.run(
        catalogue.read,
        lambda cx: [
            len(message_table.log_after(cx, session_id(number), 0, 1000)) for number in (1, 2)
        ],
    )
    catalogue.close()
    assert found == [600, 600]
