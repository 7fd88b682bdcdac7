"""Copies of an SQLite catalogue: made while instances serve, brought back while none does.

    python -I -m holdoverd.catalogue.backup status|copy|restore CATALOGUE [SPOOLS HOST]

A process of its own, as the daemon's user: what it makes beside the catalogue has to be that user's,
and a file of root's there would stop the daemon. So bytes come and go by stdin and stdout, and
whoever called it sees to the other end. Synchronous; the standard library's sqlite3.

A copy is one file, a catalogue itself, with a note about where it came from in `meta`. Restoring
gives every session a new epoch, since what clients know of it may lie in a future that has not
happened: their cursors get `resync`, their pages and links 409. Launches that lived when the copy was
made are over by now, so they get an empty spool, which the next owner reads to its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from holdoverd import __version__
from holdoverd.catalogue import schema
from holdoverd.catalogue.turn import FileTurn
from holdoverd.errors import CatalogueError
from holdoverd.ids import new_id, now_ms

NOTE = "backup"
"""In `meta`: JSON of `Note`."""

TURN_S = 60.0
SESSIONS = "SELECT count(*) FROM sessions WHERE state != 'purged'"
ADDRESS = "sqlite:///"


@dataclass(frozen=True, slots=True)
class Note:
    """What a copy says of itself. `live`: launches whose agents ran then; `at` in ms."""

    at: int
    host: str
    release: str
    schema: int
    sessions: int
    messages: int
    live: int


def path_of(url: str) -> Path:
    """The file of an SQLite catalogue. Raises CatalogueError for another database."""
    if not url.startswith(ADDRESS):
        raise CatalogueError(
            "The catalogue is in PostgreSQL, whose own tools copy it while it is in use: "
            "`pg_dump --format=custom`, and `pg_restore` into an empty database."
        )
    return Path(url.removeprefix(ADDRESS))


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """`mode`: ``ro``, ``rw``. Transactions are begun by hand. Raises CatalogueError."""
    try:
        cx = sqlite3.connect(
            f"file:{quote(str(path))}?mode={mode}", uri=True, isolation_level=None, timeout=TURN_S
        )
        try:
            yield cx
        finally:
            cx.close()
    except sqlite3.Error as error:
        raise CatalogueError(f"{path}: {error}.") from error


def _one(cx: sqlite3.Connection, query: str) -> int:
    (value,) = cx.execute(query).fetchone()
    return int(value)


def _schema(cx: sqlite3.Connection, path: Path) -> int:
    tables = {name for (name,) in cx.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {"alembic_version", "meta", "sessions", "launches"} <= tables:
        raise CatalogueError(f"{path} is no catalogue of Holdover's.")
    return _one(cx, "SELECT version_num FROM alembic_version")


# --- looking ----------------------------------------------------------------------------------


def status(path: Path, *, check: bool = False) -> dict[str, object]:
    """What `holdover db status` shows; with `check` every page is read."""
    with _opened(path, "ro") as cx:
        cx.execute("BEGIN")
        found = {
            "path": str(path),
            "schema": _schema(cx, path),
            "release_schema": schema.VERSION,
            "bytes": path.stat().st_size,
            "wal_bytes": _size(Path(f"{path}-wal")),
            "sessions": _one(cx, SESSIONS),
            "messages": _one(cx, "SELECT count(*) FROM messages"),
            "live": _one(cx, "SELECT count(*) FROM launches WHERE state != 'ended'"),
        }
        if check:
            found["damage"] = _damage(cx)
        return found


def _damage(cx: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong; empty when sound."""
    lines = [str(line) for (line,) in cx.execute("PRAGMA integrity_check(20)")]
    return [] if lines == ["ok"] else lines


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def read_note(path: Path) -> Note:
    """Of a copy, whose every page is read. Raises CatalogueError for what cannot be restored."""
    with _opened(path, "ro") as cx:
        found = _schema(cx, path)
        if found > schema.VERSION:
            raise CatalogueError(
                f"{path} has schema {found} and this release knows {schema.VERSION}: a newer "
                "release made it. Install that release, then restore with it."
            )
        text = cx.execute("SELECT value FROM meta WHERE key = ?", (NOTE,)).fetchone()
        if text is None:
            raise CatalogueError(
                f"{path} is a catalogue in use or a plain copy of one, not a backup; "
                "`holdover db backup` makes one."
            )
        if damage := _damage(cx):
            raise CatalogueError(f"{path} is damaged: {damage[0]}. Use another backup.")
        return Note(**json.loads(text[0]))


# --- copying ----------------------------------------------------------------------------------


