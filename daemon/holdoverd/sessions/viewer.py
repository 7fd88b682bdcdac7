"""Who watches a session: the stream's order, its cursor, and what a slow viewer costs (nothing).

A viewer first catches up from the catalogue, then is live; the turn from one to the other happens
between two awaits, so no message falls in between. Frames are built once and shared by all who
get the same. A viewer's queue is bounded: deltas go first, then the viewer (4008).
contract.md, The stream.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from holdoverd.catalogue.records import MessageRow
from holdoverd.errors import CatalogueError, HoldoverError
from holdoverd.sessions.model import MAIN, Delta, Event, Status
from holdoverd.sessions.spool import Wake
from holdoverd.sessions.wire import dumps, message_json, messages_frame

QUEUE_CHARS = 8 * 1024 * 1024
"""A viewer further behind than this is closed 4008, its cursor intact."""

DELTA_QUEUE_CHARS = 512 * 1024
"""A viewer further behind than this gets no deltas until it has caught up."""

CATCH_UP_ROWS = 500
CATCH_UP_BYTES = 1024 * 1024
FRAME_CHARS = 112 * 1024
"""Some copies are made of a frame on its way; from 128 KiB each is mapped, faulted in, unmapped."""

MAX_SUBSCRIPTIONS = 256

CLOSE_ENDED = (1000, "session ended")
CLOSE_GOING_AWAY = (1001, "going away, reconnect now")
CLOSE_UNSHARED = (4003, "no longer shared")
CLOSE_BEHIND = (4008, "too far behind, reconnect with your cursor")


_AT_ONCE = (CLOSE_UNSHARED, CLOSE_BEHIND)


class ViewerClosed(HoldoverError):
    """No further frame comes; close the WebSocket with `code` and `reason`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a viewer who has just caught up is shown: latest statuses and open blocks, as frames."""

    statuses: Sequence[str]
    deltas: Sequence[tuple[str, str]]  # (thread, frame)


@dataclass(frozen=True, slots=True)
class Log:
    """How viewers read the stored messages of one session; the owner binds them.

    ``after(seq, rows, size)`` and ``thread_after(thread, n, rows, size)``: up to `rows` messages
    beyond the cursor, in order, no more than fit in `size` bytes but at least one.
    """

    after: Callable[[int, int, int], Awaitable[Sequence[MessageRow]]]
    thread_after: Callable[[str, int, int, int], Awaitable[Sequence[MessageRow]]]


class Hub:
    """The viewers of one session on this instance.

    `committed` is the highest seq in the catalogue; the owner raises it by `publish`, which is
    called after the commit and never before.
    """

    def __init__(self, committed: int, thread_n: dict[str, int]) -> None:
        self.committed = committed
        self.thread_n = thread_n
        self.ahead = False
        """The session's live state is ahead of what was published: no snapshot is true now."""
        self._replaying = False
        self.ended = False
        """The session has ended, its agent is gone, and every message is published."""
        self._closed: tuple[int, str] | None = None
        self._viewers: set[Viewer] = set()

    def __len__(self) -> int:
        return len(self._viewers)

    def add(self, viewer: "Viewer") -> None:
        self._viewers.add(viewer)
        if self._closed is not None:
            viewer.finish(self._closed)

    def discard(self, viewer: "Viewer") -> None:
        self._viewers.discard(viewer)

    def publish(
        self, events: Sequence[Event], session_frame: str | None, grown_frame: Callable[[], str]
    ) -> None:
        """Show `events` in order to every live viewer, then the session's new levels.

        `session_frame`: None where no level changed. A viewer who does not see a thread that has
        grown gets `grown_frame()` then: so it knows how far that thread has come.
        """
        self.ahead = self._replaying
        grown: set[str] = set()
        for event in events:
            if isinstance(event, MessageRow):
                self.committed = event.seq
                self.thread_n[event.thread] = event.n
                grown.add(event.thread)
        lazy: str | None = None
        if not self._viewers:
            return
        # {threads a viewer sees: frames}; nearly all viewers see "all" or only "main"
        built: dict[frozenset[str] | None, list[_Framed]] = {}
        for viewer in list(self._viewers):
            viewer.wake()
            if not viewer.joined:
                continue
            seen = viewer.seen_threads()
            frames = built.get(seen)
            if frames is None:
                frames = built[seen] = _frames(events, seen)
            if viewer.live:
                viewer.push(frames)
            else:
                viewer.push([frame for frame in frames if frame.kind == "messages"])
                if self.ahead or not viewer.at_the_door:
                    continue
                viewer.become_live()
            shown = session_frame
            if shown is None and seen is not None and not seen.issuperset(grown):
                shown = lazy = lazy or grown_frame()
            if shown is not None:
                viewer.push([_Framed("session", shown)])

    def replaying(self, replaying: bool) -> None:
        """What the agent said is read a second time, to find out what it is in the middle of.

        Until that is known no snapshot is true, and nobody becomes live: sentences that were over
        long ago would be shown once more. It takes effect with what is published next.
        """
        self._replaying = replaying
        self.ahead = self.ahead or replaying

    def settled(self) -> None:
        """What was ahead has been taken back, or the session has ended: let everybody look."""
        self.ahead = self._replaying
        for viewer in self._viewers:
            viewer.wake()

    def close_all(self, close: tuple[int, str]) -> None:
        """Close every viewer, and those who come later: this hub is fed no more."""
        self._closed = close
        for viewer in list(self._viewers):
            viewer.finish(close)

    def close_others(self, owner: str, close: tuple[int, str]) -> None:
        """Close every viewer who is not `owner` and may not see everything."""
        for viewer in list(self._viewers):
            if viewer.owner not in (None, owner):
                viewer.finish(close)


