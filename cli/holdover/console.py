"""`session attach` on a terminal: the follower with a board, keys and a line to type in."""

import time
import uuid
from collections.abc import Mapping
from typing import Any

from holdover.board import Board
from holdover.client import Client
from holdover.cursor import Cursor, Event, Opened
from holdover.exits import CommandError, Exit
from holdover.follow import Follower, Watch
from holdover.keys import Editor, Key
from holdover.markdown import Painter, crop
from holdover.questions import Answering, questions_of
from holdover.render import Style, one_line, sanitise, tool_line
from holdover.stream import Item, Keyed
from holdover.terminal import Terminal

REDRAW_S = 0.05
"""A word a millisecond is drawn no more often than this."""
CLOCK_S = 1.0
HELP = (
    "Enter sends what you type; lines beginning with / go to the agent. Ctrl-C interrupts the turn, "
    "twice leaves, Ctrl-D leaves. Ctrl-O shows what the latest folded line stands for."
)


class Console(Follower):
    """A `Follower` for people. Without a terminal that can do it, use the plain one."""

    def __init__(
        self,
        client: Client,
        session: str,
        cursor: Cursor,
        *,
        watch: Watch | None = None,
        own_prompts: tuple[str, ...] = (),
    ) -> None:
        super().__init__(client, session, cursor, watch=watch, typing=True, own_prompts=own_prompts)
        self._style = Style(self._colour)
        self._painter = Painter(colour=self._colour)
        self._board = self._transcript = Board(self._style, self._drawn, self._own)
        self._terminal = Terminal(self._out)
        self._editor = Editor()
        self._typing_prompt = False  # although a question is open: `i`, or a reason with `r`
        self._reason_for = ""  # the request that is being denied with a reason
        self._words_for = ""  # the request of which a question is answered in one's own words
        self._answering: Answering | None = None  # the questions that keys answer
        self._asked: dict[str, dict[str, Any]] = {}  # {request: as its message told of it}
        self._note = ""
        self._due: float | None = None  # when the region is to be drawn again
        self._working_since = 0.0
        self._reconnecting = False

    def run(self) -> Exit:
        with self._terminal.open(self._inbox):
            return super().run()

    # -- between items ----------------------------------------------------------------------------

    def _next_item(self) -> Item | None:
        """The next thing that happens; the region is drawn whenever it is time for that."""
        while True:
            now = time.monotonic()
            if self._due is not None and self._due <= now:
                self._draw()
            wait_s = CLOCK_S if self._due is None else max(0.0, self._due - now)
            item = self._inbox.get(wait_s)
            if item is not None:
                if self._due is None:
                    self._due = time.monotonic() + REDRAW_S
                return item
            self._due = time.monotonic()

    def _closing(self) -> str:
        return self._board.finish()

    def _reads_lines(self) -> bool:
        return False  # keys come one by one

    def _draw(self) -> None:
        self._due = None
        self._terminal.show(*self._region())

    def _region(self) -> tuple[list[str], int]:
        """The lines below all that stays, and the cursor's column in the last."""
        columns, rows = self._terminal.size
        below = [*self._question(columns), self._status(columns)]
        room = max(1, rows - len(below) - 3)
        mark = "why not? " if self._reason_for else "your answer: " if self._words_for else "> "
        before = sanitise(self._editor.text[: self._editor.at]).replace("\n", "⏎")
        after = sanitise(self._editor.text[self._editor.at :]).replace("\n", "⏎")
        from rich.cells import cell_len

        left = crop(before, columns - len(mark) - 2, end=True)
        line = mark + left
        column = cell_len(line)
        if after:
            line += crop(after, max(1, columns - column - 1))
        return [*self._board.live(room), *below, line], column

    def _drawn(self, text: str) -> list[str]:
        return self._painter.lines(text, self._terminal.size[0] - 1)

    def _status(self, columns: int) -> str:
        state = str(self._level.get("state") or "connecting")
        if self._reconnecting:
            state = "connection lost, trying again"
        elif state == "working":
            state += f" {time.monotonic() - self._working_since:.0f} s"
        queued = len(self._level.get("queued") or ())
        parts = [
            state,
            f"{queued} queued" if queued else "",
            str(self._level.get("title") or ""),
            str(self._level.get("model") or self._level.get("agent") or ""),
            f"${self._level['cost_usd']:.2f}" if self._level.get("cost_usd") else "",
        ]
        text = self._note or " · ".join(one_line(part, 40) for part in parts if part)
        return self._style.dim(crop(one_line(text, 400), columns - 1))

    # -- what the agent asks ----------------------------------------------------------------------

    def _asking(self) -> Mapping[str, Any] | None:
        """The question that keys answer: the oldest that is open."""
        asked = {item["request_id"]: item for item in self._level.get("pending") or ()}
        asked = {**self._asked, **asked}
        return next((asked[one] for one in self._pending if one in asked), None)

    def _question(self, columns: int) -> list[str]:
        asked = self._asking()
        if asked is None:
            return []
        others = f" (and {len(self._pending) - 1} more)" if len(self._pending) > 1 else ""
        answering = self._questions(asked)
        if answering is not None:
            question, *labels = answering.shown()
            lines = [question + others, *labels]
            keys = answering.help() + " · i writes a prompt instead"
        else:
            lines = [
                f"May it? {tool_line(str(asked.get('tool_name')), asked.get('input'))}{others}"
            ]
            keys = "a allows · d denies · r denies and says why"
            if asked.get("suggestions"):
                keys += " · s allows from now on"
            keys += " · i writes a prompt instead"
        shown = [self._style.bold(crop(one_line(line, 300), columns - 1)) for line in lines]
        return ["", *shown, self._style.dim(crop("  " + keys, columns - 1))]

    def _answer_key(self, key: Key) -> bool:
        """Whether `key` was an answer to what is asked."""
        asked = self._asking()
        if asked is None or self._editor.text or self._typing_prompt:
            return False
        answering = self._questions(asked)
        if answering is not None and self._answer_question(answering, asked, key):
            return True
        if key.name != "text":
            return False
        request_id = str(asked["request_id"])
        frame: dict[str, Any] = {"type": "answer", "request_id": request_id}
        if key.text == "a" and answering is None:
            self._reply(frame | {"behavior": "allow"})
        elif key.text == "s" and asked.get("suggestions") and answering is None:
            self._reply(frame | {"behavior": "allow", "remember": asked["suggestions"][0]})
        elif key.text == "d":
            self._reply(frame | {"behavior": "deny"})
        elif key.text == "r" and answering is None:
            self._reason_for, self._typing_prompt = request_id, True
        elif key.text == "i":
            self._typing_prompt = True
        else:
            return bool(answering is not None and key.text.isdecimal())
        return True

    def _questions(self, asked: Mapping[str, Any]) -> Answering | None:
        """The answers to the questions that `asked` puts, as far as given; None: it puts none."""
        request_id = str(asked["request_id"])
        if self._answering is None or self._answering.request_id != request_id:
            questions = questions_of(asked)
            self._answering = Answering(request_id, questions) if questions else None
        return self._answering

    def _answer_question(self, answering: Answering, asked: Mapping[str, Any], key: Key) -> bool:
        """Whether `key` said something about a question."""
        if key.name == "enter":
            meant = answering.enter()
        elif key.name != "text":
            return False
        elif key.text == "o":
            self._words_for, self._typing_prompt = answering.request_id, True
            return True
        elif key.text == "b":
            meant = answering.back()
        else:
            meant = key.text.isdecimal() and answering.digit(int(key.text))
        self._reply_whole(answering, asked)
        return meant

    def _reply_whole(self, answering: Answering, asked: Mapping[str, Any]) -> None:
        """Answer the request once each of its questions is answered."""
        if (answers := answering.answers) is not None:
            given = {**asked["input"], "answers": answers}
            frame = {"type": "answer", "request_id": answering.request_id}
            self._reply(frame | {"behavior": "allow", "updated_input": given})

    def _reply(self, frame: dict[str, Any]) -> None:
        self._try_send(frame)
        self._pending.remove(frame["request_id"])

    # -- what is typed ----------------------------------------------------------------------------

    def _handle(self, item: Item | None) -> Exit | None:
        if isinstance(item, Keyed):
            return self._pressed(item.key)
        return super()._handle(item)

    def _pressed(self, key: Key) -> Exit | None:
        self._note = ""
        if key.name == "eof":
            return None if self._editor.text else Exit.OK
        if key.name == "unfold":
            self._write(self._board.unfolded())
            return None
        if key.name == "escape" and not self._editor.text:
            self._typing_prompt, self._reason_for, self._words_for = False, "", ""
            return None
        if self._answer_key(key):
            return None
        line = self._editor.press(key)
        return None if line is None else self._sent(line)

    def _sent(self, line: str) -> Exit | None:
        text, reason_for, words_for = line.strip(), self._reason_for, self._words_for
        self._typing_prompt, self._reason_for, self._words_for = False, "", ""
        if words_for:
            asked, answering = self._asking(), self._answering
            still_asked = asked is not None and asked["request_id"] == words_for
            if text and still_asked and asked is not None and answering is not None:
                answering.words(text)
                self._reply_whole(answering, asked)
            return None
        if reason_for:
            if reason_for in self._pending:
                frame = {"type": "answer", "request_id": reason_for, "behavior": "deny"}
                self._reply(frame | ({"message": text} if text else {}))
            return None
        if text == "/quit":
            return Exit.OK
        if text == "/help":
            self._say(HELP)
        elif text:
            prompt_id = str(uuid.uuid4())
            self._own.add(prompt_id)
            self._try_send({"type": "prompt", "id": prompt_id, "text": text})
            lines = sanitise(text).split("\n")
            quoted = "\n".join(("› " if at == 0 else "  ") + one for at, one in enumerate(lines))
            self._write("\n" + self._style.bold(quoted) + "\n\n")
        return None

    # -- what the follower says -------------------------------------------------------------------

    def _event(self, event: Event) -> Exit | None:
        if isinstance(event, Opened):
            self._reconnecting = False
        return super()._event(event)

    def _set_level(self, session: Any) -> None:
        if session.get("state") == "working" and self._level.get("state") != "working":
            self._working_since = time.monotonic()
        super()._set_level(session)
        self._board.note_threads(session.get("threads"))
        for typed_for in (self._reason_for, self._words_for):
            if typed_for and typed_for not in self._pending:
                # Somebody else was faster.
                self._reason_for, self._words_for, self._typing_prompt = "", "", False

    def _note_permission(self, message: Any) -> None:
        request_id, body = str(message.get("request_id")), message.get("body")
        request = body.get("request") if isinstance(body, dict) else None
        if message.get("kind") == "permission" and isinstance(request, dict):
            self._asked[request_id] = {
                **request,
                "request_id": request_id,
                "suggestions": request.get("permission_suggestions"),
            }
        elif message.get("kind") == "answer":
            self._asked.pop(request_id, None)
        super()._note_permission(message)

    def _lost(self, reason: str, final: CommandError | None) -> Exit | None:
        self._reconnecting = final is None
        return super()._lost(reason, final)

    def _hint(self) -> None:
        """The question stands below, with its keys."""

    def _say(self, text: str) -> None:
        self._note = text
        self._write("".join(self._style.warn(f"! {one_line(text, 400)}") + "\n") if text else "")

    def _write(self, text: str) -> None:
        if text:
            # At once: what has become part of it must not stand below it any more.
            self._due = None
            self._terminal.write(text, *self._region())
