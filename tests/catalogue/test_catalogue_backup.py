"""Copies of a catalogue: of one moment while others write, and brought back as one that goes on."""

import io
import json
import sqlite3
from pathlib import Path

import pytest

from holdoverd.catalogue import backup, schema
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError
from holdoverd.ids import now_ms

SESSION = """INSERT INTO sessions (id, epoch, owner, account, agent, agent_session, permission_mode,
    state, last_seq, cost_usd, host, generation, release, owner_epoch, live, created_at, updated_at)
    VALUES (?, ?, 'default', 'holdover-agent', 'demo', 'u', 'default', ?, 0, 0, 'old-host', 7,
    '0.2.0', 5, '{}', 1, 1)"""
LAUNCH = """INSERT INTO launches (id, session, nonce, owner_epoch, state, "offset", replay_from, last_n,
    created_at, boot_id) VALUES (?, ?, 'n', 5, ?, 900, 800, 1, 1, 'b')"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A catalogue with two sessions, one of them with an agent that runs."""
    found = tmp_path / "state/catalogue.db"
    found.parent.mkdir()
    Catalogue.open(f"sqlite:///{found}").close()
    with sqlite3.connect(found) as cx:
        cx.execute(SESSION, ("s_live", "e_1", "working"))
        cx.execute(SESSION, ("s_rest", "e_2", "dormant"))
        cx.execute(LAUNCH, ("l_live", "s_live", "live"))
        cx.execute(LAUNCH, ("l_over", "s_rest", "ended"))
        cx.execute("INSERT INTO instances VALUES ('old-host', 7, '0.2.0', 'serving', 1, 1)")
    cx.close()
    return found


def copied(path: Path) -> bytes:
    out = io.BytesIO()
    backup.copy(path, out, host="old-host")
    return out.getvalue()


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    cx = sqlite3.connect(path)
    try:
        return cx.execute(query).fetchall()
    finally:
        cx.close()


def test_a_copy_is_one_sound_file_that_says_what_it_is(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    target.write_bytes(copied(path))
    note = backup.read_note(target)
    assert (note.host, note.schema) == ("old-host", schema.VERSION)
    assert (note.sessions, note.messages, note.live) == (2, 0, 1)
    assert abs(note.at - now_ms()) < 60_000
    # Nothing is left beside the catalogue, and the catalogue itself is no backup.
    assert [one.name for one in path.parent.glob("*copy*")] == []
    with pytest.raises(CatalogueError, match="not a backup"):
        backup.read_note(path)


def test_a_copy_beside_a_writer_holds_all_that_was_committed_before(
    path: Path, tmp_path: Path
) -> None:
    """What is in the log alone, and what is being written, which is not in the copy."""
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute(SESSION, ("s_new", "e_3", "idle"))
    writer.execute("BEGIN IMMEDIATE")
    writer.execute(SESSION, ("s_open", "e_4", "idle"))
    target = tmp_path / "copy.db"
    target.write_bytes(copied(path))
    writer.execute("COMMIT")
    writer.close()
    assert backup.read_note(target).sessions == 3
    assert len(rows(path, "SELECT id FROM sessions")) == 4


def test_restored_every_session_has_a_new_epoch_and_nobody_who_owns_it(
    path: Path, tmp_path: Path
) -> None:
    copy = copied(path)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "spool").mkdir(parents=True)
    target = elsewhere / "catalogue.db"
    kept = backup.restore(io.BytesIO(copy), target, spools=elsewhere / "spool", host="new-host")
    assert kept is None
    found = rows(
        target, "SELECT id, epoch, owner_epoch, host, generation FROM sessions ORDER BY id"
    )
    assert [(row[0], *row[2:]) for row in found] == [
        ("s_live", 6, "new-host", 0),
        ("s_rest", 6, "new-host", 0),
    ]
    epochs = {str(row[1]) for row in found}
    assert len(epochs) == 2
    assert not epochs & {"e_1", "e_2"}
    assert rows(target, "SELECT * FROM instances") == []
    # The launch that lived is to be read to its end, which is where it begins.
    assert rows(target, 'SELECT id, "offset", replay_from FROM launches ORDER BY id') == [
        ("l_live", 0, 0),
        ("l_over", 900, 800),
    ]
    assert [spool.name for spool in (elsewhere / "spool").iterdir()] == ["l_live.spool"]
    assert (target.stat().st_mode & 0o777) == 0o600
    Catalogue.open(f"sqlite:///{target}").close()


def test_what_was_there_is_kept_with_all_of_its_log(path: Path) -> None:
    copy = copied(path)
    with sqlite3.connect(path) as cx:
        cx.execute(SESSION, ("s_later", "e_5", "idle"))
    cx.close()
    spools = path.parent / "spool"
    spools.mkdir()
    (spools / "l_later.spool").write_text("of an agent that is gone\n")
    kept = backup.restore(io.BytesIO(copy), path, spools=spools, host="old-host")
    assert kept is not None
    assert kept.name.startswith("catalogue.db.before-")
    assert len(rows(kept, "SELECT id FROM sessions")) == 3
    assert len(rows(path, "SELECT id FROM sessions")) == 2
    assert not (spools / "l_later.spool").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "newer"])
def test_what_cannot_be_restored_is_refused_and_changes_nothing(path: Path, damage: str) -> None:
    copy = bytearray(copied(path))
    if damage == "cut":
        copy = copy[: len(copy) // 2]
    elif damage == "flipped":
        copy[8192 * 3 : 8192 * 6] = bytes(8192 * 3)
    elif damage == "other":
        copy = bytearray(b"no database at all" * 999)
    elif damage == "newer":
        newer = path.with_name("newer.db")
        newer.write_bytes(copy)
        with sqlite3.connect(newer) as cx:
            cx.execute("UPDATE alembic_version SET version_num = '9999'")
        cx.close()
        copy = bytearray(newer.read_bytes())
    before = path.read_bytes()
    spools = path.parent / "spool"
    spools.mkdir()
    (spools / "l_live.spool").write_text("line\n")
    with pytest.raises(CatalogueError):
        backup.restore(io.BytesIO(bytes(copy)), path, spools=spools, host="h")
    assert path.read_bytes() == before
    assert (spools / "l_live.spool").read_text() == "line\n"
    assert [one.name for one in path.parent.glob("*restoring*")] == []


def test_status_says_where_and_how_much(path: Path) -> None:
    found = backup.status(path, check=True)
    assert (found["schema"], found["release_schema"]) == (schema.VERSION, schema.VERSION)
    assert (found["sessions"], found["live"], found["messages"]) == (2, 1, 0)
    assert found["damage"] == []
    assert json.loads(json.dumps(found)) == found


def test_postgresql_is_copied_by_its_own_tools() -> None:
    with pytest.raises(CatalogueError, match="pg_dump"):
        backup.path_of("postgresql+psycopg://u@h/d")
    assert backup.path_of("sqlite:////var/lib/x.db") == Path("/var/lib/x.db")