@dataclass(frozen=True, slots=True)
class _Framed:
    """A frame, and where a viewer stands who has been given it: (seq, {thread: n}) of its last
    messages, None for a frame without any.
    """

    kind: Literal["messages", "delta", "status", "session", "live"]
    text: str
    thread: str = MAIN
    mark: "tuple[int, dict[str, int]] | None" = None


def _frames(events: Sequence[Event], seen: frozenset[str] | None) -> list[_Framed]:
    """The wire frames of `events` for viewers of the threads `seen` (None: all of them)."""
    frames: list[_Framed] = []
    run: list[str] = []
    chars = seq = 0
    ns: dict[str, int] = {}
    for event in events:
        if isinstance(event, MessageRow):
            if seen is not None and event.thread not in seen:
                continue
            text = message_json(event)
            if run and chars + len(text) > FRAME_CHARS:
                frames.append(_Framed("messages", messages_frame(run), mark=(seq, dict(ns))))
                run, chars = [], 0
            run.append(text)
            chars += len(text)
            seq = event.seq
            ns[event.thread] = event.n
            continue
        if run:
            frames.append(_Framed("messages", messages_frame(run), mark=(seq, dict(ns))))
            run, chars = [], 0
        if isinstance(event, Delta):
            if seen is None or event.thread in seen:
                frames.append(_Framed("delta", delta_frame(event.thread, event.body), event.thread))
        elif isinstance(event, Status):
            frames.append(_Framed("status", status_frame(event.name, event.body)))
    if run:
        frames.append(_Framed("messages", messages_frame(run), mark=(seq, ns)))
    return frames


def delta_frame(thread: str, body: str) -> str:
    return f'{{"type":"delta","thread":{dumps(thread)},"body":{body}}}'


def status_frame(name: str, body: str) -> str:
    return f'{{"type":"status","name":{dumps(name)},"body":{body}}}'


