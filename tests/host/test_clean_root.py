"""The README's two commands on a clean Debian 12: a fresh clone, no systemd, a second terminal.

What is missing comes from the package registries, as it would for a visitor.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import clean_root as roots
from tests.host.machine import SOURCE, Machine
from tests.live.up import wait_until

pytestmark = [pytest.mark.host, pytest.mark.slow]

CLONE = "/usr/src/holdover"
UPSTREAM = "/srv/holdover.git"
# Timeouts, not figures: half a minute on an idle machine, and as long again for the tests' tools.
SET_UP_S = 600.0
QUICK_S = 900.0
TURN_S = 120.0

# A terminal's foreground job: a process group of its own, whose leader says its number.
FOREGROUND = "echo $$ >/run/job.new; mv /run/job.new /run/job; exec make run"


@pytest.fixture(scope="module")
def clone(clean_root: Machine) -> Machine:
    """The machine with a fresh clone of what is committed here, and nothing set up."""
    with tempfile.TemporaryDirectory(prefix="holdover-clone-") as scratch:
        bare = Path(scratch) / "holdover.git"
        subprocess.run(["git", "clone", "--quiet", "--bare", SOURCE, bare], check=True)
        shutil.copytree(bare, clean_root.path(UPSTREAM))
    clean_root.run(["git", "clone", "--quiet", UPSTREAM, CLONE])
    return clean_root


class Terminals:
    """`make run` in one terminal, what a person types in others."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.machine = machine
        self.folder = folder
        self.screen = folder / "make-run"
        self._open: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """`make run`; returns when it has said all."""
        self.job = self._in_background(
            "make-run", ["setsid", "--wait", "sh", "-c", FOREGROUND], env=roots.trust_environment()
        )
        wait_until(
            lambda: self.job.poll() is not None or "make install" in self.text(),
            "`make run` has said what to type",
            SET_UP_S,
        )
        assert self.job.poll() is None, self.text()

    def text(self) -> str:
        return self.screen.read_text(errors="replace")

    def type(self, command: str) -> str:
        """Run a line of a second terminal to its end; what it printed."""
        done = self.machine.run(["sh", "-c", command], cwd=CLONE, timeout_s=TURN_S)
        return done.stdout

    def leave_running(self, name: str, command: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Run a line of another terminal; its process and the file with what it prints."""
        return self._in_background(name, ["sh", "-c", command]), self.folder / name

    def _in_background(
        self, name: str, command: list[str], env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with (self.folder / name).open("wb") as screen:
            process: subprocess.Popen[bytes] = self.machine.popen(
                command,
                cwd=CLONE,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=subprocess.STDOUT,
            )
        self._open.append(process)
        return process

    def ctrl_c(self) -> None:
        """As in the terminal of `make run`: to the whole foreground job."""
        leader = self.machine.read("/run/job").strip()
        self.machine.run(["bash", "-c", f"kill -INT -- -{leader}"])
        self.job.wait(60)

    def close(self) -> None:
        for process in self._open:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def terminals(clone: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminals]:
    """`make run` runs; other terminals are open."""
    opened = Terminals(clone, tmp_path_factory.mktemp("screens"))
    try:
        opened.start()
        yield opened
    finally:
        opened.close()


def running(machine: Machine) -> str:
    """The command lines of everything of Holdover's that runs."""
    look = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -o '[-]m holdoverd[.a-z]*' || true"
    return machine.run(["sh", "-c", look]).stdout


def test_make_run_says_what_it_is_and_the_next_line_works_as_printed(terminals: Terminals) -> None:
    said = terminals.text()
    assert "demo: a built-in stand-in" in said
    assert "http://127.0.0.1:8780" in said
    found = re.search(r"type next:\n\n +(\S.*)\n", said)
    assert found, said
    _, screen = terminals.leave_running("first", found[1])
    wait_until(lambda: "— done" in screen.read_text(), "the first prompt is answered", TURN_S)
    assert "You said: hello" in screen.read_text()


def test_the_daemon_is_killed_in_mid_sentence_and_the_sentence_goes_on(
    terminals: Terminals,
) -> None:
    session = terminals.type(".venv/bin/holdover session new").strip()
    agent = terminals.type(f".venv/bin/holdover session send {session} pid --wait")
    assert "pid " in agent

    attached, screen = terminals.leave_running(
        "attached", f".venv/bin/holdover session attach {session} --after 0"
    )
    terminals.type(f".venv/bin/holdover session send {session} 'stream 120 rate 12'")
    wait_until(
        lambda: len(screen.read_text().rpartition("rate 12\n")[2].split()) > 10,
        "the sentence has begun",
        TURN_S,
    )
    found = re.search(r"process (\d+); kill -9", terminals.text())
    assert found, terminals.text()
    # In mid-sentence: the turn has no result yet.
    assert "working" in terminals.type(f".venv/bin/holdover session show {session}")
    terminals.type(f"kill -9 {found[1]}")
    wait_until(
        lambda: screen.read_text().count("— done") == 2, "the sentence has come to its end", TURN_S
    )
    assert "pid " in terminals.type(f".venv/bin/holdover session send {session} pid --wait")
    assert "The daemon was killed by signal 9" in terminals.text()

    terminals.type(f".venv/bin/holdover session end {session}")
    assert attached.wait(TURN_S) == 0
    shown = screen.read_text().replace(f"Session {session} has ended.\n", "")
    log = terminals.type(f".venv/bin/holdover session log {session}")
    # Whole, in order, nothing twice: the log was written from what was stored.
    assert shown == log
    messages = [
        json.loads(line)
        for line in terminals.type(f".venv/bin/holdover session log --json {session}").splitlines()
    ]
    assert [message["seq"] for message in messages] == list(range(1, len(messages) + 1))
    told = [
        block["text"]
        for message in messages
        if message["kind"] == "assistant"
        for block in message["body"]["message"]["content"]
    ]
    first, sentence, last = told
    assert first == last, "another process answered"
    assert len(sentence.split()) == 120


def test_ctrl_c_leaves_nothing_running(terminals: Terminals) -> None:
    assert "-m holdoverd" in running(terminals.machine)
    terminals.ctrl_c()
    assert "Stopping" in terminals.text()
    assert running(terminals.machine) == ""


def test_make_quick_passes(clone: Machine) -> None:
    done = clone.run(
        ["make", "quick"],
        cwd=CLONE,
        env=roots.trust_environment(),
        check=False,
        timeout_s=QUICK_S,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert re.search(r"\d+ passed", done.stdout), done.stdout[-2000:]
