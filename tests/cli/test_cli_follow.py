"""Following a session over real sockets: broken connections, permissions, Ctrl-C, pipes."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.cli.conftest import Holdover
from tests.cli.fake_daemon import FakeDaemon

pytestmark = pytest.mark.slow

ONE = "s_aaaaaaaaaaaaaaaa"
LONG_S = 60.0


def test_send_wait_shows_the_answer_and_exits_with_the_turns_success(
    daemon: FakeDaemon, holdover: Holdover
) -> None:
    daemon.add_session(ONE)
    ran = holdover("session", "send", ONE, "good morning", "--wait")
    assert ran.code == 0
    assert ran.out == "You said: good morning \n— done\n"


@pytest.mark.parametrize("cuts", [[0], [1], [2], [5], [7], [8, 1, 5], [6] * 4, [4] * 5])
def test_stream_that_breaks_anywhere_goes_on_in_mid_sentence(
    daemon: FakeDaemon, holdover: Holdover, cuts: list[int]
) -> None:
    daemon.live = True
    daemon.add_session(ONE)
    daemon.break_after = list(cuts)
    ran = holdover("session", "send", ONE, "1 2 3 4 5 6 7 8 9 10 11 12", "--wait")
    assert (ran.code, ran.out) == (0, "You said: 1 2 3 4 5 6 7 8 9 10 11 12 \n— done\n")
    assert daemon.break_after == []


def test_json_prints_each_message_once_whatever_breaks(
    daemon: FakeDaemon, holdover: Holdover
) -> None:
    daemon.live = True
    daemon.add_session(ONE)
    daemon.break_after = [2, 6, 1, 7]
    ran = holdover("session", "send", ONE, "hello", "--wait", "--json")
    frames = [json.loads(line) for line in ran.out.splitlines()]
    seqs = [m["seq"] for f in frames if f["type"] == "messages" for m in f["messages"]]
    assert seqs == [1, 2, 3]


def test_new_attach_ends_with_the_session(daemon: FakeDaemon, holdover: Holdover) -> None:
    daemon.close_code = 1000
    ran = holdover("session", "new", "--attach", "hello")
    assert ran.code == 0
    assert "has ended" in ran.err


@pytest.mark.parametrize(("code", "exit_code"), [(4001, 4), (4003, 4), (4004, 3), (1009, 1)])
def test_final_close_decides_the_exit_code(
    daemon: FakeDaemon, holdover: Holdover, code: int, exit_code: int
) -> None:
    daemon.add_session(ONE)
    daemon.close_code = code
    assert holdover("session", "attach", ONE).code == exit_code


def test_refused_upgrade_gives_the_daemons_reason(daemon: FakeDaemon, holdover: Holdover) -> None:
    error = {"error": {"code": "bad_request", "message": "after must be an integer."}}
    daemon.fail_next = [(400, error)]
    ran = holdover("session", "attach", ONE)
    assert (ran.code, ran.err) == (1, "holdover: after must be an integer.\n")


def test_daemon_that_cannot_serve_is_tried_again(daemon: FakeDaemon, holdover: Holdover) -> None:
    daemon.add_session(ONE)
    prompt_id = "00000000-0000-4000-8000-000000000000"
    daemon.prompt(ONE, {"id": prompt_id, "text": "hello"})
    daemon.fail_next = [(200, {"seq": 1}), (200, {"epoch": "e1"}), (503, {}), (502, {})]
    ran = holdover("session", "send", ONE, "hello", "--wait", "--id", prompt_id)
    assert ran.code == 0
    assert "You said: hello" in ran.out


def test_long_answer_is_fetched_whole(daemon: FakeDaemon, holdover: Holdover) -> None:
    model = daemon.add_session(ONE)
    text = "long " * 10
    model.store("assistant", {"message": {"content": [{"type": "text", "text": text}]}})
    cut = {**model.messages[0], "body": {"truncated": True, "size": 1, "preview": "lo"}}
    daemon.close_code = None
    whole = model.messages
    model.messages = [cut]
    with following(daemon, "session", "attach", ONE) as viewer:
        model.messages = whole
        viewer.expect("long long")


class Viewer:
    """A `holdover` on a terminal of its own."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", fd: int, held: int, settings: list[object]
    ) -> None:
        self.process = process
        self.held = held  # a copy of its end, since the settings go with the last one
        self.settings = settings  # before it began
        self.shown = ""
        self._fd = fd

    def expect(self, pattern: str) -> None:
        """Wait until what is on the screen matches."""
        until = time.monotonic() + LONG_S
        while not re.search(pattern, self.shown):
            assert time.monotonic() < until, f"{pattern!r} did not come: {self.shown!r}"
            if select.select([self._fd], [], [], 0.5)[0]:
                try:
                    self.shown += os.read(self._fd, 65_536).decode(errors="replace")
                except OSError:  # the other end is closed
                    assert re.search(pattern, self.shown), self.shown

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def exit_code(self) -> int:
        return self.process.wait(LONG_S)


