"""Who watches a session: the stream's order, its cursor, and what a slow viewer costs (nothing).

A viewer first catches up from the catalogue, then is live; the turn from one to the other happens
between two awaits, so no message falls in between. Frames are built once and shared by all who
get the same. A viewer's queue is bounded: deltas go first, then the viewer (4008). At any moment a
viewer can be detached: its cursor says what it has been given, and another one, here or in another
instance, goes on from there.
contract.md, The stream.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import trio

from holdoverd.catalogue.records import MessageRow
from holdoverd.errors import CatalogueError, HoldoverError
from holdoverd.metrics.counts import Counts
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


_DETACHED = (0, "detached")
_AT_ONCE = (CLOSE_UNSHARED, CLOSE_BEHIND, _DETACHED)

_LIVE = '{"type":"live"}'


class ViewerClosed(HoldoverError):
    """No further frame comes; close the WebSocket with `code` and `reason`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class ViewerDetached(HoldoverError):
    """No further frame comes from this viewer; whoever gets its cursor goes on."""


@dataclass(frozen=True, slots=True)
class ViewerCursor:
    """What a viewer has been given by `next_frame`.

    `stage` is what has begun: ``live`` once that frame was given. Where all threads are seen,
    `threads` is None and `seq` the last message's; else ``{thread: n of its last message}``.
    `resync` is for a ``hello`` still to come. `open`: threads of which a block may be shown that
    is not over.
    """

    stage: Literal["hello", "catch_up", "live"]
    seq: int
    threads: Mapping[str, int] | None
    resync: bool = False
    open: tuple[str, ...] = ()


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

    def __init__(
        self, committed: int, thread_n: dict[str, int], counts: Counts | None = None
    ) -> None:
        self.counts = counts or Counts()
        self.committed = committed
        self.thread_n = thread_n
        self.ahead = False
        """The session's live state is ahead of what was published: no snapshot is true now."""
        self._replaying = False
        self.ended = False
        """The session has ended, its agent is gone, and every message is published."""
        self._closed: tuple[int, str] | None = None
        self._viewers: set[Viewer] = set()
        # Frames of the events that are published next, for those who see all threads.
        self._prepared: tuple[Sequence[Event], list[_Framed]] | None = None

    def __len__(self) -> int:
        return len(self._viewers)

    def add(self, viewer: "Viewer") -> None:
        self._viewers.add(viewer)
        if self._closed is not None:
            viewer.finish(self._closed)

    def discard(self, viewer: "Viewer") -> None:
        self._viewers.discard(viewer)

    def prepare(self, events: Sequence[Event]) -> None:
        """Build the frames of `events`, which are not stored yet, for when they are published."""
        if any(viewer.joined and viewer.seen_threads() is None for viewer in self._viewers):
            self._prepared = events, _frames(events, None)

    @property
    def level_wanted(self) -> bool:
        """Somebody waits for a moment in which the session's state is what was published."""
        return any(viewer.wants_level for viewer in self._viewers)

    def publish(
        self,
        events: Sequence[Event],
        session_frame: str | None,
        grown_frame: Callable[[], str],
        *,
        ahead: bool = False,
    ) -> None:
        """Show `events` in order to every live viewer, then the session's new levels.

        `session_frame`: None where no level changed. A viewer who does not see a thread that has
        grown gets `grown_frame()` then: so it knows how far that thread has come. `ahead`: the
        session has gone on already.
        """
        self.ahead = ahead or self._replaying
        grown = {event.thread: event.n for event in events if isinstance(event, MessageRow)}
        if grown:
            self.thread_n.update(grown)
            self.committed = next(e.seq for e in reversed(events) if isinstance(e, MessageRow))
        lazy: str | None = None
        if not self._viewers:
            self._prepared = None
            return
        # {threads a viewer sees: frames}; nearly all viewers see "all" or only "main"
        built: dict[frozenset[str] | None, list[_Framed]] = {}
        if self._prepared is not None and self._prepared[0] is events:
            built[None] = self._prepared[1]
        self._prepared = None
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
    """A frame. `seq` and `ns` are of the first messages in it: {thread: n}."""

    kind: Literal["messages", "delta", "status", "session", "other"]
    text: str
    thread: str = MAIN
    seq: int = 0
    ns: Mapping[str, int] | None = None


