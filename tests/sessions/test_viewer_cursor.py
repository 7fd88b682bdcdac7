"""Viewers that are detached and go on elsewhere: nothing is missing and nothing comes twice.

A client is modelled by what it was given; the session goes on meanwhile, in a hub that is another
one after each move, as in another instance. Which moments are tried is random; the order of
tasks is trio's choice, and another one in every run.
"""

import json
import random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from holdoverd.catalogue.records import MessageRow
from holdoverd.sessions import viewer as viewer_module
from holdoverd.sessions.model import Delta, Status
from holdoverd.sessions.viewer import (
    CLOSE_ENDED,
    CLOSE_GOING_AWAY,
    Hub,
    Log,
    Snapshot,
    Viewer,
    ViewerClosed,
    ViewerCursor,
    ViewerDetached,
    delta_frame,
)
from tests.sessions.test_viewer import Stage, frames_until_live, seqs, taken


def go_on(stage: Stage, cursor: ViewerCursor) -> Viewer:
    """The same session in another instance: all that is stored is known there."""
    stage.hub = Hub(len(stage.rows), {})
    for row in stage.rows:
        stage.hub.thread_n[row.thread] = row.n
    return Viewer(
        stage.hub,
        Log(stage.after, stage.thread_after),
        hello=lambda resync: {"type": "hello", "resync": resync, "session": {"generation": 2}},
        snapshot=lambda: stage.snapshot,
        after=0,
        main_n=None,
        resync=False,
        cursor=cursor,
    )


def detached(viewer: Viewer) -> ViewerCursor:
    cursor = viewer.detach()
    assert cursor is not None
    return cursor


async def test_a_live_viewer_goes_on_without_a_second_hello_or_live(
    autojump_clock: MockClock,
) -> None:
    stage = Stage(3)
    viewer = stage.view()
    await frames_until_live(viewer)
    stage.commit()
    stage.commit()
    assert seqs([json.loads(await viewer.next_frame())]) == [4]
    cursor = detached(viewer)
    assert (cursor.stage, cursor.seq, cursor.threads) == ("live", 4, None)
    stage.commit()
    stage.snapshot = Snapshot(['{"type":"status"}'], [("main", delta_frame("main", '"so far"'))])
    viewer = go_on(stage, cursor)
    frames = await taken(viewer)
    kinds = [frame["type"] for frame in frames]
    assert kinds == ["messages", "status", "delta_reset", "delta", "session"]
    assert seqs(frames) == [5, 6]
    assert frames[-1]["session"] == {"generation": 2}
    stage.says(Delta("main", '"more"'), stage.store())
    assert [frame["type"] for frame in await taken(viewer)] == ["delta", "messages"]


async def test_a_block_that_is_not_open_any_more_is_dropped(autojump_clock: MockClock) -> None:
    """Whoever takes over may not have read so far yet; it shows the block again when it has."""
    stage = Stage()
    viewer = stage.view()
    await frames_until_live(viewer)
    stage.snapshot = Snapshot([], [("main", delta_frame("main", '"so far"'))])
    stage.says(Delta("main", '"so far"'))
    await taken(viewer)
    cursor = detached(viewer)
    assert cursor.open == ("main",)
    stage.snapshot = Snapshot([], [])
    assert [f["type"] for f in await taken(go_on(stage, cursor))] == ["delta_reset", "session"]


async def test_a_detached_viewer_gives_nothing_more_and_waits_for_nothing(
    autojump_clock: MockClock,
) -> None:
    stage = Stage(2)
    viewer = stage.view()
    async with trio.open_nursery() as nursery:

        async def read_to_the_end() -> None:
            await frames_until_live(viewer)
            with pytest.raises(ViewerDetached):
                await viewer.next_frame()

        nursery.start_soon(read_to_the_end)
        await trio.testing.wait_all_tasks_blocked()
        detached(viewer)
    stage.commit()
    assert len(stage.hub) == 0
    with pytest.raises(ViewerDetached):
        await viewer.next_frame()


async def test_a_viewer_that_is_being_closed_is_not_detached(autojump_clock: MockClock) -> None:
    stage = Stage(2)
    viewer = stage.view()
    stage.hub.close_all(CLOSE_GOING_AWAY)
    assert viewer.detach() is None


async def test_an_ended_session_closes_behind_its_last_message_wherever_that_is_read(
    autojump_clock: MockClock,
) -> None:
    stage = Stage(2)
    cursor = detached(stage.view())
    viewer = go_on(stage, cursor)
    stage.hub.ended = True
    assert seqs(await frames_until_live(viewer)) == [1, 2]
    with pytest.raises(ViewerClosed) as closed:
        await viewer.next_frame()
    assert (closed.value.code, closed.value.reason) == CLOSE_ENDED