@dataclass(slots=True)
class Cursor:
    """What a viewer has been given: whether ``hello`` and ``live``, and up to which message.

    `threads`: {thread: n} for one who sees only these, None for one who sees all, to `seq`.
    """

    hello: bool
    live: bool
    seq: int
    threads: dict[str, int] | None
    resync: bool = False

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Cursor":
        """Raises ValueError for what is none of `Viewer.cursor`'s."""
        try:
            threads = fields["threads"]
            return cls(
                bool(fields["hello"]),
                bool(fields["live"]),
                int(fields["seq"]),
                None if threads is None else {str(t): int(n) for t, n in threads.items()},
                bool(fields.get("resync")),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no cursor of a viewer: {error!r}") from error


class Viewer:
    """One WebSocket's view of one session.

    `next_frame` is called by one task only. The other methods may be called from others.
    """

    def __init__(
        self,
        hub: Hub,
        log: Log,
        *,
        hello: Callable[[bool], dict[str, Any]],
        snapshot: Callable[[], Snapshot],
        after: int,
        main_n: int | None,
        resync: bool,
        owner: str | None = None,
        resumed: "Cursor | None" = None,
    ) -> None:
        """`resumed`: goes on for a viewer who was given so much elsewhere, instead of the cursor."""
        self._hub = hub
        self._log = log
        self._hello = hello
        self._snapshot = snapshot
        self.owner = owner
        """Who watches; None: somebody who may see everything."""
        self._after = after
        self._resync = resync
        # Only some threads are seen when `main_n` is given: those live, and those still catching
        # up with {thread: n sent so far}.
        self._all = main_n is None
        self._threads: set[str] = set()
        self._catching_up: dict[str, int] = {} if main_n is None else {MAIN: main_n}
        self.live = False
        self._stage: Literal["hello", "catch_up", "live"] = "hello"
        # What `next_frame` has given.
        self._given = Cursor(
            False, False, after, None if main_n is None else {MAIN: main_n}, resync
        )
        self._resumed = resumed is not None and resumed.hello
        if resumed is not None:
            self._given = resumed
            self._after = resumed.seq
            self._all = resumed.threads is None
            self._catching_up = dict(resumed.threads or {})
            if resumed.hello:
                self._stage = "catch_up"
        self._ready: deque[_Framed] = deque()
        self._queue: deque[_Framed] = deque()
        self._chars = 0
        self._lost_deltas = False
        # How far it still reads, once it has joined: the seq (all threads), or {thread: n}.
        self._target: int | None = None
        self._targets: dict[str, int] = {}
        self._close: tuple[int, str] | None = None
        self._bell = Wake()
        hub.add(self)

    # -- called by the hub ----------------------------------------------------------------------

    def wake(self) -> None:
        self._bell.ring()

    @property
    def joined(self) -> bool:
        """Messages of the threads it sees are pushed from now on; see `_catch_up`."""
        return self.live or (self._target is not None if self._all else bool(self._threads))

    @property
    def at_the_door(self) -> bool:
        """It has joined, has read all that there was, and is not live yet."""
        if self._stage != "catch_up" or self._close is not None or self._catching_up:
            return False
        return not self._all or (self._target is not None and self._after >= self._target)

    def become_live(self) -> None:
        """The hub and the session's state are level, and so is this viewer with them.

        The hub does this for whoever is at the door, in the moment of publishing. When the
        viewer's own task comes to look, the next step may be on its way already: under load no
        viewer of a session that talks steadily would ever become live.
        """
        snapshot = self._snapshot()
        # What was pushed since it joined goes behind what it has read, and before the snapshot.
        self._ready.extend(self._queue)
        self._queue.clear()
        self._chars = 0
        if self._resumed:
            # Levels may have changed while it was on its way.
            view = self._hello(False)["session"]
            self._ready.append(_Framed("session", dumps({"type": "session", "session": view})))
        self._ready.extend(_Framed("status", text) for text in snapshot.statuses)
        self._show_open_blocks(snapshot.deltas, anew=self._resumed)
        if not self._given.live:
            self._ready.append(_Framed("live", '{"type":"live"}'))
        self._stage = "live"
        self.live = self._close is None

    def seen_threads(self) -> frozenset[str] | None:
        return None if self._all else frozenset(self._threads)

    def push(self, frames: Sequence[_Framed]) -> None:
        """Queue live frames; never waits. A viewer over its bound loses deltas, then its place."""
        for frame in frames:
            if frame.kind == "delta":
                if self._lost_deltas:
                    continue
                if self._chars + len(frame.text) > DELTA_QUEUE_CHARS:
                    self._lost_deltas = True
                    self._drop_deltas()
                    continue
            elif self._chars and self._chars + len(frame.text) > QUEUE_CHARS:
                self.finish(CLOSE_BEHIND)
                return
            self._queue.append(frame)
            self._chars += len(frame.text)
        self._bell.ring()

    def _drop_deltas(self) -> None:
        kept = [frame for frame in self._queue if frame.kind != "delta"]
        self._queue = deque(kept)
        self._chars = sum(len(frame.text) for frame in kept)

    def finish(self, close: tuple[int, str]) -> None:
        """No further frame. What is queued goes out first, unless it is too much, or not theirs."""
        if self._close is None:
            self._close = close
            if close in _AT_ONCE:
                self._ready.clear()
                self._queue.clear()
                self._chars = 0
            self.live = False
            self._hub.discard(self)
        self._bell.ring()

    # -- called by the connection ---------------------------------------------------------------

    async def next_frame(self) -> str:
        """The next text frame to send. Raises ViewerClosed when there will be none."""
        while True:
            # Who is still catching up goes on elsewhere: it has its cursor.
            if self._close is not None and (self._close in _AT_ONCE or self._stage != "live"):
                raise ViewerClosed(*self._close)
            if self._ready:
                return self._give(self._ready.popleft())
            if self._stage == "hello":
                self._stage = "catch_up"
                self._given.hello = True
                return dumps(self._hello(self._resync))
            if self._stage == "catch_up":
                await self._catch_up()
                continue
            if self._queue:
                frame = self._queue.popleft()
                self._chars -= len(frame.text)
                return self._give(frame)
            if self._lost_deltas:
                if self._hub.ahead:
                    await self._bell.wait_rung()
                    continue
                self._lost_deltas = False
                self._show_open_blocks(self._snapshot().deltas, anew=True)
                continue
            if self._catching_up:
                await self._catch_up_threads()
                continue
            if self._close is not None:
                raise ViewerClosed(*self._close)
            if self._hub.ended:
                raise ViewerClosed(*CLOSE_ENDED)
            await self._bell.wait_rung()

    async def _catch_up(self) -> None:
        """Read on from the cursor; at the catalogue's end become live.

        Joins when one more read may reach the end: what is published from then on is queued here,
        and only what was published before is still read. Chasing the end to the last message
        would not succeed while messages come faster than reads.
        """
        if self._catching_up:
            await self._catch_up_threads()
            return
        if self._all:
            if self._target is None and self._hub.committed - self._after <= CATCH_UP_ROWS:
                self._target = self._hub.committed
            target = self._hub.committed if self._target is None else self._target
            if self._after < target:
                rows = await self._read(self._log.after(self._after, CATCH_UP_ROWS, CATCH_UP_BYTES))
                # The read may see what is pushed, or what the hub has yet to publish.
                self._show([row for row in rows if row.seq <= target])
                self._after = min(rows[-1].seq, target) if rows else target
                return
        if self._hub.ahead:
            await self._bell.wait_rung()
            return
        self.become_live()

    async def _catch_up_threads(self) -> None:
        """Messages of a thread that is not level with the hub yet; of one thread a call."""
        thread, sent = next(iter(self._catching_up.items()))
        target = self._hub.thread_n.get(thread, 0)
        if self._stage != "live":
            # Joins as in `_catch_up`. A live viewer's queue goes out at once: it may not.
            if thread not in self._targets and target - sent <= CATCH_UP_ROWS:
                self._targets[thread] = target
                self._threads.add(thread)
            target = self._targets.get(thread, target)
        if sent < target:
            rows = await self._read(
                self._log.thread_after(thread, sent, CATCH_UP_ROWS, CATCH_UP_BYTES)
            )
            self._show([row for row in rows if row.n <= target])
            self._catching_up[thread] = min(rows[-1].n, target) if rows else target
            return
        if self._stage == "live" and self._hub.ahead:
            await self._bell.wait_rung()
            return
        del self._catching_up[thread]
        self._threads.add(thread)
        if self._stage == "live":
            mine = [one for one in self._snapshot().deltas if one[0] == thread]
            self._show_open_blocks(mine, anew=False)

    def _show(self, rows: Sequence[MessageRow]) -> None:
        if rows:
            frame = messages_frame(message_json(row) for row in rows)
            ns = {row.thread: row.n for row in rows}
            self._ready.append(_Framed("messages", frame, mark=(rows[-1].seq, ns)))

    def _show_open_blocks(self, deltas: Sequence[tuple[str, str]], *, anew: bool) -> None:
        """The sentences under way; `anew`: the viewer has a part of them that is out of date."""
        for thread, text in deltas:
            if self._sees(thread):
                if anew:
                    reset = f'{{"type":"delta_reset","thread":{dumps(thread)}}}'
                    self._ready.append(_Framed("delta", reset, thread))
                self._ready.append(_Framed("delta", text, thread))

    def _give(self, frame: _Framed) -> str:
        """Note what the viewer has from now on."""
        given = self._given
        if frame.mark is not None:
            seq, ns = frame.mark
            given.seq = max(given.seq, seq)
            if given.threads is not None:
                given.threads.update(ns)
        elif frame.kind == "live":
            given.live = True
        return frame.text

    def cursor(self) -> dict[str, Any]:
        """What has been given, for a viewer elsewhere to go on from (`Cursor.of`)."""
        given = self._given
        return {
            "hello": given.hello,
            "live": given.live,
            "seq": given.seq,
            "threads": given.threads,
            "resync": given.resync,
        }

    async def _read(self, reading: Awaitable[Sequence[MessageRow]]) -> Sequence[MessageRow]:
        try:
            return await reading
        except CatalogueError:
            # The client reconnects with its cursor; the catalogue may be back by then.
            self.finish(CLOSE_GOING_AWAY)
            raise ViewerClosed(*CLOSE_GOING_AWAY) from None

    def _sees(self, thread: str) -> bool:
        return self._all or thread in self._threads

    def subscribe(self, thread: str, after_n: int | None) -> None:
        """See `thread` too, from n > `after_n`; default: new messages only."""
        if self._all or thread in self._threads or thread in self._catching_up:
            return
        if len(self._threads) + len(self._catching_up) >= MAX_SUBSCRIPTIONS:
            return
        now = self._hub.thread_n.get(thread, 0)
        # Even "new ones only" goes by the catching up: before `live` nothing is pushed.
        self._catching_up[thread] = now if after_n is None else min(after_n, now)
        if self._given.threads is not None:
            self._given.threads[thread] = self._catching_up[thread]
        self._bell.ring()

    def close(self) -> None:
        """The connection is gone; idempotent."""
        if self._close is None:
            self._close = CLOSE_GOING_AWAY
        self.live = False
        self._hub.discard(self)


def opening(
    *,
    after: int | None,
    epoch: str | None,
    session_epoch: str,
    last_seq: int,
    opens_last_pages: int,
) -> tuple[int, bool]:
    """Where a stream begins: (after, resync). contract.md: a cursor that lies is never served.

    `opens_last_pages`: the seq that opens the last page but one of `main`. `after` > 0 without
    `epoch` was refused before the upgrade.
    """
    fresh = max(opens_last_pages - 1, 0)
    if after is None:
        return fresh, epoch is not None and epoch != session_epoch
    if (epoch is not None and epoch != session_epoch) or after > last_seq:
        return fresh, True
    return after, False