class _Frames:
    """Frames one after the other. Mostly none, for which a deque would keep room for sixty."""

    __slots__ = ("_first", "_then")

    def __init__(self) -> None:
        self._first: list[_Framed] = []  # the next one last
        self._then: list[_Framed] = []

    def __bool__(self) -> bool:
        return bool(self._first or self._then)

    def append(self, frame: _Framed) -> None:
        self._then.append(frame)

    def extend(self, frames: Iterable[_Framed]) -> None:
        self._then.extend(frames)

    def pop_first(self) -> _Framed:
        if not self._first:
            self._first = self._then[::-1]
            self._then.clear()
        return self._first.pop()

    def waiting(self) -> list[_Framed]:
        """Those that are here, in order."""
        return [*reversed(self._first), *self._then]

    def clear(self) -> None:
        self._first.clear()
        self._then.clear()


def _messages(texts: Sequence[str], seq: int, ns: Mapping[str, int]) -> _Framed:
    return _Framed("messages", messages_frame(texts), MAIN, seq, ns)


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
                frames.append(_messages(run, seq, ns))
                run, chars = [], 0
            if not run:
                seq, ns = event.seq, {}
            ns.setdefault(event.thread, event.n)
            run.append(text)
            chars += len(text)
            continue
        if run:
            frames.append(_messages(run, seq, ns))
            run, chars = [], 0
        if isinstance(event, Delta):
            if seen is None or event.thread in seen:
                frames.append(_Framed("delta", delta_frame(event.thread, event.body), event.thread))
        elif isinstance(event, Status):
            frames.append(_Framed("status", status_frame(event.name, event.body)))
    if run:
        frames.append(_messages(run, seq, ns))
    return frames


def delta_frame(thread: str, body: str) -> str:
    return f'{{"type":"delta","thread":{dumps(thread)},"body":{body}}}'


