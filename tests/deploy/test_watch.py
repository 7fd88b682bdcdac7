"""A deploy's ear for the instances before it: sockets as theirs, and processes that stand still."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdoverd.deploy import pulse
from holdoverd.deploy.layout import InstallError
from holdoverd.deploy.watch import HELLO, Watch
from tests.deploy.test_run import Idle
from tests.live.up import wait_until

MINE = 8


class Host(Idle):
    """Generation 7 is READY, and whoever is named in `ready_ones`; remembers who was ended."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 0)
        self.ready_ones = {7}
        self.ended: list[tuple[int, int]] = []

    def ready(self, generation: int) -> bool:
        return generation in self.ready_ones

    def end_process(self, generation: int, pid: int) -> None:
        self.ended.append((generation, pid))


class Here:
    """An instance's control socket, of this process."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen(8)
        self.listener.settimeout(10)

    def accept(self) -> socket.socket:
        asking, _ = self.listener.accept()
        assert asking.recv(1024) == HELLO
        return asking


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def opened() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def listening(opened: contextlib.ExitStack, host: Host, generation: int) -> Here:
    here = Here(host.control_path(generation))
    opened.callback(here.listener.close)
    return here


def watching(opened: contextlib.ExitStack, host: Host, say: Callable[[str], None] = print) -> Watch:
    """Without its thread: `step` does what that does, once."""
    watch = Watch(host, MINE, say)
    opened.callback(watch.close)
    return watch


def step(watch: Watch) -> None:
    watch._seek()
    watch._listen()


def test_one_that_speaks_is_left_alone_and_one_that_is_silent_for_too_long_is_ended(
    host: Host, opened: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    watch = watching(opened, host, said.append)
    seven = listening(opened, host, 7)
    step(watch)
    with seven.accept() as asking:
        monkeypatch.setattr(pulse, "SILENT_S", 0.0)  # from now on any look without a word is one
        for _ in range(3):
            asking.send(b'{"t":"beat"}')
            step(watch)
        assert host.ended == []
        step(watch)
        assert host.ended == [(7, os.getpid())]
        assert said[0].startswith("generation 7 has given no sign of life for 3 s; process ")


def test_whoever_ends_the_connection_is_asked_anew_and_not_ended(
    host: Host, opened: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "SILENT_S", 0.0)
    watch = watching(opened, host)
    seven = listening(opened, host, 7)
    watch._seek()
    seven.accept().close()
    watch._listen()
    watch._seek()
    with seven.accept() as again:
        again.send(b"{}")
        watch._listen()
    assert host.ended == []


@pytest.mark.parametrize("generation", [7, MINE, 9])
def test_who_is_not_ready_or_no_predecessor_is_not_asked(
    host: Host, opened: contextlib.ExitStack, generation: int
) -> None:
    host.ready_ones = {MINE, 9}
    here = listening(opened, host, generation)
    here.listener.setblocking(False)
    watch = watching(opened, host)
    step(watch)
    with pytest.raises(BlockingIOError):
        here.listener.accept()
    host.ready_ones = {6, 7, MINE, 9}
    step(watch)
    if generation == 7:
        here.listener.accept()[0].close()


def test_what_a_killed_process_has_left_is_nobody(
    host: Host, opened: contextlib.ExitStack, tmp_path: Path
) -> None:
    Here(host.control_path(7)).listener.close()
    (tmp_path / "x.sock").touch()
    step(watching(opened, host))
    assert host.ended == []


def test_a_host_that_refuses_is_asked_again(
    host: Host, opened: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise InstallError("systemctl hangs")

    watch = watching(opened, host)
    listening(opened, host, 7)
    step(watch)
    monkeypatch.setattr(pulse, "SILENT_S", 0.0)
    monkeypatch.setattr(host, "end_process", refuse)
    step(watch)
    monkeypatch.undo()
    monkeypatch.setattr(pulse, "SILENT_S", 0.0)
    step(watch)
    assert host.ended == [(7, os.getpid())]


STANDS_STILL = """
import os, signal, socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
listener.listen(8)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_process_that_stands_still_dies_while_a_deploy_runs(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "SILENT_S", 0.5)
    monkeypatch.setattr(host, "end_process", lambda _, pid: os.kill(pid, signal.SIGKILL))
    path = host.control_path(7)
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", STANDS_STILL, str(path)]) as process:
        try:
            with Watch(host, MINE, print):
                assert wait_until(lambda: process.poll(), "it is dead", 30) == -signal.SIGKILL
        finally:
            process.kill()
