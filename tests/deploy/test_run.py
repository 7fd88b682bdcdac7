"""A deploy told to stop takes itself back, wherever it is; a host that does nothing is enough."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from holdoverd.deploy import pulse, run
from holdoverd.deploy.layout import InstallError
from holdoverd.deploy.outcome import Outcome
from holdoverd.deploy.run import TOLD_TO_STOP, Deploy


class Idle:
    """Generation 1 serves and is permanent; generation 2 is started and never gets ready."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.named = 1
        self.on_trial: int | None = None
        self.alive = {1}

    def control_path(self, generation: int) -> Path:
        return self.folder / f"{generation}.sock"

    def public_address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def admin_path(self) -> Path:
        return self.folder / "admin.sock"

    def lock_path(self) -> Path:
        return self.folder / "deploy.lock"

    def outcome_path(self) -> Path:
        return self.folder / "deploy.json"

    def release_of(self, generation: int) -> str | None:
        return f"0.{generation}.0"

    def current(self) -> int | None:
        return self.named

    def trial(self) -> int | None:
        return self.on_trial

    def begin_trial(self, generation: int) -> None:
        self.on_trial = generation

    def end_trial(self) -> None:
        self.on_trial = None

    def commit(self, generation: int) -> None:
        self.named = generation

    def migrate(self, generation: int) -> None:
        pass

    def start(self, generation: int) -> None:
        self.alive.add(generation)

    def running(self, generation: int) -> bool:
        return generation in self.alive

    def ready(self, generation: int) -> bool:
        return generation == 1

    def failure(self, generation: int) -> str | None:
        return None

    def kill(self, generation: int) -> None:
        self.alive.discard(generation)

    def end_process(self, generation: int, pid: int) -> None:
        raise InstallError("nobody here stands still")

    def stop(self, generation: int) -> None:
        raise InstallError("nothing here has to be stopped")

    def live_generations(self) -> list[int]:
        return sorted(self.alive)


@pytest.fixture
def port() -> Iterator[int]:
    """Where ``/healthz`` is answered, by whoever serves."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def answer() -> None:
            body = json.dumps({"status": "ok"}).encode()
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
                    )

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    "moment",
    ["before it began", "while it waits for READY", "while systemctl runs, which ends too"],
)
def test_a_deploy_that_is_told_to_stop_takes_itself_back(
    tmp_path: Path, port: int, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Idle(tmp_path, port)
    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        if sentence.startswith("starting generation 2"):
            deploy.stop()

    def cut_off(generation: int) -> None:
        raise InstallError("systemctl failed")

    deploy = Deploy(host, 2, ready_s=60, bake_s=60, say=say)
    if moment == "before it began":
        deploy.stop()
    if moment.startswith("while systemctl"):
        monkeypatch.setattr(host, "start", cut_off)
    outcome = deploy.run()
    assert (outcome.state, outcome.reason) == ("rolled back", TOLD_TO_STOP)
    assert Outcome.read(host.outcome_path()) == outcome
    assert (host.named, host.on_trial, host.alive) == (1, None, {1})
    assert f"taking it back: {TOLD_TO_STOP}" in said


def test_a_predecessor_that_stands_still_is_ended_while_a_deploy_runs(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the only instance: nobody else would miss it."""
    monkeypatch.setattr(pulse, "SILENT_S", 0.5)
    host = Idle(tmp_path, port)
    ended: list[tuple[int, int]] = []

    def end_process(generation: int, pid: int) -> None:
        ended.append((generation, pid))
        deploy.stop()  # which would wait for the candidate's READY

    monkeypatch.setattr(host, "end_process", end_process)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.bind(str(host.control_path(1)))
        silent.listen(1)
        deploy = Deploy(host, 2, ready_s=60, bake_s=60, say=lambda _: None)
        assert deploy.run().reason == TOLD_TO_STOP
    assert ended[0] == (1, os.getpid())


def test_a_candidate_that_says_ready_and_nothing_more_is_taken_back_for_that(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "SILENT_S", 0.2)
    monkeypatch.setattr(run, "SPOKEN_S", 0.1)
    host = Idle(tmp_path, port)
    monkeypatch.setattr(host, "ready", lambda _: True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.bind(str(host.control_path(2)))
        silent.listen(8)
        outcome = Deploy(host, 2, ready_s=60, bake_s=60, say=lambda _: None).run()
    assert outcome.state == "rolled back"
    assert outcome.reason.startswith("it was READY; it had given no sign of life for ")


def test_a_candidate_that_was_silent_before_it_died_is_taken_back_for_both(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed for its silence, by an instance that noticed first."""
    monkeypatch.setattr(run, "SPOKEN_S", 0.1)
    host = Idle(tmp_path, port)
    monkeypatch.setattr(host, "ready", lambda _: True)
    killed = threading.Event()
    monkeypatch.setattr(
        host, "failure", lambda _: "it was killed by signal 9" if killed.is_set() else None
    )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(host.control_path(2)))
    listener.listen(8)

    def kill() -> None:
        killed.set()
        listener.close()

    timer = threading.Timer(0.5, kill)
    timer.start()
    outcome = Deploy(host, 2, ready_s=60, bake_s=60, say=lambda _: None).run()
    timer.join()
    assert outcome.reason.startswith("it was killed by signal 9; it had given no sign of life for ")


def test_what_is_permanent_stays_so(tmp_path: Path, port: int) -> None:
    host = Idle(tmp_path, port)
    host.named = 2
    deploy = Deploy(host, 2, ready_s=60, bake_s=60, say=lambda _: None)
    deploy.stop()
    assert deploy.run().state == "committed"