def status_frame(name: str, body: str) -> str:
    return f'{{"type":"status","name":{dumps(name)},"body":{body}}}'


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
        cursor: ViewerCursor | None = None,
    ) -> None:
        """`cursor`: go on where another viewer was detached; it says all of the three above."""
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
        # Where another viewer got to before us; then a `hello` or a `live` is not given again.
        self._resumed: ViewerCursor | None = None
        self._ready = _Frames()
        self._queue = _Frames()
        self._chars = 0
        self._lost_deltas = False
        self._gave_at_once = False
        # How far it still reads, once it has joined: the seq (all threads), or {thread: n}.
        self._target: int | None = None
        self._targets: dict[str, int] = {}
        self._close: tuple[int, str] | None = None
        self._bell = Wake()
        if cursor is not None:
            self._resume(cursor)
        hub.add(self)

    def _resume(self, cursor: ViewerCursor) -> None:
        self._after, self._resync = cursor.seq, cursor.resync
        self._all = cursor.threads is None
        self._catching_up = dict(cursor.threads or {})
        if cursor.stage != "hello":
            self._stage = "catch_up"
            self._resumed = cursor

    # -- called by the hub ----------------------------------------------------------------------

    def wake(self) -> None:
        self._bell.ring()

    @property
    def joined(self) -> bool:
        """Messages of the threads it sees are pushed from now on; see `_catch_up`."""
        return self.live or (self._target is not None if self._all else bool(self._threads))

    @property
    def wants_level(self) -> bool:
        """It becomes live, or is shown open blocks again, only from a true snapshot."""
        return not self.live or self._lost_deltas or bool(self._catching_up)

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
        self._ready.extend(self._queue.waiting())
        self._queue.clear()
        self._chars = 0
        self._ready.extend(_Framed("status", text) for text in snapshot.statuses)
        resumed = self._resumed
        self._show_blocks(snapshot, resumed.open if resumed is not None else None)
        if resumed is None or resumed.stage != "live":
            self._ready.append(_Framed("other", _LIVE))
        if resumed is not None:
            # The session has another generation now.
            view = {"type": "session", "session": self._hello(False).get("session")}
            self._ready.append(_Framed("session", dumps(view)))
        self._stage = "live"
        self.live = self._close is None

    def _show_blocks(self, snapshot: Snapshot, shown: Sequence[str] | None) -> None:
        """The open blocks as they stand; `shown`: threads of which it may have seen some before."""
        blocks = [(thread, text) for thread, text in snapshot.deltas if self._sees(thread)]
        if shown is not None:
            for thread in dict.fromkeys([*filter(self._sees, shown), *(t for t, _ in blocks)]):
                reset = f'{{"type":"delta_reset","thread":{dumps(thread)}}}'
                self._ready.append(_Framed("other", reset))
        self._ready.extend(_Framed("delta", text, thread) for thread, text in blocks)

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
                    self._hub.counts.deltas_dropped += 1
                    self._drop_deltas()
                    continue
            elif self._chars and self._chars + len(frame.text) > QUEUE_CHARS:
                self._hub.counts.viewers_behind += 1
                self.finish(CLOSE_BEHIND)
                return
            self._queue.append(frame)
            self._chars += len(frame.text)
        self._bell.ring()

    def _drop_deltas(self) -> None:
        kept = [frame for frame in self._queue.waiting() if frame.kind != "delta"]
        self._queue.clear()
        self._queue.extend(kept)
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
        if self._ready or self._queue:
            # Many may wait, and sending one needs no turn of the loop: others get theirs here.
            if self._gave_at_once:
                await trio.lowlevel.checkpoint()
            self._gave_at_once = True
        else:
            self._gave_at_once = False
        while True:
            # Who is still catching up goes on elsewhere: it has its cursor.
            if self._close is not None and (self._close in _AT_ONCE or self._stage != "live"):
                if self._close is _DETACHED:
                    raise ViewerDetached("the viewer was detached")
                raise ViewerClosed(*self._close)
            if self._ready:
                return self._ready.pop_first().text
            if self._stage == "hello":
                self._stage = "catch_up"
                return dumps(self._hello(self._resync))
            if self._stage == "catch_up":
                await self._catch_up()
                continue
            if self._queue:
                frame = self._queue.pop_first()
                self._chars -= len(frame.text)
                return frame.text
            if self._lost_deltas:
                if self._hub.ahead:
                    await self._bell.wait_rung()
                    continue
                self._lost_deltas = False
                self._show_blocks(self._snapshot(), ())
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
            self._ready.extend(
                _Framed("delta", text, name)
                for name, text in self._snapshot().deltas
                if name == thread
            )

    def _show(self, rows: Sequence[MessageRow]) -> None:
        if rows:
            ns: dict[str, int] = {}
            for row in rows:
                ns.setdefault(row.thread, row.n)
            self._ready.append(_messages([message_json(row) for row in rows], rows[0].seq, ns))

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
        self._bell.ring()

    def detach(self) -> ViewerCursor | None:
        """Give no further frame, and say what has been given. None: it is being closed already.

        Not async: what happens to the session from here on is the next viewer's.
        """
        if self._close is not None:
            return None
        cursor = self._cursor()
        self.finish(_DETACHED)
        return cursor

    def _cursor(self) -> ViewerCursor:
        stage = self._stage
        waiting = self._ready.waiting()
        shown: set[str] = set()
        if self._stage == "live":
            if any(frame.text is _LIVE for frame in waiting):
                stage = "catch_up"
            # Before that, what is queued lies behind what is still to be read.
            waiting += self._queue.waiting()
            shown.update(thread for thread, _ in self._snapshot().deltas)
            # The end of a block may be among them.
            shown.update(frame.thread for frame in waiting if frame.kind == "delta")
        if self._resumed is not None:
            if self._resumed.stage == "live":
                stage = "live"
            if self._ready or self._stage != "live":
                shown.update(self._resumed.open)
        threads: dict[str, int] | None = None
        seq = 0
        if self._all:
            reached = self._hub.committed if self._stage == "live" else self._after
            seq = next((frame.seq - 1 for frame in waiting if frame.seq), reached)
        else:
            threads = {thread: self._reached(thread) for thread in self._threads}
            threads.update(self._catching_up)
            for frame in reversed(waiting):
                threads.update((thread, n - 1) for thread, n in (frame.ns or {}).items())
        return ViewerCursor(stage, seq, threads, self._resync, tuple(sorted(shown)))

    def _reached(self, thread: str) -> int:
        """How far a thread has been read, or pushed, that does not lag behind."""
        if self._stage == "live":
            return self._hub.thread_n.get(thread, 0)
        return self._targets[thread]

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
