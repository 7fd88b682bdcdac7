"""A session on a terminal: what scrolls by for good, and what below it is still changing. No I/O.

Above all a fold: a tool call is one line, with what became of it; a sub-agent is one line that
counts its steps; thinking is one line once it is over. The latest fold can be looked into.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from holdover.cursor import Event, Opened, Stored, Text
from holdover.markdown import Blocks
from holdover.render import Json, Style, Transcript, _plain, one_line, sanitise, tool_line

MAX_TAIL_CHARS = 6000
"""Of a block being written so much is drawn: nobody sees more of it at once."""
MAX_RUNNING = 6
UNFOLD_LINES = 200


@dataclass
class _Tool:
    name: str
    line: str
    input: object
    steps: int = 0  # of the sub-agent that it is


@dataclass
class _Fold:
    """What the latest folded line stands for."""

    lines: list[str] = field(default_factory=list)


class Board(Transcript):
    """Events in; out comes text to stay (`render`) and lines to show below it (`live`).

    `draw` turns Markdown into lines of at most the terminal's width.
    """

    def __init__(
        self, style: Style, draw: Callable[[str], list[str]], own_prompts: frozenset[str] | set[str]
    ) -> None:
        super().__init__(style, own_prompts)
        self._draw = draw
        self._blocks: Blocks | None = None
        self._begun = False  # a block of this text stands above already
        self._thought: list[str] = []
        self._tools: dict[str, _Tool] = {}
        self._asked: dict[str, str] = {}  # {open request: the tool it is about}
        self._parents: dict[str, str] = {}  # {thread: the one above}
        self._fold = _Fold()

    def render(self, event: Event) -> str:
        if isinstance(event, Opened) and event.resync:
            self._blocks, self._thought, self._tools, self._asked = None, [], {}, {}
        return super().render(event)

    def note_threads(self, threads: object) -> None:
        """The session's threads, as its level tells them: whose steps are whose."""
        for item in threads if isinstance(threads, list) else []:
            if isinstance(item, dict) and item.get("parent_thread"):
                self._parents[str(item.get("thread"))] = str(item["parent_thread"])

    def live(self, rows: int) -> list[str]:
        """What is going on, in at most `rows` lines; colours in them, no other sequence."""
        lines: list[str] = []
        if self._thought:
            text = sanitise("".join(self._thought)[-400:])
            lines += [self._style.dim("~ " + one_line(text[-200:], 78))]
        if self._blocks is not None and (tail := self._blocks.tail()).strip():
            if len(tail) > MAX_TAIL_CHARS:
                drawn = tail[-MAX_TAIL_CHARS:].split("\n")[1:] or [tail[-500:]]
                drawn = [one_line(line, 78) for line in drawn]
            else:
                drawn = self._draw(tail)
            lines += [""] * self._begun + drawn
        running = list(self._tools.values())
        for tool in running[-MAX_RUNNING:]:
            steps = f" · {tool.steps} steps" if tool.steps else ""
            lines.append(self._style.dim(f"○ {one_line(tool.line, 100)}{steps} …"))
        return lines[-rows:] if rows > 0 else []

    def unfolded(self) -> str:
        """What the latest folded line stands for."""
        lines = self._fold.lines
        if not lines:
            return self._note("Nothing is folded here yet.")
        shown = [sanitise(line[:2000]) for line in lines[:UNFOLD_LINES]]
        if len(lines) > UNFOLD_LINES:
            shown.append(f"… {len(lines) - UNFOLD_LINES} more lines")
        return "".join(self._style.dim(f"  │ {line}") + "\n" for line in shown)

    # -- text being written -----------------------------------------------------------------------

    def _text(self, event: Text) -> str:
        out = ""
        if event.fresh:
            out = self.finish()
        if event.kind == "thinking":
            self._thought.append(event.text)
            return out
        if self._blocks is None:
            self._blocks, self._begun = Blocks(), False
        return out + self._block(self._blocks.feed(sanitise(event.text)))

    def _block(self, blocks: list[str]) -> str:
        out = ""
        for block in blocks:
            out += "\n" * self._begun + "".join(f"{line}\n" for line in self._draw(block))
            self._begun = True
        return out

    def finish(self, rest: str = "") -> str:
        """End the text being written, with what is still missing of it."""
        out = ""
        if self._thought:
            out += self._folded_thought("".join(self._thought))
            self._thought = []
        if self._blocks is not None or rest:
            blocks = self._blocks or Blocks()
            out += self._block(blocks.feed(sanitise(rest)) + blocks.finish())
            out += "\n" * self._begun
        self._blocks, self._begun = None, False
        return out

    def _folded_thought(self, text: str) -> str:
        self._fold = _Fold(text.split("\n"))
        return self._style.dim("~ " + one_line(text, 76)) + "\n"

    # -- what is stored ---------------------------------------------------------------------------

    def _stored(self, event: Stored) -> str:
        message = event.message
        kind, thread = message.get("kind"), message.get("thread")
        body = message.get("body")
        if thread not in {"main", None} and kind in {"user", "assistant", "system"}:
            self._step(str(thread))
            return ""
        if not isinstance(body, dict) or body.get("truncated") is True:
            return self.finish() + super()._stored(event)
        match kind:
            case "permission":
                request = body.get("request")
                asked: Json = request if isinstance(request, dict) else body
                line = _short(str(asked.get("tool_name")), asked.get("input"))
                self._asked[str(message.get("request_id"))] = line
                return ""
            case "answer":
                return self._answered(message, body)
            case "result" | "notice":
                return self.finish() + self._give_up() + super()._stored(event)
        return super()._stored(event)

    def _step(self, thread: str) -> None:
        for _ in range(32):
            if thread in self._tools:
                self._tools[thread].steps += 1
                return
            if thread not in self._parents:
                return
            thread = self._parents[thread]

    def _answered(self, message: Json, body: Json) -> str:
        what = self._asked.pop(str(message.get("request_id")), "")
        words = {"allow": "allowed", "deny": "denied", "withdrawn": "withdrawn by the agent"}
        outcome = words.get(str(body.get("outcome")), one_line(body.get("outcome"), 40))
        by = f" by {one_line(body['answered_by'], 40)}" if body.get("answered_by") else ""
        said = f": {one_line(body['message'], 200)}" if body.get("message") else ""
        text = f"= {one_line(what, 60)} {outcome}{by}{said}"
        return self._style.dim(text) + "\n"

    def _assistant(self, event: Stored, body: Json) -> str:
        out = ""
        for at, part in enumerate(_content(body)):
            done = event.shown.get(at, 0)
            match part.get("type"):
                case "text":
                    text = str(part.get("text") or "")
                    out += self.finish(text[done:]) if done else self.finish() + self.finish(text)
                case "thinking":
                    text = str(part.get("thinking") or "")
                    self._thought = [text] if text else []
                    out += self.finish()
                case "tool_use":
                    name, given = str(part.get("name")), part.get("input")
                    tool = _Tool(name, _short(name, given), given)
                    self._tools[str(part.get("id"))] = tool
        return out

    def _user(self, message: Json, body: Json) -> str:
        out = ""
        for part in _content(body):
            if part.get("type") == "tool_result":
                out += self._result(part)
        if any(part.get("type") != "tool_result" for part in _content(body)):
            out += self.finish() + super()._user(message, body)
        return out

    def _result(self, part: Json) -> str:
        tool = self._tools.pop(str(part.get("tool_use_id")), None)
        lines = _plain(part.get("content")).rstrip("\n").split("\n")
        failed = part.get("is_error") is True
        line = tool.line if tool else "(a tool)"
        given = tool.input if tool else None
        self._fold = _Fold([*_spelt(given), "", *lines])
        became = one_line(lines[0], 60) if failed or len(lines) == 1 else f"{len(lines)} lines"
        if tool and tool.steps:
            became = f"{tool.steps} steps"
        mark = self._style.warn("✗") if failed else "●"
        after = self._style.dim(f" · {became}") if became else ""
        return f"{mark} {one_line(line, 100)}{after}\n"

    def _give_up(self) -> str:
        """The turn is over: tools without a result will not get one."""
        lines = [self._style.dim(f"○ {one_line(t.line, 100)}") for t in self._tools.values()]
        self._tools = {}
        return "".join(f"{line}\n" for line in lines)


def _content(body: Json) -> list[Mapping[str, Any]]:
    inner = body.get("message")
    content = inner.get("content") if isinstance(inner, dict) else None
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


_TELLING = ("command", "file_path", "path", "pattern", "url", "query", "description", "prompt")


def _short(name: str, given: object) -> str:
    """A tool call by the one thing that tells most: ``Bash(make test)``."""
    if isinstance(given, dict):
        questions = given.get("questions")
        if isinstance(questions, list) and questions and isinstance(questions[0], dict):
            given = {"query": questions[0].get("question")}
        for key in _TELLING:
            if isinstance(given.get(key), str):
                return f"{one_line(name, 40)}({one_line(given[key], 80)})"
    return tool_line(name, given)


def _spelt(given: object) -> list[str]:
    if not isinstance(given, dict):
        return []
    return [line for key, value in given.items() for line in f"{key}: {value}".split("\n")]
