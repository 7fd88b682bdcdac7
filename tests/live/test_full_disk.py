"""The disk fills up in the middle of a turn: everything waits, nothing breaks, and it goes on.

The state folder (catalogue and spools) is a small tmpfs. A file takes whatever room there is, and
whatever is freed meanwhile, until neither the keeper can spool nor the daemon store.
"""

import contextlib
import hashlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio

from tests.live.kills import agent_pids, lines_of
from tests.live.up import Up, running, wait_until
from tests.live.watcher import Watcher
from tests.needs import needs_root

pytestmark = [pytest.mark.slow, needs_root]

DISK_MIB = 24
LINES = 500
BEFORE = 40
"""Lines that are heard before the disk fills up."""


class Filler:
    """A file that grows for as long as anything fits on its disk, until it is removed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._fill)
        self._thread.start()

    def _fill(self) -> None:
        while not self._over.is_set():
            size = 1024 * 1024
            while size >= 4096:
                try:
                    os.write(self._fd, bytes(size))
                except OSError:
                    size //= 2
            self._over.wait(0.002)

    def remove(self) -> None:
        self._over.set()
        self._thread.join()
        os.close(self._fd)
        self._path.unlink()


@contextlib.contextmanager
def small_disk(at: Path) -> Iterator[None]:
    at.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=700", "tmpfs", str(at)]
    subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True)


class Turn:
    """A session whose agent says numbered lines, a viewer, and prompts that come meanwhile."""

    def __init__(self, up: Up, after: str = "") -> None:
        self.up = up
        text = f"lines {LINES} rate 50 size 2048\n{after}"
        self.session: str = up.new_session(text)["id"]
        self.viewer = Watcher(up.admin_socket, self.session)
        self.accepted: list[str] = []
        """What the agent is to say to each accepted prompt, in order."""

    def prompt(self, prompt: dict[str, str]) -> tuple[int, Any]:
        status, answer = self.up.request("POST", f"/v1/sessions/{self.session}/prompts", prompt)
        if status == 202:
            payload = prompt["text"].removeprefix("sha\n").encode()
            self.accepted.append(f"sha256 {hashlib.sha256(payload).hexdigest()} {len(payload)}")
        return status, answer

    def prompt_until_refused(self) -> tuple[dict[str, str], Any]:
        """A prompt that could not be stored, and its error. The catalogue's log has some room."""

        def refused() -> Any:
            prompt = {"id": str(uuid4()), "text": f"sha\n{os.urandom(100_000).hex()}"}
            status, answer = self.prompt(prompt)
            assert status in (202, 503), answer
            return (prompt, answer["error"]) if status == 503 else None

        found: tuple[dict[str, str], Any] = wait_until(refused, "a prompt cannot be stored")
        return found

    def spool_is_full(self) -> bool:
        return "the disk of the spool is full" in self.up.output()

    def check(self, lines: int | None = LINES, notices: tuple[str, ...] = ()) -> None:
        """Nothing damaged, missing, repeated or out of order, in the log and before the viewer."""
        log = self.up.log(self.session)
        assert [m["seq"] for m in log] == list(range(1, len(log) + 1)) == self.viewer.seqs
        said = lines_of(log)
        assert said == lines_of(self.viewer.messages) == list(range(1, len(said) + 1))
        assert lines in (None, len(said))
        answers = [
            block["text"]
            for m in log
            if m["kind"] == "assistant"
            for block in m["body"]["message"]["content"]
            if block["text"].startswith("sha256 ")
        ]
        assert answers == self.accepted
        assert tuple(m["body"]["code"] for m in log if m["kind"] == "notice") == notices


async def in_thread(function: Any, *args: Any) -> Any:
    return await trio.to_thread.run_sync(function, *args)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with small_disk(tmp_path / "state"), running(tmp_path) as instance:
        yield instance


@pytest.mark.parametrize("killed", [False, True], ids=["daemon_lives", "daemon_killed"])
async def test_a_disk_that_fills_up_in_mid_turn_damages_and_loses_nothing(
    up: Up, killed: bool
) -> None:
    turn = await in_thread(Turn, up)
    agents = await in_thread(wait_until, lambda: agent_pids(up, turn.session), "the agent runs")
    daemon = up.daemon_pid()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turn.viewer.run)
        await turn.viewer.wait(lambda v: len(lines_of(v.messages)) >= BEFORE)
        filler = Filler(up.state / "filler")
        try:
            refused, error = await in_thread(turn.prompt_until_refused)
            assert error["code"] == "unavailable"
            assert "the disk is full" in error["message"]
            assert "Free space" in error["message"]
            await in_thread(wait_until, turn.spool_is_full, "the keeper cannot spool")
            # Nobody is served less than can be: what is stored can be read.
            log = await in_thread(up.log, turn.session)
            assert refused["id"] not in {m["client_id"] for m in log}
            assert len(lines_of(log)) >= BEFORE
            if killed:
                up.kill_daemon()
                await in_thread(
                    wait_until, lambda: up.daemon_pid() != daemon, "another daemon is tried"
                )
                await in_thread(
                    wait_until,
                    lambda: up.healthy() or "CRITICAL The catalogue" in up.output(),
                    "it serves, or says why it cannot",
                )
                if up.healthy():
                    assert (await in_thread(up.log, turn.session))[: len(log)] == log
        finally:
            filler.remove()
        await in_thread(wait_until, up.healthy, "the daemon serves")
        # The same prompt again, by and by as its error said: it was not stored before, it is now.
        await in_thread(
            wait_until, lambda: turn.prompt(refused)[0] == 202, "the prompt is accepted"
        )
        await turn.viewer.wait(
            lambda v: sum(m["kind"] == "result" for m in v.messages) == 1 + len(turn.accepted), 180
        )
        await in_thread(up.wait_state, turn.session, "idle")
        nursery.cancel_scope.cancel()
    turn.check()
    assert agent_pids(up, turn.session) == agents
    assert (up.daemon_pid() == daemon) is not killed


async def test_an_agent_that_dies_while_the_disk_is_full_is_heard_to_its_last_whole_line(
    up: Up,
) -> None:
    turn = await in_thread(Turn, up)
    (agent,) = (
        await in_thread(wait_until, lambda: agent_pids(up, turn.session), "the agent runs")
    ).values()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turn.viewer.run)
        await turn.viewer.wait(lambda v: len(lines_of(v.messages)) >= BEFORE)
        filler = Filler(up.state / "filler")
        try:
            await in_thread(wait_until, turn.spool_is_full, "the keeper cannot spool")
            os.kill(agent, signal.SIGKILL)
            await in_thread(
                wait_until, lambda: not agent_pids(up, turn.session), "the agent is gone"
            )
        finally:
            filler.remove()
        await turn.viewer.wait(lambda v: v.messages[-1]["kind"] == "notice")
        await in_thread(up.wait_state, turn.session, "dormant")
        nursery.cancel_scope.cancel()
    turn.check(lines=None, notices=("agent_exited",))
    told = turn.viewer.messages[-1]["body"]["data"]
    assert told["signal"] == signal.SIGKILL
