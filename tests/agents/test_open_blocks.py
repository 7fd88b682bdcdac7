"""What is being said right now: snapshots for those who come in mid-sentence."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from holdoverd.agents.open_blocks import OpenBlocks
from holdoverd.agents.stream_json import classify


class Talk:
    """An agent's lines applied one by one; positions are line numbers times ten."""

    def __init__(self, **bounds: int) -> None:
        self.blocks = OpenBlocks(**bounds)
        self.lines: list[bytes] = []

    def line(self, **fields: Any) -> None:
        self.lines.append(json.dumps(fields).encode())
        self.blocks.apply(classify(self.lines[-1]), 10 * (len(self.lines) - 1))

    def event(self, type: str, parent: str | None = None, **fields: Any) -> None:  # noqa: A002
        event = {"type": type, **fields}
        self.line(type="stream_event", event=event, parent_tool_use_id=parent, session_id="s")

    def start(self, message: str, parent: str | None = None) -> None:
        self.event("message_start", parent, message={"id": message})

    def open(self, index: int, parent: str | None = None, **block: Any) -> None:
        self.event("content_block_start", parent, index=index, content_block=block)

    def delta(self, index: int, parent: str | None = None, **delta: Any) -> None:
        self.event("content_block_delta", parent, index=index, delta=delta)

    def text(self, index: int, text: str, parent: str | None = None) -> None:
        self.delta(index, parent, type="text_delta", text=text)

    def stop(self, index: int, parent: str | None = None) -> None:
        self.event("content_block_stop", parent, index=index)

    def whole(self, message: str, parent: str | None = None) -> None:
        self.line(type="assistant", message={"id": message}, parent_tool_use_id=parent)

    def shown(self) -> list[tuple[str, int, dict[str, Any]]]:
        """(thread, index, content_block) of the snapshot; each line is checked to be a frame."""
        found = []
        for thread, body in self.blocks.snapshot():
            frame = classify(body.encode())
            assert (frame.kind, frame.thread, frame.session_id) == ("delta", thread, "s")
            value = json.loads(body)["event"]
            assert value["type"] == "content_block_start"
            found.append((thread, value["index"], value["content_block"]))
        return found


def test_a_snapshot_holds_the_text_so_far_of_every_kind_of_block() -> None:
    talk = Talk()
    talk.start("m1")
    talk.open(0, type="thinking", thinking="", signature="")
    talk.delta(0, type="thinking_delta", thinking="Let me ")
    talk.delta(0, type="thinking_delta", thinking="see")
    talk.delta(0, type="signature_delta", signature="abc")
    talk.open(1, type="text", text="")
    talk.text(1, "Hé")
    talk.text(1, "llo")
    talk.open(2, type="tool_use", id="t1", name="Bash", input={})
    talk.delta(2, type="input_json_delta", partial_json='{"comm')
    assert talk.shown() == [
        ("main", 0, {"type": "thinking", "thinking": "Let me see", "signature": ""}),
        ("main", 1, {"type": "text", "text": "Héllo"}),
        ("main", 2, {"type": "tool_use", "id": "t1", "name": "Bash", "input": {}, "partial_json": '{"comm'}),
    ]  # fmt: skip


def test_a_whole_block_closes_the_open_one_before_or_after_its_stop() -> None:
    for stop_first in (False, True):
        talk = Talk()
        talk.start("m1")
        talk.open(0, type="text", text="")
        talk.text(0, "one")
        if stop_first:
            talk.stop(0)
            assert len(talk.shown()) == 1  # not yet stored: whoever attaches now needs it
        talk.open(1, type="text", text="")
        talk.whole("m1")
        assert talk.shown() == [("main", 1, {"type": "text", "text": ""})]
        if not stop_first:
            talk.stop(0)
        talk.text(1, "two")
        assert talk.shown() == [("main", 1, {"type": "text", "text": "two"})]
        talk.whole("m1")
        talk.stop(1)
        assert talk.shown() == []


def test_a_block_of_another_message_closes_nothing() -> None:
    talk = Talk()
    talk.start("m1")
    talk.open(0, type="text", text="")
    talk.whole("m0")
    talk.whole("m1", parent="t1")
    assert len(talk.shown()) == 1
    talk.whole("m1")
    assert talk.shown() == []


def test_two_threads_speak_at_once() -> None:
    """T8: deltas of two parents interleaved."""
    talk = Talk()
    talk.start("m1")
    talk.start("m2", "t1")
    talk.open(0, type="text", text="")
    talk.open(0, "t1", type="text", text="")
    for word in ("a", "b", "c"):
        talk.text(0, word)
        talk.text(0, word.upper(), "t1")
    assert [(thread, block["text"]) for thread, _, block in talk.shown()] == [
        ("main", "abc"),
        ("t1", "ABC"),
    ]
    talk.line(type="result", subtype="success")
    assert [thread for thread, _, _ in talk.shown()] == ["t1"]  # it may work in the background
    talk.line(type="system", subtype="task_notification", task_id="a", tool_use_id="t1")
    assert talk.shown() == []


