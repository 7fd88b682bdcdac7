"""A small terminal emulator: what a person sees after these bytes, scrolled-off lines included.

It knows what `holdover` writes and refuses what it does not know, so that a stray escape sequence
fails a test instead of passing unseen.
"""

import re

_SEQUENCE = re.compile(r"\x1b\[(\??)([0-9;]*)([A-Za-z])")


class Screen:
    def __init__(self) -> None:
        self.rows: list[str] = [""]
        self.row = 0
        self.column = 0
        self.bracketed_paste = False
        self._rest = ""

    def feed(self, text: str) -> None:
        text, self._rest = self._rest + text, ""
        at = 0
        while at < len(text):
            char = text[at]
            if char == "\x1b":
                match = _SEQUENCE.match(text, at)
                if match is None:
                    assert len(text) - at < 16, f"unknown sequence {text[at : at + 20]!r}"
                    self._rest = text[at:]
                    return
                self._obey(*match.groups())
                at = match.end()
                continue
            if char == "\n":
                self.row += 1
                if self.row == len(self.rows):
                    self.rows.append("")
            elif char == "\r":
                self.column = 0
            else:
                assert char.isprintable(), f"a raw {char!r} reached the terminal"
                line = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = line[: self.column] + char + line[self.column + 1 :]
                self.column += 1
            at += 1

    def _obey(self, private: str, numbers: str, what: str) -> None:
        count = int(numbers) if numbers.isdecimal() else 1
        if private:
            assert numbers == "2004", f"a mode {numbers} is set and perhaps not set back"
            self.bracketed_paste = what == "h"
        elif what == "A":
            self.row = max(0, self.row - count)
        elif what == "C":
            self.column += count
        elif what == "J":
            self.rows[self.row] = self.rows[self.row][: self.column]
            del self.rows[self.row + 1 :]
        else:
            assert what == "m", f"unknown sequence …{what}"

    def text(self) -> str:
        return "\n".join(row.rstrip() for row in self.rows)
