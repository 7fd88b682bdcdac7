"""Turns: one holder at a time, nobody starved, everything bounded, no trace of the dead."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from holdoverd.catalogue import turn as turn_module
from holdoverd.catalogue.turn import FileTurn, bell_of
from holdoverd.errors import CatalogueError

LONG_S = 60.0

HOLD = """
import sys
from pathlib import Path
from holdoverd.catalogue.turn import FileTurn
with FileTurn(Path(sys.argv[1])).held(60):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that has the turn until its stdin is closed."""
    paths = [entry for entry in sys.path if entry]
    child = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {HOLD}", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def finish(child: subprocess.Popen[str]) -> None:
    child.communicate(timeout=LONG_S)


def test_two_never_have_it_at_once(tmp_path: Path) -> None:
    first, second = FileTurn(tmp_path / "db"), FileTurn(tmp_path / "db")
    inside: list[str] = []
    overlaps: list[list[str]] = []

    def take(turn: FileTurn, name: str) -> None:
        for _ in range(50):
            with turn.held(LONG_S):
                inside.append(name)
                if len(inside) > 1:
                    overlaps.append(list(inside))
                inside.remove(name)

    threads = [
        threading.Thread(target=take, args=(turn, name))
        for turn, name in ((first, "first"), (second, "second"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
        assert not thread.is_alive()
    assert overlaps == []
    first.close()
    second.close()


def test_whoever_has_written_stands_back_for_one_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the busy one wins nearly every race for the lock that it has just let go."""
    assert turn_module._STAND_BACK_S > 2 * turn_module._POLL_S
    path = tmp_path / "db"
    busy, waiting = FileTurn(path), FileTurn(path)
    got, stands_back = threading.Event(), threading.Event()
    pauses: list[float] = []

    def wait_rung(_bell: int | None, _timeout_s: float) -> None:
        if threading.current_thread() is thread:
            assert stands_back.wait(LONG_S)  # the one who waits is too slow to win by itself
        else:
            os.sched_yield()  # the other has got its turn, and is not over yet

    def sleep(seconds: float) -> None:
        if threading.current_thread() is thread:
            os.sched_yield()  # it has not been able to say that it waits
            return
        pauses.append(seconds)
        stands_back.set()
        assert got.wait(LONG_S)

    def wait() -> None:
        with waiting.held(LONG_S):
            got.set()

    thread = threading.Thread(target=wait)
    monkeypatch.setattr(turn_module, "_wait_rung", wait_rung)
    monkeypatch.setattr(turn_module.time, "sleep", sleep)
    monkeypatch.setattr(turn_module, "_STAND_BACK_S", LONG_S)
    for _ in range(2):
        with busy.held(LONG_S):
            pass
    assert pauses == []  # nobody waits: no time is lost
    with busy.held(LONG_S):
        thread.start()
        deadline = time.monotonic() + LONG_S
        while not _somebody_waits(path):
            assert time.monotonic() < deadline
            os.sched_yield()
    assert pauses == []  # whoever waits for what was written has it at once
    with busy.held(LONG_S):
        assert got.is_set()
    assert len(pauses) == 1
    thread.join(LONG_S)
    with busy.held(LONG_S):
        pass
    assert len(pauses) == 1
    busy.close()
    waiting.close()


