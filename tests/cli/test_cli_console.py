"""`session attach` on a real pseudo-terminal, read back through a terminal emulator."""

import io
import os
import re
import select
import signal
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cli.fake_daemon import FakeDaemon
from tests.cli.model_session import ModelSession
from tests.cli.screen import Screen
from tests.cli.test_cli_follow import LONG_S, ONE, Viewer, following, frames, wait_for

pytestmark = pytest.mark.slow


class Person:
    """Somebody at the terminal: sees the screen, presses keys."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self.screen = Screen()
        self.settings = viewer.settings

    def sees(self, pattern: str) -> None:
        until = time.monotonic() + LONG_S
        while not re.search(pattern, self.screen.text()):
            assert time.monotonic() < until, f"{pattern!r} did not come:\n{self.screen.text()}"
            if select.select([self._viewer._fd], [], [], 0.5)[0]:
                self.read()

    def read(self) -> bool:
        """What has come; False once the other side has closed the terminal."""
        try:
            data = os.read(self._viewer._fd, 65_536)
        except OSError:
            return False
        self.screen.feed(data.decode(errors="replace"))
        return bool(data)

    def press(self, keys: str) -> None:
        self._viewer.type(keys)

    def finds_it_clean(self, code: int) -> None:
        """After the end: settings as before, nothing half drawn, the cursor on a free line."""
        assert self._viewer.exit_code() == code
        while select.select([self._viewer._fd], [], [], 0.1)[0] and self.read():
            pass
        assert termios.tcgetattr(self._viewer.held) == self.settings
        assert not self.screen.bracketed_paste
        assert self.screen.rows[self.screen.row] == ""
        assert not re.search(r"^> ", self.screen.text(), re.MULTILINE)


@contextmanager
def attached(daemon: FakeDaemon) -> Iterator[Person]:
    with following(daemon, "session", "attach", ONE, TERM="xterm") as viewer:
        yield Person(viewer)


def asks(daemon: FakeDaemon, model: ModelSession, request_id: str, **more: object) -> None:
    asked = {"tool_name": "Bash", "input": {"command": f"rm {request_id}"}, **more}
    model.pending.append({"request_id": request_id, "suggestions": [], **asked})
    daemon.details[ONE].pop("pending", None)
    with daemon.lock:
        daemon.tell(ONE, model.store("permission", {"request": asked}, request_id=request_id))
        daemon.tell(ONE, [{"type": "session", "session": model.session()}])


def test_an_answer_is_drawn_as_markdown_while_it_is_written(daemon: FakeDaemon) -> None:
    model = daemon.add_session(ONE)
    with attached(daemon) as person:
        person.sees(r"(?m)^> $|^>$")
        with daemon.lock:
            daemon.tell(ONE, [*model.begin_message(), *model.begin_block()])
            daemon.tell(ONE, model.say("# Head\n\nSome **wo"))
        person.sees("Some")
        with daemon.lock:
            daemon.tell(ONE, model.say("rds** more"))
        person.sees("Some words more")
        with daemon.lock:
            daemon.tell(ONE, model.finish())
            daemon.tell(ONE, model.store("result", {"subtype": "success"}))
        person.sees("— done")
        text = person.screen.text()
        assert text.count("Head") == text.count("Some words more") == 1
        assert "#" not in text
        assert "**" not in text
        person.press("\x04")
        person.finds_it_clean(0)


def test_a_broken_connection_goes_on_in_mid_sentence(daemon: FakeDaemon) -> None:
    model = daemon.add_session(ONE)
    with attached(daemon) as person:
        person.sees(">")
        with daemon.lock:
            daemon.tell(ONE, [*model.begin_message(), *model.begin_block()])
            daemon.tell(ONE, model.say("one two "))
        person.sees("one two")
        with daemon.lock:
            for stream in daemon.streams:
                stream.cut()
            model.open[-1] += "three "
        person.sees("one two three")
        with daemon.lock:
            wait = daemon.lock.wait_for(lambda: len(daemon.streams) > 0, LONG_S)
            assert wait
            daemon.tell(ONE, model.say("four"))
            daemon.tell(ONE, model.finish())
        person.sees("one two three four")
        assert person.screen.text().count("one two") == 1
        person.press("\x04")
        person.finds_it_clean(0)


def test_one_key_answers_and_a_reason_is_typed(daemon: FakeDaemon) -> None:
    model = daemon.add_session(ONE)
    with attached(daemon) as person:
        person.sees(">")
        rule = {"type": "addRules", "rules": []}
        asks(daemon, model, "p_1", suggestions=[rule])
        person.sees(r'May it\? Bash\(command="rm p_1"\)')
        person.sees("a allows · d denies .* s allows from now on")
        person.press("a")
        wait_for(daemon, lambda: len(frames(daemon, "answer")) == 1)
        model.pending.clear()
        asks(daemon, model, "p_2")
        person.sees("rm p_2")
        person.press("r")
        person.sees("why not")
        person.press("not today\r")
        wait_for(daemon, lambda: len(frames(daemon, "answer")) == 2)
        model.pending.clear()
        asks(daemon, model, "p_3", suggestions=[rule])
        person.sees("rm p_3")
        person.press("s")
        wait_for(daemon, lambda: len(frames(daemon, "answer")) == 3)
        said = [
            {k: v for k, v in a.items() if k not in {"type", "ref"}}
            for a in frames(daemon, "answer")
        ]
        assert said == [
            {"request_id": "p_1", "behavior": "allow"},
            {"request_id": "p_2", "behavior": "deny", "message": "not today"},
            {"request_id": "p_3", "behavior": "allow", "remember": rule},
        ]
        # A letter that answers is a letter like others once a prompt is being written.
        model.pending.clear()
        asks(daemon, model, "p_4")
        person.sees("rm p_4")
        person.press("iadd a test\r")
        wait_for(daemon, lambda: len(frames(daemon, "prompt")) == 1)
        assert frames(daemon, "prompt")[0]["text"] == "add a test"


def test_several_questions_are_answered_by_keys_and_by_words(daemon: FakeDaemon) -> None:
    model = daemon.add_session(ONE)
    options = [{"label": "Red"}, {"label": "Green"}]
    questions = [
        {"question": "Which one?", "options": options},
        {"question": "Which of them?", "options": options, "multiSelect": True},
        {"question": "And else?", "options": options},
    ]
    with attached(daemon) as person:
        person.sees(">")
        given = {"questions": questions}
        asks(daemon, model, "p_1", tool_name="AskUserQuestion", input=given)
        person.sees(r"\(1 of 3\) Which one\?")
        person.press("2")
        person.sees(r"\(2 of 3\) Which of them\?")
        person.press("12")
        person.sees(r"2 \[x\] Green")
        person.press("\r")
        person.sees(r"\(3 of 3\) And else\?")
        person.press("o")
        person.sees("your answer:")
        person.press("a darker one\r")
        wait_for(daemon, lambda: len(frames(daemon, "answer")) == 1)
        (answer,) = frames(daemon, "answer")
        assert answer["updated_input"] == {
            **given,
            "answers": {
                "Which one?": "Green",
                "Which of them?": "Red, Green",
                "And else?": "a darker one",
            },
        }


def test_what_begins_with_a_slash_goes_to_the_agent(daemon: FakeDaemon) -> None:
    daemon.add_session(ONE)
    with attached(daemon) as person:
        person.sees(">")
        person.press("/compact now\r")
        wait_for(daemon, lambda: bool(frames(daemon, "prompt")))
        assert frames(daemon, "prompt")[0]["text"] == "/compact now"
        person.sees("You said: /compact now")
        # Several lines at once are one prompt, sent by Enter.
        person.press("\x1b[200~first\rsecond\x1b[201~")
        person.sees("first⏎second")
        person.press("\r")
        wait_for(daemon, lambda: len(frames(daemon, "prompt")) == 2)
        assert frames(daemon, "prompt")[1]["text"] == "first\nsecond"


def test_ctrl_c_interrupts_and_twice_leaves_the_terminal_clean(daemon: FakeDaemon) -> None:
    daemon.add_session(ONE, state="working")
    with attached(daemon) as person:
        person.sees("working")
        person.press("half a line")
        person.sees("half a line")
        person.press("\x03")
        wait_for(daemon, lambda: bool(frames(daemon, "interrupt")))
        person.sees("Ctrl-C again leaves")
        person.press("\x03")
        person.finds_it_clean(130)


def test_a_terminal_is_clean_after_a_signal_and_after_the_end(daemon: FakeDaemon) -> None:
    daemon.add_session(ONE)
    with attached(daemon) as person:
        person.sees(">")
        person._viewer.process.send_signal(signal.SIGTERM)
        person.finds_it_clean(143)
    daemon.close_code = 1000
    with attached(daemon) as person:
        person.finds_it_clean(0)
        person.sees("has ended")


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(daemon: FakeDaemon) -> None:
    daemon.add_session(ONE)
    with attached(daemon) as person:
        person.sees(">")
        pid = person._viewer.process.pid
        os.kill(pid, signal.SIGTSTP)
        os.waitpid(pid, os.WUNTRACED)
        while person.screen.bracketed_paste:
            assert person.read()
        assert termios.tcgetattr(person._viewer.held) == person.settings
        os.kill(pid, signal.SIGCONT)
        person.sees(r"(?m)^>")
        person.press("\x04")
        person.finds_it_clean(0)


def test_the_qr_code_on_a_terminal_is_that_of_the_address(daemon: FakeDaemon) -> None:
    import segno

    url = "http://127.0.0.1:8780/#login=me"
    expected = io.StringIO()
    segno.make(url, error="l", micro=False).terminal(expected, border=2, compact=True)
    with following(daemon, "login", "--qr", TERM="xterm") as viewer:
        viewer.expect("Good once")
    assert expected.getvalue().strip() in viewer.shown.replace("\r\n", "\n")
    assert url in viewer.shown
