"""A viewer's frames: their order, its cursor, and what it costs to be slow."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio

from holdoverd.catalogue.records import MessageRow
from holdoverd.errors import CatalogueError
from holdoverd.sessions import viewer as viewer_module
from holdoverd.sessions.model import Delta, Status
from holdoverd.sessions.viewer import (
    CLOSE_GOING_AWAY,
    CLOSE_UNSHARED,
    DELTA_QUEUE_CHARS,
    QUEUE_CHARS,
    Hub,
    Log,
    Snapshot,
    Viewer,
    ViewerClosed,
    delta_frame,
    opening,
    status_frame,
)


class Stage:
    """A session's log in memory, and a hub in front of it."""

    def __init__(self, stored: int = 0) -> None:
        self.rows: list[MessageRow] = []
        self.hub = Hub(0, {})
        self.snapshot = Snapshot([], [])
        self.reading: Callable[[], None] = lambda: None
        for _ in range(stored):
            self.store()
        self.hub.committed = len(self.rows)

    def row(self, thread: str = "main", text: str = "") -> MessageRow:
        n = sum(r.thread == thread for r in self.rows) + 1
        seq = len(self.rows) + 1
        return MessageRow(seq, n, thread, 5, "assistant", None, None, None, json.dumps({"t": text}))

    def store(self, thread: str = "main", text: str = "") -> MessageRow:
        """Commit a message without telling the hub of it yet."""
        row = self.row(thread, text)
        self.rows.append(row)
        return row

    def says(self, *events: Any, session: str | None = None) -> None:
        self.hub.publish(events, session, lambda: '{"type":"session","session":"grown"}')

    def commit(self, thread: str = "main", text: str = "") -> None:
        self.says(self.store(thread, text))

    async def after(self, seq: int, rows: int, size: int) -> list[MessageRow]:
        await trio.lowlevel.checkpoint()
        self.reading()
        return [r for r in self.rows if r.seq > seq][:rows]

    async def thread_after(self, thread: str, n: int, rows: int, size: int) -> list[MessageRow]:
        await trio.lowlevel.checkpoint()
        self.reading()
        return [r for r in self.rows if r.thread == thread and r.n > n][:rows]

    def view(self, after: int = 0, main_n: int | None = None, **more: Any) -> Viewer:
        for row in self.rows[: self.hub.committed]:
            self.hub.thread_n[row.thread] = max(self.hub.thread_n.get(row.thread, 0), row.n)
        return Viewer(
            self.hub,
            Log(self.after, self.thread_after),
            hello=lambda resync: {"type": "hello", "resync": resync},
            snapshot=lambda: self.snapshot,
            after=after,
            main_n=main_n,
            resync=False,
            **more,
        )


async def frames_until_live(viewer: Viewer) -> list[Any]:
    frames = []
    while not frames or frames[-1]["type"] != "live":
        frames.append(json.loads(await viewer.next_frame()))
    return frames


def seqs(frames: list[Any]) -> list[int]:
    return [m["seq"] for f in frames if f["type"] == "messages" for m in f["messages"]]


async def taken(viewer: Viewer) -> list[Any]:
    """Every frame that is there without waiting."""
    frames = []
    with trio.move_on_after(1):
        while True:
            frames.append(json.loads(await viewer.next_frame()))
    return frames