def test_ends_of_messages_and_turns_leave_nothing_open() -> None:
    def speaking() -> Talk:
        talk = Talk()
        talk.start("m1")
        talk.open(0, type="text", text="")
        return talk

    stopped, result, next_one, gone = (speaking() for _ in range(4))
    stopped.event("message_stop")
    result.line(type="result", is_error=True)
    next_one.start("m2")
    gone.blocks.close("main")
    for talk in (stopped, result, next_one, gone):
        assert talk.shown() == []
    assert next_one.blocks.replay_from() == 20
    for talk in (stopped, result, gone):
        assert talk.blocks.replay_from() is None


def test_replaying_from_where_it_says_gives_the_same_snapshot() -> None:
    talk = Talk()
    talk.start("m0")
    talk.open(0, type="text", text="")
    talk.whole("m0")
    talk.event("message_stop")
    talk.start("m2", "t1")  # line 4: the earliest that is not over
    talk.start("m1")
    talk.open(0, type="text", text="")
    talk.text(0, "half a sen")
    talk.open(0, "t1", type="text", text="")
    talk.text(0, "below", "t1")
    assert talk.blocks.replay_from() == 40
    again = Talk()
    for line in talk.lines[4:]:
        again.line(**json.loads(line))
    assert sorted(talk.shown()) == sorted(again.shown())
    talk.event("message_stop", "t1")
    assert talk.blocks.replay_from() == 50


def test_an_owner_that_begins_in_mid_message_follows_what_it_sees() -> None:
    talk = Talk()
    talk.text(0, "lost")  # of a block whose start was never seen
    assert talk.shown() == []
    talk.open(1, type="text", text="")
    talk.text(1, "seen")
    assert talk.shown() == [("main", 1, {"type": "text", "text": "seen"})]
    talk.whole("m1")  # of which message, it cannot know
    assert talk.shown() == []


def test_text_beyond_a_blocks_bound_is_cut_and_says_so() -> None:
    talk = Talk(max_block_chars=10)
    talk.start("m1")
    talk.open(0, type="text", text="")
    talk.text(0, "0123456789")
    assert talk.shown()[0][2]["text"] == "0123456789"
    talk.text(0, "A")
    talk.text(0, "B")
    assert talk.shown()[0][2]["text"] == "0123456789…"


def test_text_beyond_the_sessions_bound_is_cut_and_room_comes_back() -> None:
    talk = Talk(max_total_chars=10)
    talk.start("m1")
    talk.open(0, type="text", text="")
    talk.text(0, "01234567")
    talk.start("m2", "t1")
    talk.open(0, "t1", type="text", text="")
    talk.text(0, "01234567", "t1")
    assert [block["text"] for _, _, block in talk.shown()] == ["01234567", "01…"]
    talk.event("message_stop")
    talk.start("m3")
    talk.open(0, type="text", text="")
    talk.text(0, "fits")
    assert [block["text"] for _, _, block in talk.shown()] == ["01…", "fits"]


def test_the_oldest_other_thread_gives_way_at_the_bound_of_blocks() -> None:
    talk = Talk(max_blocks=3)
    for number in range(3):
        talk.start(f"m{number}", f"t{number}")
        talk.open(0, f"t{number}", type="text", text="")
    talk.open(1, "t2", type="text", text="")
    assert [(thread, index) for thread, index, _ in talk.shown()] == [
        ("t1", 0),
        ("t2", 0),
        ("t2", 1),
    ]
    talk.open(2, "t2", type="text", text="")
    talk.open(3, "t2", type="text", text="")
    assert [(thread, index) for thread, index, _ in talk.shown()] == [
        ("t2", 1),
        ("t2", 2),
        ("t2", 3),
    ]


def test_messages_that_never_end_are_bounded_too() -> None:
    talk = Talk(max_blocks=3)
    for number in range(100):
        talk.start(f"m{number}", f"t{number}")
    assert len(talk.blocks._messages) == 3
    assert talk.blocks.replay_from() == 970


def test_strange_starts_become_plain_text() -> None:
    talk = Talk(max_block_chars=100)
    talk.start("m1")
    talk.event("content_block_start", index=0)
    talk.event("content_block_start", index=1, content_block=[5])
    talk.open(2, type="web_search_tool_result", content="x" * 200)
    talk.blocks.apply(
        classify(
            b'{"type":"stream_event","session_id":"s","event":{"type":"content_block_start",'
            b'"index":3,"content_block":{"type":"text","text":"","n":1e400}}}'
        )
    )
    talk.text(3, "ok")
    texts = [block for _, _, block in talk.shown()]
    assert texts == [{"type": "text", "text": ""}] * 3 + [{"type": "text", "text": "ok"}]
    talk.event("content_block_start", index="4", content_block={})
    talk.event("ping")
    talk.line(type="stream_event")
    assert len(talk.shown()) == 4


@given(st.lists(st.text(min_size=1, max_size=5), max_size=700))
def test_many_small_deltas_are_joined_in_order(pieces: list[str]) -> None:
    talk = Talk()
    talk.start("m1")
    talk.open(0, type="text", text="")
    for piece in pieces:
        talk.text(0, piece)
    assert talk.shown()[0][2]["text"] == "".join(pieces)
    [block] = talk.blocks._messages["main"].blocks.values()
    assert len(block._parts) < 256
