"""Changes of an account's skills, as transactions on ordinary folders.

    ~/.local/share/holdover/skills/   lock          held while anything is looked at or changed
                                      state.json    what Holdover installed, from where; its versions
                                      versions/     skills by the digest of their contents
                                      journal.json  the change under way, if there is one

A change is planned, staged beside the place it goes to, made durable, and *decided* by one rename of
the journal. What was not decided when the helper was killed is thrown away by whoever comes next; what
was is finished. Whoever comes next is the next request, or the next launch of an agent: none starts
between the old state and the new (`keeper` calls `recover`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from holdoverd.errors import SkillError
from holdoverd.skills import sources
from holdoverd.skills.tree import Entry, Tree, digest

Json = dict[str, Any]
Observer = Callable[[str], None]

PLACE = ".local/share/holdover/skills"
STAGING = ".holdover-skills-"
MAX_VERSIONS = 20
"""Of one skill; the oldest go."""


def _quiet(step: str) -> None:
    """Nobody watches; the tests stop the process at each step by name."""


class Put(NamedTuple):
    """Make `place` hold `version` (of the store), or nothing (None)."""

    place: Path
    version: str | None


class Store:
    """The account's versions and its record of them. Use within `locked`."""

    def __init__(self, home: str, observe: Observer = _quiet) -> None:
        self.folder = Path(home) / PLACE
        self._observe = observe
        self.state: Json = {"skills": {}}

    @contextlib.contextmanager
    def locked(self) -> Iterator[Store]:
        """Nobody else looks or changes meanwhile; what a killed helper left is settled first."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._settle()
            self.state = self._load()
            yield self
        finally:
            os.close(lock)

    # -- what is known ---------------------------------------------------------------------------

    def records(self, folder: Path) -> dict[str, Json]:
        """{name: record} of a skills folder: source, version, history, pinned, enabled, …"""
        found: dict[str, Json] = self.state["skills"].setdefault(str(folder), {})
        return found

    def read(self, version: str) -> dict[str, Entry]:
        """A kept version. Raises SkillError where it was lost."""
        try:
            return sources.read_folder(str(self.folder / "versions" / version), "a kept version")
        except OSError as error:
            raise SkillError(
                f"the version {version[:12]} is not kept any more", code="not_found"
            ) from error

    def keep(self, tree: Tree) -> str:
        """Keep a version; returns its digest. Complete or not there at all, and never changed."""
        name = digest(tree)
        place = self.folder / "versions" / name
        if not place.exists():
            self._observe("keep_version")
            place.parent.mkdir(exist_ok=True)
            half = place.parent / f".{name}.{secrets.token_hex(4)}"
            write_tree(half, tree)
            os.rename(half, place)
            _sync(place.parent)
        return name

    # -- the change ------------------------------------------------------------------------------

    def commit(self, puts: list[Put]) -> None:
        """Do all of `puts` and store the state, or nothing. Raises SkillError, OSError."""
        tx = secrets.token_hex(6)
        stages: dict[Path, Path] = {}  # {skills folder: its staging folder, on the same filesystem}
        for put in puts:
            folder = put.place.parent
            stages[folder] = folder.parent / f"{STAGING}{tx}"
        journal: Json = {"decided": False, "stages": [str(stage) for stage in stages.values()]}
        self._observe("write_journal")
        self._write("journal.json", journal)
        moves = []
        try:
            for number, put in enumerate(puts):
                stage = stages[put.place.parent]
                put.place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                (stage / "old").mkdir(mode=0o700, parents=True, exist_ok=True)
                new = None
                if put.version is not None:
                    self._observe("stage")
                    new = stage / f"new-{number}"
                    write_tree(new, self.read(put.version))
                moves.append(
                    {
                        "place": str(put.place),
                        "new": None if new is None else str(new),
                        "old": str(stage / "old" / str(number)),
                    }
                )
                if not os.access(put.place.parent, os.W_OK | os.X_OK):
                    raise SkillError(
                        f"this account may not write to {put.place.parent}", code="refused"
                    )
        except BaseException:
            self._forget(journal)
            raise
        journal |= {"decided": True, "moves": moves, "state": self.state}
        self._observe("decide")
        self._write("journal.json", journal)
        try:
            self._finish(journal)
        except OSError:
            # A folder that no longer takes a rename: back, as far as we came.
            self._undo(journal)
            self._forget(journal)
            raise

    def save(self) -> None:
        """Store the state alone: nothing in a skills folder changes."""
        self._write("state.json", self.state)

    def _finish(self, journal: Json) -> None:
        """Bring a decided change to its end, from wherever it was left."""
        for move in journal["moves"]:
            place, new, old = move["place"], move["new"], move["old"]
            if not os.path.lexists(os.path.dirname(old)):
                continue  # staging is gone already: all moves were made
            if new is not None and not os.path.lexists(new):
                continue
            if os.path.lexists(place):
                if os.path.lexists(old):
                    if new is None:
                        continue
                    old = f"{old}-{secrets.token_hex(4)}"  # somebody made it anew meanwhile
                self._observe("move_old")
                os.rename(place, old)
            if new is not None:
                self._observe("move_new")
                os.rename(new, place)
            _sync(Path(place).parent)
        self._observe("write_state")
        self._write("state.json", journal["state"])
        self._forget(journal)

    def _undo(self, journal: Json) -> None:
        for move in reversed(journal["moves"]):
            place, new, old = move["place"], move["new"], move["old"]
            with contextlib.suppress(OSError):
                if new is not None and not os.path.lexists(new) and os.path.lexists(place):
                    os.rename(place, new)
                if os.path.lexists(old) and not os.path.lexists(place):
                    os.rename(old, place)

    def _forget(self, journal: Json) -> None:
        """Remove what a change leaves, the journal last."""
        for stage in journal["stages"]:
            self._observe("clear_stage")
            shutil.rmtree(stage, ignore_errors=True)
        self._observe("remove_journal")
        (self.folder / "journal.json").unlink(missing_ok=True)

    def _settle(self) -> None:
        journal = self._read_json("journal.json")
        if journal is not None:
            self._finish(journal) if journal["decided"] else self._forget(journal)

    def tidy(self) -> None:
        """Remove versions that no skill has in its history."""
        wanted = {
            version
            for records in self.state["skills"].values()
            for record in records.values()
            for version in record["history"]
        }
        with contextlib.suppress(OSError):
            for kept in (self.folder / "versions").iterdir():
                if kept.name not in wanted:
                    shutil.rmtree(kept, ignore_errors=True)

    # -- files -----------------------------------------------------------------------------------

    def _load(self) -> Json:
        return self._read_json("state.json") or {"skills": {}}

    def _read_json(self, name: str) -> Json | None:
        try:
            found = json.loads((self.folder / name).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise SkillError(
                f"{self.folder / name} is damaged; move it away, and skills count as not installed"
                " by Holdover",
            ) from error
        return found if isinstance(found, dict) else None

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        half = self.folder / f".{name}.new"
        with half.open("wb") as file:
            file.write(json.dumps(value, indent=1, sort_keys=True).encode())
            file.flush()
            os.fsync(file.fileno())
        os.rename(half, self.folder / name)
        _sync(self.folder)


def recover(home: str) -> None:
    """Settle what a killed helper left; called before an agent starts. Cheap where there is nothing."""
    if os.path.lexists(f"{home}/{PLACE}/journal.json"):
        with Store(home).locked():
            pass


def write_tree(place: Path, tree: Tree) -> None:
    """Write a skill that was checked (`tree.check_links`) into the new folder `place`, durably."""
    place.mkdir(mode=0o755)
    folders = {place}
    for path, entry in tree.items():
        target = place / path
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        folders.add(target.parent)
        if entry.kind == "link":
            os.symlink(entry.data, os.fsencode(target))
            continue
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        mode = 0o755 if entry.kind == "program" else 0o644
        with open(os.open(target, flags, mode), "wb") as file:
            file.write(entry.data)
            file.flush()
            os.fsync(file.fileno())
    for folder in folders:
        _sync(folder)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
