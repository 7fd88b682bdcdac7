"""Turns messages and events into text for people. No I/O.

Nothing an agent writes reaches a terminal as a control sequence: agents read web pages and files of
strangers, and an escape sequence can rewrite the screen, the title, or the clipboard.
"""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from holdover.cursor import Event, Level, Opened, Status, Stored, Text

Json = Mapping[str, Any]

# C0 but tab and newline, DEL, C1, line and paragraph separators, and the bidirectional controls
# that make text read differently from what it is; a lone surrogate cannot be printed at all.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_CRLF = re.compile("\r+\n")


def sanitise(text: str) -> str:
    r"""`text` with every control character but tab and newline made visible, as ``\x1b``."""
    return _UNSAFE.sub(_visible, _CRLF.sub("\n", text))


def _visible(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def one_line(text: object, width: int = 120) -> str:
    """`text` on one line of at most `width` characters, sanitised."""
    flat = " ".join(str(text)[: width * 4].split())
    flat = sanitise(flat)
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Columns of text; the last one is not padded."""
    lines = [head, *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[-1]])
        for line in lines
    )


def moment(at: object) -> str:
    """A time of the wire in local time, ``-`` for none."""
    if not isinstance(at, int):
        return "-"
    try:
        local = datetime.fromtimestamp(at / 1000).astimezone()
    except (ValueError, OverflowError, OSError):
        return "after 9999"
    return local.strftime("%Y-%m-%d %H:%M:%S")


def counted(number: float, thing: str) -> str:
    """``1 session``, ``2 sessions``."""
    return f"{number:.0f} {thing}" + ("" if number == 1 else "s")


def size_text(count: int) -> str:
    """Bytes in the unit that leaves one to four digits before the point."""
    if count < 10_000:
        return f"{count} bytes"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 10_000:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


class Style:
    """Colours, where the output is a terminal that shows them."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and text else text

    def dim(self, text: str) -> str:
        return self._paint("2", text)

    def bold(self, text: str) -> str:
        return self._paint("1", text)

    def warn(self, text: str) -> str:
        return self._paint("33", text)


class Transcript:
    """Writes a session as running text; give it events, print what it returns.

    It remembers only whether the cursor stands at the beginning of a line and which kind of text
    the line holds, so that a sentence goes on where it stopped.
    """

    def __init__(self, style: Style, own_prompts: frozenset[str] | set[str] = frozenset()) -> None:
        self._style = style
        self._own = own_prompts  # ids of prompts whose text stands on this screen already
        self._line_open = False

    def render(self, event: Event) -> str:
        """The text for `event`, "" when there is nothing to show."""
        match event:
            case Text():
                return self._text(event)
            case Stored():
                return self._stored(event)
            case Opened(resync=True):
                return self._note("The log was restored from a backup; these are its last pages.")
            case Status():
                return self._status(event)
            case Level() | Opened():
                return ""
            case _:
                return ""

    def close_line(self) -> str:
        """What ends an open line, so that something else may be printed."""
        if self._line_open:
            self._line_open = False
            return "\n"
        return ""

    def _text(self, event: Text) -> str:
        lead = ""
        if event.fresh:
            lead = self.close_line()
            if event.kind == "thinking":
                lead += self._style.dim("~ ")
        self._line_open = True
        text = sanitise(event.text)
        return lead + (self._style.dim(text) if event.kind == "thinking" else text)

    def _stored(self, event: Stored) -> str:
        message = event.message
        body = message.get("body")
        if not isinstance(body, dict):
            return ""
        if body.get("truncated") is True:
            return self._line(self._style.dim(_truncated(message, body)), message)
        match message.get("kind"):
            case "user":
                return self._user(message, body)
            case "assistant":
                return self._assistant(event, body)
            case "result":
                return self._line(self._style.dim(_result(body)), message)
            case "permission":
                return self._line(self._style.bold(permission_line(message, body)), message)
            case "answer":
                return self._line(self._style.dim(_answer(message, body)), message)
            case "notice":
                return self._note(str(body.get("text") or body.get("code")))
            case _:
                return self._line(self._style.dim(_system(body)), message)

    def _user(self, message: Json, body: Json) -> str:
        shown = []
        for kind, text in _parts(body):
            if kind == "tool_result":
                shown.append(self._line(self._style.dim("  ⎿ " + _head(text)), message))
            elif message.get("client_id") in self._own and message.get("client_id"):
                continue
            else:
                lines = sanitise(text).split("\n")
                quoted = "\n".join(
                    ("› " if at == 0 else "  ") + line for at, line in enumerate(lines)
                )
                shown.append(self._line(self._style.bold(quoted), message))
        return "".join(shown)

    def _assistant(self, event: Stored, body: Json) -> str:
        shown = []
        for at, (kind, text) in enumerate(_parts(body)):
            done = event.shown.get(at, 0)
            if done:
                # The beginning stands on the screen already: end the sentence on its own line.
                rest = sanitise(text[done:])
                rest = self._style.dim(rest) if kind == "thinking" else rest
                self._line_open = False
                shown.append(rest + "\n")
            elif kind == "thinking":
                if text:
                    shown.append(self._line(self._style.dim("~ " + sanitise(text)), event.message))
            elif kind == "tool_use":
                shown.append(self._line("● " + text, event.message))
            else:
                shown.append(self._line(sanitise(text), event.message))
        return "".join(shown)

    def _status(self, event: Status) -> str:
        if event.name == "api_retry":
            return self._note(
                f"The model's service failed, attempt {event.body.get('attempt')} of "
                f"{event.body.get('max_retries')}."
            )
        if event.name == "session_writes_lost":
            return self._note("The agent could not write its own transcript: its disk is full.")
        return ""

    def _note(self, text: str) -> str:
        return self.close_line() + self._style.warn(f"! {one_line(text, 400)}") + "\n"

    def _line(self, text: str, message: Json) -> str:
        thread = message.get("thread")
        if thread not in {"main", None}:
            name = self._style.dim(f"[{one_line(thread, 20)}] ")
            text = "\n".join(name + line for line in text.split("\n"))
        return self.close_line() + text + "\n"


def _parts(body: Json) -> list[tuple[str, str]]:
    """(type, text) of each part of a conversation frame; a tool's use and result made readable."""
    inner = body.get("message")
    content = inner.get("content") if isinstance(inner, dict) else None
    if isinstance(content, str):
        return [("text", content)]
    found: list[tuple[str, str]] = []
    for part in content if isinstance(content, list) else []:
        if not isinstance(part, dict):
            continue
        kind = str(part.get("type"))
        match kind:
            case "text" | "thinking":
                found.append((kind, str(part.get(kind) or "")))
            case "tool_use":
                found.append((kind, tool_line(str(part.get("name")), part.get("input"))))
            case "tool_result":
                found.append((kind, _plain(part.get("content"))))
            case _:
                found.append((kind, f"({kind})"))
    return found


def _plain(content: object) -> str:
    if isinstance(content, list):
        texts = [p.get("text") or f"({p.get('type')})" for p in content if isinstance(p, dict)]
        return "\n".join(map(str, texts))
    return "" if content is None else str(content)


def _head(text: str, lines: int = 5) -> str:
    """The first lines of a tool's result, and how many more there are."""
    all_lines = text.rstrip("\n").split("\n")
    shown = [sanitise(line[:500]) for line in all_lines[:lines]]
    if len(all_lines) > lines:
        shown.append(f"… {len(all_lines) - lines} more lines")
    return "\n    ".join(shown)


def tool_line(name: str, tool_input: object) -> str:
    """A tool and what it is asked to do, on one line: ``Bash(command="ls")``."""
    if isinstance(tool_input, dict):
        shown = ", ".join(f"{key}={json.dumps(value)}" for key, value in tool_input.items())
    else:
        shown = "" if tool_input is None else json.dumps(tool_input)
    return one_line(f"{name}({shown})", 200)


def permission_line(message: Json, body: Json) -> str:
    """A permission as a question, with the id to answer it by."""
    request = body.get("request")
    asked = request if isinstance(request, dict) else body
    what = tool_line(str(asked.get("tool_name")), asked.get("input"))
    return f"? {one_line(message.get('request_id'), 40)} May it? {what}"


def _answer(message: Json, body: Json) -> str:
    words = {"allow": "allowed", "deny": "denied", "withdrawn": "withdrawn by the agent"}
    outcome = str(body.get("outcome"))
    by = f" by {body['answered_by']}" if body.get("answered_by") else ""
    said = f": {body['message']}" if body.get("message") else ""
    what = words.get(outcome, outcome)
    return one_line(f"= {message.get('request_id')} {what}{by}{said}", 300)


def _result(body: Json) -> str:
    parts = []
    if body.get("terminal_reason") in {"aborted_streaming", "aborted_tools"}:
        parts.append("interrupted")
    elif body.get("is_error") or body.get("subtype") not in {"success", None}:
        parts.append(f"failed ({body.get('subtype')})")
        if why := body.get("result") or body.get("errors"):
            parts.append("; ".join(map(str, why)) if isinstance(why, list) else str(why))
    else:
        parts.append("done")
    if isinstance(body.get("duration_ms"), int | float):
        parts.append(f"{body['duration_ms'] / 1000:.1f} s")
    if body.get("total_cost_usd"):
        parts.append(f"${body['total_cost_usd']:.4f} so far")
    return one_line("— " + ", ".join(parts), 400)


def _system(body: Json) -> str:
    name = str(body.get("subtype") or body.get("type"))
    text = body.get("content") or body.get("message") or body.get("summary") or ""
    return one_line(f"· {name}{': ' if text else ''}{text if isinstance(text, str) else ''}", 400)


def _truncated(message: Json, body: Json) -> str:
    return (
        f"({one_line(message.get('kind'))} message {message.get('seq')} of {body.get('size')} bytes; "
        f"whole with `holdover session log ID --seq {message.get('seq')}`)"
    )