async def test_hello_then_messages_then_statuses_then_deltas_then_live(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(3)
    stage.snapshot = Snapshot(
        [status_frame("status", '{"a":1}')], [("main", delta_frame("main", '{"b":2}'))]
    )
    frames = await frames_until_live(stage.view())
    assert [f["type"] for f in frames] == ["hello", "messages", "status", "delta", "live"]
    assert seqs(frames) == [1, 2, 3]


async def test_a_commit_seen_by_the_read_but_not_yet_published_is_shown_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The regression that a reconnect under load found: such a message came twice."""
    stage = Stage(3)
    viewer = stage.view()
    late: list[MessageRow] = []
    stage.reading = lambda: late.append(stage.store()) if not late else None
    frames = await frames_until_live(viewer)
    assert seqs(frames) == [1, 2, 3]
    stage.says(*late)
    assert seqs(await taken(viewer)) == [4]


async def test_messages_committed_while_catching_up_are_neither_lost_nor_repeated(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer_module, "CATCH_UP_ROWS", 2)
    stage = Stage(7)
    stage.reading = lambda: stage.commit() if len(stage.rows) < 12 else None
    viewer = stage.view(after=1)
    frames = await frames_until_live(viewer)
    stage.commit()
    assert seqs(frames + await taken(viewer)) == list(range(2, 14))


async def test_only_main_is_gapless_in_n_and_tells_how_other_threads_grow(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    for thread in ("main", "T1", "T1", "main"):
        stage.store(thread)
    stage.hub.committed = 4
    viewer = stage.view(main_n=0)
    frames = await frames_until_live(viewer)
    assert seqs(frames) == [1, 4]
    stage.commit("T1")
    stage.commit("main")
    more = await taken(viewer)
    assert [f["type"] for f in more] == ["session", "messages"]
    assert seqs(more) == [6]


async def test_subscribing_brings_a_thread_from_the_given_n_and_goes_on_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    for thread in ("main", "T1", "T1", "T1"):
        stage.store(thread)
    stage.hub.committed = 4
    viewer = stage.view(main_n=0)
    await frames_until_live(viewer)
    viewer.subscribe("T1", 1)
    assert seqs(await taken(viewer)) == [3, 4]
    stage.commit("T1")
    assert seqs(await taken(viewer)) == [5]


async def test_subscribing_before_live_misses_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    stage.store("main")
    stage.store("T1")
    stage.hub.committed = 2
    viewer = stage.view(main_n=0)
    json.loads(await viewer.next_frame())
    viewer.subscribe("T1", None)
    stage.commit("T1")
    frames = await frames_until_live(viewer)
    stage.commit("T1")
    assert seqs(frames + await taken(viewer)) == [1, 3, 4]


async def test_live_frames_keep_the_order_of_what_was_said(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    viewer = stage.view()
    await frames_until_live(viewer)
    stage.says(
        Delta("main", '{"d":1}'), stage.store(), stage.store(), Delta("main", '{"d":2}'),
        Status("init", '{"s":1}'), stage.store(), session='{"type":"session"}',
    )  # fmt: skip
    kinds = [f["type"] for f in await taken(viewer)]
    assert kinds == ["delta", "messages", "delta", "status", "messages", "session"]


async def test_a_slow_viewer_first_loses_deltas_and_gets_a_snapshot_when_it_has_caught_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    viewer = stage.view()
    await frames_until_live(viewer)
    big = json.dumps("x" * 1000)
    for _ in range(DELTA_QUEUE_CHARS // 1000 + 50):
        stage.says(Delta("main", big))
    stage.commit()
    stage.snapshot = Snapshot([], [("main", delta_frame("main", '"so far"'))])
    frames = await taken(viewer)
    assert [f["type"] for f in frames] == ["messages", "delta_reset", "delta"]
    assert frames[-1]["body"] == "so far"
    stage.says(Delta("main", '"more"'))
    assert [f["type"] for f in await taken(viewer)] == ["delta"]


async def test_a_viewer_too_far_behind_is_closed_4008_and_costs_the_others_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    slow, quick = stage.view(), stage.view()
    await frames_until_live(slow)
    await frames_until_live(quick)
    shown = 0
    text = "x" * 200_000
    for _ in range(QUEUE_CHARS // len(text) + 2):
        stage.commit(text=text)
        shown += len(seqs([json.loads(await quick.next_frame())]))
    assert shown == len(stage.rows)
    with pytest.raises(ViewerClosed) as closed:
        await slow.next_frame()
    assert closed.value.code == 4008
    assert len(stage.hub) == 1


async def test_one_frame_larger_than_the_queue_is_shown_all_the_same(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer_module, "QUEUE_CHARS", 1000)
    stage = Stage()
    viewer = stage.view()
    await frames_until_live(viewer)
    stage.commit(text="x" * 5000)
    assert seqs(await taken(viewer)) == [1]


async def test_what_is_queued_is_shown_before_the_close(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    viewer = stage.view()
    await frames_until_live(viewer)
    stage.commit()
    stage.hub.close_all(CLOSE_GOING_AWAY)
    assert seqs([json.loads(await viewer.next_frame())]) == [1]
    with pytest.raises(ViewerClosed) as closed:
        await viewer.next_frame()
    assert closed.value.code == 1001


async def test_an_ended_session_closes_1000_after_its_last_message(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(2)
    stage.hub.ended = True
    viewer = stage.view()
    assert seqs(await frames_until_live(viewer)) == [1, 2]
    with pytest.raises(ViewerClosed) as closed:
        await viewer.next_frame()
    assert closed.value.code == 1000


async def test_nobody_becomes_live_on_a_state_that_is_ahead_of_what_was_published(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Else the delta in the snapshot would come a second time with what is published next."""
    stage = Stage(1)
    viewer = stage.view()
    stage.hub.ahead = True
    stage.snapshot = Snapshot([], [("main", delta_frame("main", '"hello world"'))])
    frames = await taken(viewer)
    assert [f["type"] for f in frames] == ["hello", "messages"]
    stage.says(Delta("main", '" world"'))
    assert [f["type"] for f in await taken(viewer)] == ["delta", "live"]


@pytest.mark.parametrize("main_n", [None, 0])
async def test_a_session_that_talks_without_a_pause_keeps_nobody_from_becoming_live(
    autojump_clock: trio.testing.MockClock, main_n: int | None
) -> None:
    """With every read a message comes, and another step is on its way: there is no last read."""
    stage = Stage(3)
    viewer = stage.view(main_n=main_n)
    stage.snapshot = Snapshot([status_frame("status", "1")], [("main", delta_frame("main", "2"))])

    def says_and_goes_on() -> None:
        stage.says(stage.store(), Delta("main", '"in the snapshot"'), session='{"type":"session"}')
        stage.hub.ahead = True

    stage.reading = says_and_goes_on
    frames = await taken(viewer)
    assert [f["type"] for f in frames] == ["hello", "messages"]
    says_and_goes_on()
    frames += await taken(viewer)
    kinds = [f["type"] for f in frames[2:]]
    assert kinds == ["messages", "messages", "status", "delta", "live", "session"]
    stage.commit()
    assert seqs(frames + await taken(viewer)) == list(range(1, 7))


async def test_a_thread_that_is_level_misses_nothing_while_another_is_still_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(2)
    stage.store("sub")
    stage.hub.committed = 3
    viewer = stage.view(main_n=0)
    viewer.subscribe("sub", 0)
    reads = iter([lambda: None, stage.commit, lambda: stage.commit("sub")])
    stage.reading = lambda: next(reads, lambda: None)()
    frames = await frames_until_live(viewer)
    stage.commit()
    assert sorted(seqs(frames + await taken(viewer))) == list(range(1, len(stage.rows) + 1))


async def test_a_viewer_for_whom_too_much_comes_while_it_reads_is_closed_4008(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(1)
    viewer = stage.view()
    assert json.loads(await viewer.next_frame())["type"] == "hello"

    def says_much() -> None:
        for _ in range(64):
            stage.commit(text="x" * (QUEUE_CHARS // 64))

    stage.reading = says_much
    with pytest.raises(ViewerClosed) as closed:
        await viewer.next_frame()
    assert closed.value.code == 4008


async def test_what_was_ahead_and_is_taken_back_lets_viewers_go_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    viewer = stage.view()
    stage.hub.ahead = True
    assert [f["type"] for f in await taken(viewer)] == ["hello"]
    stage.hub.settled()
    assert [f["type"] for f in await taken(viewer)] == ["live"]


async def test_a_viewer_who_comes_after_the_hub_was_closed_is_closed_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(1)
    stage.hub.close_all(CLOSE_GOING_AWAY)
    viewer = stage.view()
    with pytest.raises(ViewerClosed) as closed:
        await viewer.next_frame()
    assert closed.value.code == 1001


async def test_a_viewer_who_loses_the_right_to_watch_sees_nothing_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(5)
    viewer = stage.view(owner="bob")
    await viewer.next_frame()
    stage.hub.close_others("ann", CLOSE_UNSHARED)
    with pytest.raises(ViewerClosed) as closed:
        await viewer.next_frame()
    assert closed.value.code == 4003


async def test_a_catalogue_that_cannot_be_read_sends_the_viewer_away_with_its_cursor(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(2)

    def fail() -> None:
        raise CatalogueError("disk on fire")

    stage.reading = fail
    viewer = stage.view()
    await viewer.next_frame()
    with pytest.raises(ViewerClosed) as closed:
        await viewer.next_frame()
    assert closed.value.code == 1001


async def test_viewers_of_others_are_closed_when_a_session_is_shared_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    views = {owner: stage.view(owner=owner) for owner in ("ann", "bob", None)}
    for view in views.values():
        await frames_until_live(view)
    stage.hub.close_others("ann", (4003, "no longer shared"))
    with pytest.raises(ViewerClosed) as closed:
        await views["bob"].next_frame()
    assert closed.value.code == 4003
    assert len(stage.hub) == 2


@pytest.mark.parametrize(
    ("after", "epoch", "expected"),
    [
        (None, None, (300, False)),
        (None, "e1", (300, False)),
        (None, "other", (300, True)),
        (0, None, (0, False)),
        (0, "e1", (0, False)),
        (450, "e1", (450, False)),
        (500, "e1", (500, False)),
        (501, "e1", (300, True)),
        (450, "other", (300, True)),
        (0, "other", (300, True)),
    ],
)
def test_a_cursor_that_lies_is_resynced_never_served(
    after: int | None, epoch: str | None, expected: tuple[int, bool]
) -> None:
    assert (
        opening(after=after, epoch=epoch, session_epoch="e1", last_seq=500, opens_last_pages=301)
        == expected
    )
