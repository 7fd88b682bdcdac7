"""Markdown that is still being written: cut into whole blocks as it comes, and drawn by rich.

A block that is whole is drawn once and stays; only the one being written is drawn again and again,
so that an answer of any length costs no more with each word.
"""

import io
import re
from typing import Any

_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_PADDING = re.compile(r" +((?:\x1b\[0m)?)$", re.MULTILINE)


class Blocks:
    """Cuts text into Markdown blocks, wherever the text itself is cut.

    A block ends at a blank line that is followed by unindented text (indented text belongs to the
    list item before), or with the end of a fenced code block.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._partial: list[str] = []  # of a line whose end has not come
        self._fence = ""  # what the open code block began with
        self._blank = False  # the last line of the open block is blank, and some before is not

    def feed(self, text: str) -> list[str]:
        """More text; the blocks that it completes."""
        done: list[str] = []
        *lines, rest = text.split("\n")
        for line in lines:
            self._line("".join([*self._partial, line]), done)
            self._partial = []
        if rest:
            if not self._partial and self._blank and not rest[0].isspace():
                self._cut(done)
            self._partial.append(rest)
        return done

    def tail(self) -> str:
        """The block being written."""
        return "".join(self._lines) + "".join(self._partial)

    def finish(self) -> list[str]:
        """No more comes: the last block, where there is one."""
        done: list[str] = []
        if self._partial:
            self._lines.append("".join(self._partial))
            self._partial = []
        self._cut(done)
        return done

    def _line(self, line: str, done: list[str]) -> None:
        if self._fence:
            self._lines.append(line + "\n")
            mark = line.strip()
            if mark.startswith(self._fence) and not mark.strip(self._fence[0]):
                self._fence = ""
                if not line[0].isspace():
                    self._cut(done)
            return
        if not line.strip():
            if self._lines:
                self._lines.append("\n")
                self._blank = True
            return
        if self._blank and not line[0].isspace():
            self._cut(done)
        self._blank = False
        if found := _FENCE.match(line):
            self._fence = found[1]
        self._lines.append(line + "\n")

    def _cut(self, done: list[str]) -> None:
        text = "".join(self._lines)
        if text.strip():
            done.append(text)
        self._lines, self._blank, self._fence = [], False, ""


class Painter:
    """Draws Markdown as lines for a terminal. Give it nothing unsanitised."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def lines(self, text: str, width: int) -> list[str]:
        """`text` drawn, each line at most `width` cells wide and without blanks at its end."""
        from rich.console import Console
        from rich.markdown import Markdown

        out = io.StringIO()
        console = Console(
            file=out,
            width=max(20, width),
            force_terminal=True,
            color_system="standard" if self._colour else None,
            no_color=not self._colour,
            highlight=False,
            legacy_windows=False,
            _environ={},
        )
        # Hyperlinks hide where they lead. The ANSI theme keeps to the terminal's own colours.
        console.print(Markdown(text, hyperlinks=False, code_theme="ansi_dark"))
        drawn = _PADDING.sub(r"\1", out.getvalue()).split("\n")
        while drawn and not _plain(drawn[-1]):
            drawn.pop()
        while drawn and not _plain(drawn[0]):
            drawn.pop(0)
        return drawn


def _plain(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", line).strip()


def crop(text: str, width: int, *, end: bool = False) -> str:
    """`text` (without escape sequences) in at most `width` cells; its `end` rather than its
    beginning where asked for."""
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    taken: list[str] = []
    room: Any = width - 1
    for char in reversed(text) if end else text:
        room -= cell_len(char)
        if room < 0:
            break
        taken.append(char)
    return "…" + "".join(reversed(taken)) if end else "".join(taken) + "…"