def copy(source: Path, target: BinaryIO, *, host: str) -> Note:
    """Write a copy of the catalogue as it is at one moment; writers go on meanwhile.

    It takes room for one more copy beside the catalogue until it is written out.
    """
    draft = source.with_name(f"{source.name}-copy-{os.getpid()}")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        with _opened(source, "ro") as cx, _opened(draft, "rw") as copied:
            # All pages in one step, hence from one snapshot: with more, a write of another process
            # would make it begin anew, and beside a busy daemon it would never end.
            cx.backup(copied, pages=-1)
            # One file, that can be opened where nobody may write.
            copied.execute("PRAGMA journal_mode = DELETE")
            note = Note(
                at=now_ms(),
                host=host,
                release=__version__,
                schema=_schema(copied, source),
                sessions=_one(copied, SESSIONS),
                messages=_one(copied, "SELECT count(*) FROM messages"),
                live=_one(copied, "SELECT count(*) FROM launches WHERE state != 'ended'"),
            )
            copied.execute(
                "INSERT INTO meta (key, value) VALUES (?, ?) "
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (NOTE, json.dumps(asdict(note))),
            )
            if damage := _damage(copied):
                raise CatalogueError(
                    f"{source} is damaged ({damage[0]}); the copy is not kept. An older backup "
                    "may be sound."
                )
        with draft.open("rb") as file:
            shutil.copyfileobj(file, target, 1024 * 1024)
        target.flush()
    finally:
        draft.unlink(missing_ok=True)
    return note


# --- bringing back ----------------------------------------------------------------------------


def restore(source: BinaryIO, path: Path, *, spools: Path, host: str) -> Path | None:
    """Put a copy in the place of the catalogue. No instance, and no agent, may run.

    The catalogue that was there is kept under the name that is returned; None: there was none.
    Raises CatalogueError, and then everything is as it was.
    """
    draft = path.with_name(f"{path.name}-restoring")
    draft.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            shutil.copyfileobj(source, file, 1024 * 1024)
            file.flush()
            os.fsync(file.fileno())
        note = read_note(draft)
        live = renew(draft, host=host)
        turn = FileTurn(path)
        try:
            with turn.held(TURN_S):
                kept = _set_aside(path, note)
                for spool in spools.glob("l_*.spool"):
                    spool.unlink()
                for launch in live:
                    (spools / f"{launch}.spool").touch(mode=0o600)
                draft.replace(path)
        finally:
            turn.close()
    finally:
        draft.unlink(missing_ok=True)
    return kept


def _set_aside(path: Path, note: Note) -> Path | None:
    """A second name for the catalogue that is there, with all that its log held.

    A second one, so that at no moment a daemon could find none and begin an empty one.
    """
    if not path.exists():
        return None
    try:
        with _opened(path, "rw") as cx:
            # What stands in the log belongs to this file, and would be taken for the other's.
            cx.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except CatalogueError:
        # Damaged, perhaps, which is why a backup is wanted: its log is kept beside it.
        pass
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(note.at / 1000))
    n = 1
    while (kept := path.with_name(f"{path.name}.before-{stamp}-{n}")).exists():
        n += 1
    os.link(path, kept)
    for suffix in ("-wal", "-shm"):
        beside = Path(f"{path}{suffix}")
        if suffix == "-wal" and _size(beside):
            beside.replace(f"{kept}{suffix}")
        beside.unlink(missing_ok=True)
    return kept


def renew(path: Path, *, host: str) -> list[str]:
    """Make the copy at `path` one that goes on here; the launches that it holds for living."""
    with _opened(path, "rw") as cx:
        cx.execute("BEGIN IMMEDIATE")
        for (session,) in cx.execute("SELECT id FROM sessions").fetchall():
            # Generation 0 never lived: whoever is first asked for the session adopts it.
            cx.execute(
                "UPDATE sessions SET epoch = ?, owner_epoch = owner_epoch + 1, host = ?, "
                "generation = 0 WHERE id = ?",
                (new_id("e"), host, session),
            )
        live = [
            launch for (launch,) in cx.execute("SELECT id FROM launches WHERE state != 'ended'")
        ]
        cx.execute("UPDATE launches SET \"offset\" = 0, replay_from = 0 WHERE state != 'ended'")
        cx.execute("DELETE FROM instances")
        cx.execute("DELETE FROM login_codes")
        cx.execute("DELETE FROM meta WHERE key = ?", (NOTE,))
        cx.execute("COMMIT")
    return live


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 1 not, with the reason on stderr."""
    try:
        match arguments:
            case ["status", path, *rest]:
                print(json.dumps(status(Path(path), check=rest == ["--check"])))
            case ["copy", path, host]:
                copy(Path(path), sys.stdout.buffer, host=host)
            case ["restore", path, spools, host]:
                kept = restore(sys.stdin.buffer, Path(path), spools=Path(spools), host=host)
                print(kept or "")
            case _:
                print("usage: status|copy|restore CATALOGUE [SPOOLS] [HOST]", file=sys.stderr)
                return 2
    except (CatalogueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main(sys.argv[1:]))
