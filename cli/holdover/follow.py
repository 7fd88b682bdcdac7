"""Following a session: frames to the screen, typed lines and Ctrl-C to the session.

One loop empties the inbox; connections that break are made again with the cursor.
"""

import json
import random
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from holdover.client import Client, path_of
from holdover.cursor import (
    Answered,
    Cursor,
    Event,
    Level,
    Live,
    Opened,
    Stored,
    StreamGapError,
)
from holdover.exits import EXIT_OF_CODE, CommandError, Exit
from holdover.outbox import Outbox
from holdover.redial import Redial
from holdover.render import Style, Transcript, one_line, permission_line
from holdover.stream import Frame, Inbox, Interrupt, Item, Line, Lost, Stream
from holdover.typed import Answer, Leave, Nothing, Prompt, parse_line


class Watch(Protocol):
    """Decides from what happens when there is no more to follow."""

    def feed(self, event: Event) -> Exit | None: ...


class Follower:
    """Shows one session until it ends, its `watch` is satisfied, or the person leaves.

    `as_json` prints the frames as they come instead of text. `typing` reads lines from the
    terminal; without it Ctrl-C leaves at once, since nobody is there to type it twice.
    """

    def __init__(
        self,
        client: Client,
        session: str,
        cursor: Cursor,
        *,
        watch: Watch | None = None,
        as_json: bool = False,
        typing: bool = False,
        quiet: bool = False,
        own_prompts: tuple[str, ...] = (),
        out: TextIO | None = None,
    ) -> None:
        self._out = out or sys.stdout
        self._client = client
        self._session = session
        self._cursor = cursor
        self._watch = watch
        self._as_json = as_json
        self._typing = typing
        self._quiet = quiet
        self._own = set(own_prompts)
        self._colour = _has_colour(self._out)
        self._transcript = Transcript(Style(self._colour), self._own)
        self._inbox = Inbox()
        self._stream = Stream(client, session, self._inbox)
        self._outbox = Outbox()
        self._redial = Redial()
        self._pending: list[str] = []
        self._level: dict[str, Any] = {}
        self._live = False
        self._open = False
        self._interrupted = False

    def send(self, frame: dict[str, Any]) -> None:
        """Say `frame` now, or as soon as there is a connection."""
        text = self._outbox.add(frame)
        if self._open:
            self._stream.send(text)

    def run(self) -> Exit:
        """Follow until there is a reason to stop; raises `CommandError` for a bad one."""
        if self._reads_lines():
            threading.Thread(target=_read_lines, args=(self._inbox,), daemon=True).start()
        with _ctrl_c_to(self._inbox):
            try:
                self._stream.connect(self._cursor.query())
                while True:
                    item = self._next_item()
                    done = self._handle(item)
                    if done is not None:
                        return done
            finally:
                self._stream.close()
                self._write(self._closing())

    def _closing(self) -> str:
        """What is still to be printed before leaving."""
        return self._transcript.close_line()

    def _next_item(self) -> Item | None:
        return self._inbox.get()

    def _reads_lines(self) -> bool:
        return self._typing

    def _handle(self, item: Item | None) -> Exit | None:
        match item:
            case Frame(connection, text) if connection == self._stream.connection:
                return self._frame(text)
            case Lost(connection, reason, final) if connection == self._stream.connection:
                return self._lost(reason, final)
            case Line(text):
                return self._typed(text)
            case Interrupt():
                return self._ctrl_c()
        return None  # of a connection that has been replaced

    def _frame(self, text: str) -> Exit | None:
        try:
            frame = json.loads(text)
            before = self._cursor.after
            if not self._as_json and not self._quiet:
                self._complete(frame)
            events = self._cursor.receive(frame)
        except StreamGapError as error:
            return self._lost(str(error), None)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CommandError(
                f"The daemon sent a frame that this version does not understand ({error!r}); are "
                "both of the same version?"
            ) from error
        self._redial.succeeded()
        if self._as_json:
            self._write(_raw(frame, text, before, bool(events)))
        for event in events:
            done = self._event(event)
            if done is not None:
                return done
        return None

    def _complete(self, frame: dict[str, Any]) -> None:
        """Fetch what the stream only announces, so that a long answer is shown whole.

        Tools' results stay cut: of those only the first lines are shown anyway.
        """
        for message in frame.get("messages", ()):
            body = message.get("body")
            cut = isinstance(body, dict) and body.get("truncated") is True
            if cut and message.get("kind") == "assistant":
                path = path_of("sessions", self._session, "messages", str(message["seq"]), "body")
                message["body"] = self._client.get(path)

    def _event(self, event: Event) -> Exit | None:
        match event:
            case Opened(session):
                self._open, self._live = True, False
                self._set_level(session)
                for text in self._outbox.again():
                    self._stream.send(text)
            case Level(session):
                self._set_level(session)
            case Stored(message):
                self._note_permission(message)
            case Live():
                self._live = True
                self._hint()
            case Answered(frame):
                self._answered(frame)
        if not self._as_json and not self._quiet:
            self._write(self._transcript.render(event))
        return self._watch.feed(event) if self._watch else None

    def _set_level(self, session: Any) -> None:
        self._level = dict(session)
        self._pending = [item["request_id"] for item in session.get("pending") or ()]

    def _note_permission(self, message: Any) -> None:
        request_id = message.get("request_id")
        if message.get("kind") == "permission" and request_id not in self._pending:
            self._pending.append(request_id)
            if self._live:
                self._hint()
        elif message.get("kind") == "answer" and request_id in self._pending:
            self._pending.remove(request_id)
        elif message.get("kind") == "result":
            self._interrupted = False

    def _hint(self) -> None:
        if not self._pending or self._as_json or self._quiet:
            return
        if self._typing:
            self._say("Waiting for you: a allows, d denies, d REASON tells the agent why.")
            return
        asked = {item["request_id"]: item for item in self._level.get("pending") or ()}
        for request_id in self._pending:
            what = (
                permission_line(asked[request_id], asked[request_id]) if request_id in asked else ""
            )
            self._say(
                f"Waiting for an answer: holdover session answer {self._session} {request_id} "
                f"allow|deny {what}"
            )

    def _answered(self, frame: Any) -> None:
        said = self._outbox.answered(frame.get("ref"))
        if frame.get("type") != "error" or self._as_json:
            return
        error = frame.get("error") or {}
        if said and said["type"] == "answer" and error.get("code") == "conflict":
            # Said twice because the first answer to it was lost with a connection, or another
            # viewer was faster; the log shows which answer counts.
            self._say(f"That was answered already, by {error.get('answered_by')}.")
        elif not self._quiet:
            self._say(f"Refused: {error.get('message')}")

    def _lost(self, reason: str, final: CommandError | None) -> Exit | None:
        self._open = False
        if final is not None:
            if final.exit_code == Exit.OK:
                self._say(final.message)
                return Exit.OK
            raise final
        self._stream.drop()
        delay_s = self._redial.delay_s(random.random())  # noqa: S311  spreads load, no secret
        if self._redial.attempts == 2:  # once is a deploy and not worth a word
            self._say(f"Connection lost ({one_line(reason)}), trying again …")
        until = time.monotonic() + delay_s
        while (left := until - time.monotonic()) > 0:
            # Ctrl-C and typed lines count while waiting, too.
            item = self._inbox.get(left)
            done = None if item is None else self._handle(item)
            if done is not None:
                return done
        self._stream.connect(self._cursor.query())
        return None

    def _typed(self, text: str | None) -> Exit | None:
        if text is None:
            return Exit.OK
        match parse_line(text, self._pending):
            case Prompt(words):
                prompt_id = str(uuid.uuid4())
                self._own.add(prompt_id)
                self._try_send({"type": "prompt", "id": prompt_id, "text": words})
            case Answer(request_id, behavior, message):
                frame = {"type": "answer", "request_id": request_id, "behavior": behavior}
                self._try_send(frame | ({"message": message} if message else {}))
                self._pending.remove(request_id)
            case Leave():
                return Exit.OK
            case Nothing(hint):
                self._say(hint)
        return None

    def _try_send(self, frame: dict[str, Any]) -> None:
        try:
            self.send(frame)
        except CommandError as error:
            self._say(error.message)

    def _ctrl_c(self) -> Exit | None:
        busy = self._level.get("state") in {"starting", "working", "waiting"}
        if not self._typing or self._interrupted or not busy or not self._open:
            return Exit.INTERRUPTED
        self._interrupted = True
        self.send({"type": "interrupt"})
        self._say("Interrupting the turn. Ctrl-C again leaves; the session goes on.")
        return None

    def _say(self, text: str) -> None:
        """To the person, never into the data."""
        if text:
            if self._out.isatty():  # both on one screen; a file keeps its sentence whole
                self._write(self._transcript.close_line())
            print(one_line(text, 400), file=sys.stderr, flush=True)

    def _write(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._out.flush()


def _raw(frame: dict[str, Any], text: str, before: int | None, wanted: bool) -> str:
    """One line for a frame as it came; without the messages that came before."""
    if frame.get("type") == "messages":
        messages = frame["messages"]
        news = [one for one in messages if before is None or one["seq"] > before]
        if not wanted or not news:
            return ""
        if len(news) < len(messages):
            return json.dumps({**frame, "messages": news}) + "\n"
    return (json.dumps(frame) if "\n" in text else text) + "\n"


def _read_lines(inbox: Inbox) -> None:
    for line in sys.stdin:
        inbox.put(Line(line.rstrip("\n")))
    inbox.put(Line(None))


@contextmanager
def _ctrl_c_to(inbox: Inbox) -> Iterator[None]:
    """Ctrl-C becomes an item of the inbox instead of an exception in mid-print."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may; elsewhere somebody else minds the signals
        return
    before = signal.signal(signal.SIGINT, lambda *_: inbox.put_interrupt())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _has_colour(out: TextIO) -> bool:
    import os

    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def exit_of(answer: Any) -> CommandError:
    """The error frame `answer` as the failure of a command."""
    error = (answer or {}).get("error") or {}
    code = EXIT_OF_CODE.get(str(error.get("code")), Exit.FAILED)
    return CommandError(str(error.get("message") or "The daemon refused."), code)
