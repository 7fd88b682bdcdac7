"""What is typed on a terminal: bytes to keys, keys to a line. No I/O."""

import codecs
import re
from dataclasses import dataclass

_PASTE, _PASTE_END = "\x1b[200~", "\x1b[201~"
_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|O[@-~])")
_BEGINNING = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*|O)?\Z")
_NAMES = {
    "\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace", "\x01": "home",
    "\x05": "end", "\x02": "left", "\x06": "right", "\x10": "up", "\x0e": "down", "\x15": "kill",
    "\x17": "kill-word", "\x0b": "kill-end", "\x04": "eof", "\x0f": "unfold", "\x0c": "redraw",
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left", "\x1b[H": "home",
    "\x1b[F": "end", "\x1bOA": "up", "\x1bOB": "down", "\x1bOC": "right", "\x1bOD": "left",
    "\x1bOH": "home", "\x1bOF": "end", "\x1b[1~": "home", "\x1b[4~": "end", "\x1b[3~": "delete",
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """`name` of what was pressed; ``text`` for characters and ``paste`` for pasted ones."""

    name: str
    text: str = ""


class Keys:
    """Bytes of a terminal, cut anywhere, to keys. Sequences that nobody knows are dropped."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._rest = ""
        self._pasted: list[str] | None = None

    def feed(self, data: bytes) -> list[Key]:
        text, self._rest = self._rest + self._decode(data), ""
        found: list[Key] = []
        while text:
            if self._pasted is not None:
                text = self._paste(text, found)
            elif text.startswith(_PASTE):
                self._pasted, text = [], text[len(_PASTE) :]
            elif text[0] == "\x1b":
                if match := _SEQUENCE.match(text):
                    if match[0] in _NAMES:
                        found.append(Key(_NAMES[match[0]]))
                    text = text[match.end() :]
                elif _BEGINNING.match(text) and len(text) > 1:
                    self._rest, text = text, ""
                else:
                    # Alone in what was read: the key itself, since a sequence comes in one piece.
                    found.append(Key("escape"))
                    text = text[1:]
            elif text[0] in _NAMES:
                found.append(Key(_NAMES[text[0]]))
                text = text[1:]
            elif text[0].isprintable() or text[0] == "\t":
                found.append(Key("text", text[0]))
                text = text[1:]
            else:
                text = text[1:]
        return found

    def _paste(self, text: str, found: list[Key]) -> str:
        assert self._pasted is not None
        pasted = "".join([*self._pasted, text])
        content, end, after = pasted.partition(_PASTE_END)
        if not end:
            self._pasted = [pasted]
            return ""
        self._pasted = None
        found.append(Key("paste", content.replace("\r\n", "\n").replace("\r", "\n")))
        return after


class Editor:
    """The line being typed: `text`, and where in it the cursor stands (`at`)."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self._history: list[str] = []
        self._back = 0  # how far back in the history the line is from

    def press(self, key: Key) -> str | None:
        """Change the line; the whole of it once it is sent."""
        before, after = self.text[: self.at], self.text[self.at :]
        match key.name:
            case "text" | "paste":
                self._set(before + key.text, after)
            case "enter":
                line, self.text, self.at, self._back = self.text, "", 0, 0
                if line.strip() and self._history[-1:] != [line]:
                    self._history.append(line)
                return line
            case "backspace":
                self._set(before[:-1], after)
            case "delete":
                self._set(before, after[1:])
            case "left":
                self.at = max(0, self.at - 1)
            case "right":
                self.at = min(len(self.text), self.at + 1)
            case "home":
                self.at = 0
            case "end":
                self.at = len(self.text)
            case "kill" | "escape":
                self._set("", after if key.name == "kill" else "")
            case "kill-end":
                self._set(before, "")
            case "kill-word":
                self._set(re.sub(r"\S*\s*\Z", "", before), after)
            case "up" | "down":
                self._turn(1 if key.name == "up" else -1)
        return None

    def _set(self, before: str, after: str) -> None:
        self.text, self.at = before + after, len(before)

    def _turn(self, by: int) -> None:
        back = self._back + by
        if 0 <= back <= len(self._history):
            self._back = back
            self._set(self._history[-back] if back else "", "")