@contextmanager
def following(daemon: FakeDaemon, *args: str, **env: str) -> Iterator[Viewer]:
    """On a terminal that can nothing, unless `env` names another TERM."""
    env = {"TERM": "dumb", **env}
    primary, secondary = pty.openpty()
    settings = termios.tcgetattr(secondary)
    process = subprocess.Popen(
        [sys.executable, "-m", "holdover", *args],
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NO_COLOR": "1", **env},
        preexec_fn=lambda: _own_terminal(secondary),
    )
    try:
        yield Viewer(process, primary, secondary, settings)
    finally:
        process.kill()
        process.wait()
        os.close(primary)
        os.close(secondary)


def _own_terminal(fd: int) -> None:
    import fcntl

    os.setsid()
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)


def wait_for(daemon: FakeDaemon, happened: Callable[[], bool]) -> None:
    with daemon.lock:
        assert daemon.lock.wait_for(happened, LONG_S)


def frames(daemon: FakeDaemon, kind: str) -> list[dict[str, object]]:
    return [body for how, what, body in daemon.requests if (how, what) == ("WS", kind)]


def test_typed_lines_are_prompts_and_ctrl_d_leaves(daemon: FakeDaemon) -> None:
    daemon.add_session(ONE)
    with following(daemon, "session", "attach", ONE) as viewer:
        viewer.type("good morning\n")
        viewer.expect(r"You said: good morning.*\n.*— done")
        assert viewer.shown.count("good morning") == 2  # typed, and in the answer
        viewer.type("\x04")
        assert viewer.exit_code() == 0


def test_permission_is_answered_by_a_key(daemon: FakeDaemon) -> None:
    model = daemon.add_session(ONE)
    with following(daemon, "session", "attach", ONE) as viewer:
        viewer.type("/help\n")
        viewer.expect("any other line is a prompt")
        asked = {"request": {"tool_name": "Bash", "input": {"command": "rm x"}}}
        with daemon.lock:
            daemon.tell(ONE, model.store("permission", asked, request_id="p_1"))
        viewer.expect(r'p_1 May it\? Bash\(command="rm x"\)')
        viewer.expect("Waiting for you")
        viewer.type("d not today\n")
        wait_for(daemon, lambda: bool(frames(daemon, "answer")))
        said = frames(daemon, "answer")[0]
        assert (said["request_id"], said["behavior"], said["message"]) == (
            "p_1",
            "deny",
            "not today",
        )


def test_first_ctrl_c_interrupts_the_turn_and_the_second_leaves(daemon: FakeDaemon) -> None:
    model = daemon.add_session(ONE, state="working")
    model.store("assistant", {"message": {"content": "at work"}})
    with following(daemon, "session", "attach", ONE) as viewer:
        viewer.expect("at work")
        viewer.type("\x03")
        wait_for(daemon, lambda: bool(frames(daemon, "interrupt")))
        viewer.expect("Ctrl-C again leaves")
        viewer.type("\x03")
        assert viewer.exit_code() == 130


def test_ctrl_c_leaves_at_once_when_nobody_types(daemon: FakeDaemon) -> None:
    daemon.add_session(ONE, state="working")
    process = subprocess.Popen(
        [sys.executable, "-m", "holdover", "session", "attach", ONE, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["type"] == "hello"
    process.send_signal(signal.SIGINT)
    assert process.wait(LONG_S) == 130
    process.stdout.close()


def test_answer_typed_while_nobody_is_connected_is_said_on_the_next_connection(
    daemon: FakeDaemon,
) -> None:
    model = daemon.add_session(ONE)
    asked = {"request": {"tool_name": "Bash", "input": {}}}
    model.store("permission", asked, request_id="p_1")
    model.pending = [{"request_id": "p_1", "tool_name": "Bash", "input": {}}]
    daemon.details[ONE].pop("pending")
    with following(daemon, "session", "attach", ONE) as viewer:
        viewer.expect("Waiting for you")
        busy = {"error": {"code": "unavailable", "message": "starting"}}
        with daemon.lock:
            daemon.fail_next = [(503, busy), (503, busy), (503, busy)]
            for stream in daemon.streams:
                stream.cut()
        viewer.expect("trying again")
        viewer.type("a\n")
        wait_for(daemon, lambda: bool(frames(daemon, "answer")))
        assert frames(daemon, "answer")[0]["behavior"] == "allow"


def test_prompt_sent_from_a_thread_other_than_the_main_one_works(
    daemon: FakeDaemon, holdover: Holdover
) -> None:
    """Signals belong to the main thread; a follower elsewhere leaves them alone."""
    daemon.add_session(ONE)
    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(holdover("session", "send", ONE, "hi", "--wait").code)
    )
    thread.start()
    thread.join(LONG_S)
    assert codes == [0]
