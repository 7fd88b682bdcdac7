"""The terminal itself: text that stays, a region below it that is drawn anew, keys one by one.

Nothing is ever drawn above the region, so that the terminal's own scrolling, searching and copying
work as for any program. Whatever was changed about the terminal is changed back.
"""

import os
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

from holdover.keys import Keys
from holdover.stream import Inbox, Keyed, Line

_PASTE_ON, _PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"


def usable(out: TextIO) -> bool:
    """Whether keys can be read and a region drawn: both sides are a terminal that can."""
    return sys.stdin.isatty() and out.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Terminal:
    """Use it as a context: it is as it was afterwards, whichever way that ends."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._in = sys.stdin.fileno()
        self._before: list[object] = []
        self._region: list[str] = []
        self._column = 0
        self._drawn = 0  # rows of the region that are on the screen

    @property
    def size(self) -> tuple[int, int]:
        """(columns, rows)"""
        size = shutil.get_terminal_size()
        return max(20, size.columns), max(4, size.lines)

    @contextmanager
    def open(self, inbox: Inbox) -> Iterator[None]:
        """Keys go to the inbox while it is open."""
        self._before = termios.tcgetattr(self._in)
        reader = threading.Thread(target=_read_keys, args=(self._in, inbox), daemon=True)
        self._take()
        reader.start()
        try:
            with _signals(self):
                yield
        finally:
            self.give_back()

    def _take(self) -> None:
        # Ctrl-C and Ctrl-Z stay signals, also while the program is busy.
        tty.setcbreak(self._in, termios.TCSADRAIN)
        self._out.write(_PASTE_ON)
        self._out.flush()

    def give_back(self) -> None:
        """Leave the terminal as it was, the cursor below all that stays."""
        with suppress(OSError, ValueError, termios.error):
            self._out.write(self._erase() + _PASTE_OFF)
            self._out.flush()
        with suppress(OSError, termios.error):
            termios.tcsetattr(self._in, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]

    def suspend(self) -> None:
        """Ctrl-Z: give the terminal to the shell, and take it again afterwards."""
        self.give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
        self.show(self._region, self._column)

    def write(self, text: str, lines: list[str], column: int) -> None:
        """Text that stays, whole lines, and below it the region as it is then."""
        erase = self._erase()
        self._region, self._column = lines, column
        self._out.write(erase + text + self._draw())
        self._out.flush()

    def show(self, lines: list[str], column: int) -> None:
        """Draw these lines as the region, none wider than the terminal; the cursor in the last."""
        if (lines, column) == (self._region, self._column) and self._drawn:
            return
        erase = self._erase()
        self._region, self._column = lines, column
        self._out.write(erase + self._draw())
        self._out.flush()

    def _erase(self) -> str:
        if not self._drawn:
            return ""
        up = f"\x1b[{self._drawn - 1}A" if self._drawn > 1 else ""
        self._drawn = 0
        return f"\r{up}\x1b[J"

    def _draw(self) -> str:
        self._drawn = len(self._region)
        if not self._region:
            return ""
        right = f"\x1b[{self._column}C" if self._column else ""
        return "\n".join(self._region) + "\r" + right


def _read_keys(fd: int, inbox: Inbox) -> None:
    keys = Keys()
    while True:
        try:
            data = os.read(fd, 4096)
        except OSError:
            data = b""
        if not data:
            inbox.put(Line(None))
            return
        for key in keys.feed(data):
            inbox.put(Keyed(key))


@contextmanager
def _signals(terminal: Terminal) -> Iterator[None]:
    """TERM and HUP leave in order; Ctrl-Z gives the terminal back first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def suspend(_number: int, _frame: FrameType | None) -> None:
        terminal.suspend()

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, leave),
        signal.SIGHUP: signal.signal(signal.SIGHUP, leave),
        signal.SIGTSTP: signal.signal(signal.SIGTSTP, suspend),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