def test_whoever_waits_is_rung_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another process, too: the bell is a file."""
    monkeypatch.setattr(turn_module, "_POLL_S", 10 * LONG_S)
    path = tmp_path / "db"
    child, turn = holder(path), FileTurn(path)
    got = threading.Event()

    def wait() -> None:
        with turn.held(20 * LONG_S):
            got.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    deadline = time.monotonic() + LONG_S
    while not _somebody_waits(path):
        assert time.monotonic() < deadline
        os.sched_yield()
    finish(child)
    assert got.wait(LONG_S)
    thread.join(LONG_S)
    turn.close()


@pytest.mark.parametrize("there", ["nothing that may be opened", "another file", "nobody rings"])
def test_without_a_bell_those_who_wait_look_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    path = tmp_path / "db"
    match there:
        case "nothing that may be opened":
            bell_of(path).mkdir()
        case "another file":
            bell_of(path).touch()
        case _:
            monkeypatch.setattr(turn_module, "_ring", lambda _bell: None)
    first, second = FileTurn(path), FileTurn(path)
    waits = threading.Event()
    got = threading.Event()

    def wait() -> None:
        waits.set()
        with second.held(LONG_S):
            got.set()

    thread = threading.Thread(target=wait)
    with first.held(0):
        thread.start()
        assert waits.wait(LONG_S)
        while not _somebody_waits(path):
            os.sched_yield()
    assert got.wait(LONG_S)
    thread.join(LONG_S)
    first.close()
    second.close()


def test_whoever_copies_all_that_is_named_like_the_database_waits_for_nothing(
    tmp_path: Path,
) -> None:
    turn = FileTurn(tmp_path / "db")
    with turn.held(0):
        assert all(path.is_file() for path in tmp_path.glob("db*"))
    turn.close()
    assert bell_of(tmp_path / "db").is_fifo()


def test_a_bell_that_nobody_hears_does_not_hold_up_who_rings(tmp_path: Path) -> None:
    turn = FileTurn(tmp_path / "db")
    with turn.held(0):
        pass
    bell = os.open(bell_of(tmp_path / "db"), os.O_RDWR | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(bell, bytes(4096))
    descriptor = os.open(tmp_path / "db-wait", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # somebody waits, and stands still
    for _ in range(3):
        with turn.held(0):
            pass
    os.close(descriptor)
    os.close(bell)
    turn.close()


def test_whoever_comes_again_after_a_while_stands_back_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = FileTurn(tmp_path / "db")
    monkeypatch.setattr(turn_module, "_STAND_BACK_S", 0.0)
    with turn.held(LONG_S):
        descriptor = os.open(f"{tmp_path}/db-wait", os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # somebody waits, and does not poll
    monkeypatch.setattr(turn_module.time, "sleep", lambda _s: pytest.fail("it stands back"))
    with turn.held(0):
        pass
    os.close(descriptor)
    turn.close()


def _somebody_waits(path: Path) -> bool:
    descriptor = os.open(f"{path}-wait", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_a_turn_that_does_not_come_says_who_to_look_for(tmp_path: Path) -> None:
    path = tmp_path / "db"
    child = holder(path)
    turn = FileTurn(path)
    with pytest.raises(CatalogueError, match=r"within 0\.01 s.*fuser .*db-turn"), turn.held(0.01):
        raise AssertionError("the turn is held by another process")
    finish(child)
    with turn.held(LONG_S):
        pass
    turn.close()


def test_a_turn_ends_with_the_process_that_had_it(tmp_path: Path) -> None:
    path = tmp_path / "db"
    child = holder(path)
    child.kill()
    finish(child)
    turn = FileTurn(path)
    with turn.held(0):
        pass
    turn.close()


def test_an_exception_gives_the_turn_back(tmp_path: Path) -> None:
    turn, other = FileTurn(tmp_path / "db"), FileTurn(tmp_path / "db")
    with pytest.raises(ValueError, match="inside"), turn.held(0):
        raise ValueError("inside")
    with other.held(0):
        pass
    turn.close()
    turn.close()
    other.close()


def test_lock_files_that_cannot_be_made_are_named(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    (tmp_path / "db-wait").mkdir()
    turn = FileTurn(tmp_path / "db")
    with pytest.raises(CatalogueError, match=r"db-wait cannot be opened: Is a directory"):
        turn.held(0).__enter__()
    turn = FileTurn(tmp_path / "nowhere" / "db")
    with pytest.raises(CatalogueError, match=r"nowhere/db-turn .*Check that its folder exists"):
        turn.held(0).__enter__()
    assert set(os.listdir("/proc/self/fd")) <= before  # nothing left open