class Client:
    """What one connection was given, checked as it comes."""

    def __init__(self, *, everything: bool, after: int) -> None:
        self.everything = everything
        self.after = after
        self.seqs: list[int] = []
        self.ns: dict[str, list[int]] = {}
        self.kinds: list[str] = []

    def given(self, text: str) -> None:
        frame = json.loads(text)
        kind = frame["type"]
        if kind == "hello":
            assert self.kinds == [], "hello comes first, and once"
        elif kind == "live":
            assert "live" not in self.kinds
        elif kind == "delta_reset":
            assert "hello" in self.kinds
        self.kinds.append(kind)
        for message in frame.get("messages", ()):
            self.seqs.append(message["seq"])
            self.ns.setdefault(message["thread"], []).append(message["n"])

    def check(self, stage: Stage, subscribed: dict[str, int]) -> None:
        """It has been given everything by now, each once and in order."""
        assert self.kinds.count("hello") == self.kinds.count("live") == 1
        if self.everything:
            assert self.seqs == list(range(self.after + 1, len(stage.rows) + 1))
            return
        assert set(self.ns) <= set(subscribed)
        for thread, start in subscribed.items():
            last = sum(row.thread == thread for row in stage.rows)
            assert self.ns.get(thread, []) == list(range(start + 1, last + 1)), thread


class Walk:
    """A session that talks, a client that reads when it feels like it, and moves in between."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.stage = Stage()
        for _ in range(self.random.randrange(12)):
            self.stage.store(self.thread())
        self.stage.hub.committed = len(self.stage.rows)
        self.everything = self.random.random() < 0.5
        after = self.random.randrange(len(self.stage.rows) + 1) if self.everything else 0
        self.client = Client(everything=self.everything, after=after)
        self.viewer = self.stage.view(after=after, main_n=None if self.everything else 0)
        self.subscribed = {"main": 0}
        self.unpublished: list[MessageRow] = []
        self.permits = trio.Semaphore(0)
        self.moving = False
        self.moves = 0

    def thread(self) -> str:
        return self.random.choice(["main", "main", "T1", "T2"])

    def flush(self) -> None:
        """What was stored is published, in its order."""
        rows, self.unpublished = self.unpublished, []
        events: list[Any] = list(rows)
        if self.random.random() < 0.5:
            events.insert(self.random.randrange(len(events) + 1), Delta(self.thread(), '"d"'))
        if self.random.random() < 0.1:
            events.append(Status("init", "{}"))
        self.stage.says(
            *events, session='{"type":"session"}' if self.random.random() < 0.2 else None
        )

    def store(self) -> None:
        self.stage.hub.ahead = True
        self.unpublished.append(self.stage.store(self.thread()))

    async def consume(self, viewer: Viewer, over: trio.Event) -> None:
        try:
            while True:
                await self.permits.acquire()
                self.client.given(await viewer.next_frame())
        except ViewerDetached:
            over.set()

    def step(self) -> None:
        match self.random.randrange(8):
            case 0 | 1:
                self.store()
            case 2 | 3 | 4:
                self.flush()
            case 5:
                thread = self.thread()
                # No frame is worked on while a stream is detached, so nobody subscribes then.
                if not (self.everything or self.moving or thread in self.subscribed):
                    now = self.stage.hub.thread_n.get(thread, 0)
                    start = self.random.choice([None, 0, now])
                    self.viewer.subscribe(thread, start)
                    self.subscribed[thread] = now if start is None else start
            case _:
                for _ in range(self.random.randrange(1, 6)):
                    self.permits.release()

    async def run(self) -> None:
        # What comes while a read is on its way is the hard part.
        reading = self.random.random()
        self.stage.reading = lambda: self.step() if self.random.random() < reading else None
        async with trio.open_nursery() as nursery:
            for _ in range(self.random.randrange(2, 7)):
                over = trio.Event()
                nursery.start_soon(self.consume, self.viewer, over)
                for _ in range(self.random.randrange(25)):
                    self.step()
                    for _ in range(self.random.randrange(4)):
                        await trio.lowlevel.checkpoint()
                if self.random.random() < 0.3:
                    self.stage.snapshot = Snapshot(
                        ['{"type":"status"}'] * self.random.randrange(2),
                        [(t, delta_frame(t, '"s"')) for t in ("main", "T1")],
                    )
                cursor = detached(self.viewer)
                self.moving = True
                given = len(self.client.kinds)
                self.permits.release()
                await over.wait()
                assert len(self.client.kinds) == given, "nothing is given behind the cursor"
                self.unpublished.clear()  # it is in the catalogue, and so in the next hub
                self.viewer = go_on(self.stage, cursor)
                self.moving = False
                self.moves += 1
            self.stage.reading = lambda: None
            self.flush()
            for _ in range(1000):
                self.permits.release()
            nursery.start_soon(self.consume, self.viewer, trio.Event())
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        self.client.check(self.stage, self.subscribed)


@pytest.mark.parametrize("block", range(20))
async def test_whatever_the_moment_nothing_is_missing_and_nothing_comes_twice(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(viewer_module, "CATCH_UP_ROWS", 3)
    for seed in range(block * 50, block * 50 + 50):
        walk = Walk(seed)
        try:
            await walk.run()
        except BaseException as error:
            error.add_note(f"seed {seed}, {walk.moves} moves, {walk.client.kinds}")
            raise
