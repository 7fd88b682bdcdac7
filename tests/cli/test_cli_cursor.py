"""The cursor: each message once and in order, each word of an open sentence once."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdover import cursor as cursor_module
from holdover.cursor import (
    Answered,
    Cursor,
    Event,
    Level,
    Live,
    Opened,
    Status,
    Stored,
    StreamGapError,
    Text,
)
from tests.cli.model_session import Frame, ModelSession, delta


def feed(cursor: Cursor, frames: list[Frame]) -> list[Event]:
    return [event for frame in frames for event in cursor.receive(frame)]


def text_of(events: list[Event]) -> str:
    """What a screen without any layout shows of the main thread's text."""
    shown = ""
    for event in events:
        if isinstance(event, Text):
            shown += ("|" if event.fresh else "") + event.text
        elif isinstance(event, Stored) and event.message["kind"] == "assistant":
            for at, (_, text) in enumerate(cursor_module.texts(event.message)):
                done = event.shown.get(at, 0)
                shown += text[done:] if done else "|" + text
    return shown


def test_first_connection_asks_for_the_last_pages_and_later_ones_for_what_follows() -> None:
    session, cursor = ModelSession(), Cursor()
    session.store("user", {})
    assert cursor.query() == {"threads": "all"}
    feed(cursor, session.attach(cursor.query()))
    assert cursor.query() == {"threads": "all", "after": "1", "epoch": "e1"}


def test_empty_session_is_continued_from_its_beginning() -> None:
    """Without that, a reconnect would ask for the last page and might skip the first messages."""
    session, cursor = ModelSession(), Cursor()
    feed(cursor, session.attach({}))
    assert cursor.query()["after"] == "0"


def test_sentence_goes_on_after_a_new_connection_without_a_repeated_word() -> None:
    session, cursor = ModelSession(), Cursor()
    shown = feed(cursor, session.attach({}))
    shown += feed(cursor, session.begin_message() + session.begin_block() + session.say("one two "))
    session.say("three ")  # while nobody is connected
    shown += feed(cursor, session.attach(cursor.query()))
    shown += feed(cursor, session.say("four"))
    shown += feed(cursor, session.finish())
    assert text_of(shown) == "|one two three four"


def test_sentence_finished_while_away_is_completed_from_the_stored_message() -> None:
    session, cursor = ModelSession(), Cursor()
    shown = feed(cursor, session.attach({}))
    shown += feed(cursor, session.begin_message() + session.begin_block() + session.say("one "))
    session.say("two")
    session.finish()
    shown += feed(cursor, session.attach(cursor.query()))
    assert text_of(shown) == "|one two"


def test_server_that_begins_the_block_again_is_silent_until_it_has_caught_up() -> None:
    """A restarted daemon reads the spool again from where the message began."""
    cursor = Cursor(after=0)
    session = ModelSession()
    shown = feed(cursor, session.attach(cursor.query()))
    shown += feed(cursor, session.begin_message() + session.begin_block() + session.say("abcdef"))
    behind = ModelSession()
    shown += feed(cursor, behind.attach(cursor.query()))
    again = behind.begin_message() + behind.begin_block()
    again += behind.say("abc") + behind.say("defg") + behind.say("h") + behind.finish()
    shown += feed(cursor, again)
    assert text_of(shown) == "|abcdefgh"


def test_other_text_in_the_place_of_a_lost_block_is_shown_whole() -> None:
    cursor, session = Cursor(after=0), ModelSession()
    shown = feed(cursor, session.attach(cursor.query()))
    shown += feed(cursor, session.begin_message() + session.begin_block() + session.say("abcdef"))
    retried = ModelSession()
    shown += feed(cursor, retried.attach(cursor.query()))
    again = retried.begin_message() + retried.begin_block()
    shown += feed(cursor, again + retried.say("abc") + retried.say("xyz") + retried.finish())
    assert text_of(shown) == "|abcdef|abcxyz"


def test_result_ends_what_was_half_written_so_that_the_next_block_is_new() -> None:
    cursor, session = Cursor(after=0), ModelSession()
    shown = feed(cursor, session.attach(cursor.query()))
    shown += feed(cursor, session.begin_message() + session.begin_block() + session.say("same"))
    shown += feed(cursor, session.store("result", {}))
    shown += feed(cursor, session.begin_message() + session.begin_block() + session.say("same"))
    assert text_of(shown) == "|same|same"


def test_delta_reset_then_snapshot_shows_only_what_was_lost() -> None:
    """The server drops deltas of a slow viewer, then sends the block so far."""
    cursor, session = Cursor(after=0), ModelSession()
    shown = feed(cursor, session.attach(cursor.query()))
    shown += feed(cursor, session.begin_message() + session.begin_block() + session.say("one "))
    session.say("two ")
    snapshot = session.attach(cursor.query())[1:2]
    shown += feed(cursor, [{"type": "delta_reset", "thread": "main"}, *snapshot])
    shown += feed(cursor, session.say("three"))
    assert text_of(shown) == "|one two three"


@given(st.data())
def test_any_cuts_of_any_conversation_show_every_word_and_message_once(data: st.DataObject) -> None:
    """Connections break anywhere; frames after the break are lost; the next one continues."""
    session, cursor = ModelSession(), Cursor(after=0)
    shown = feed(cursor, session.attach(cursor.query()))
    connected, expected, words = True, "", 0
    acts = data.draw(
        st.lists(st.sampled_from(["say", "finish", "store", "cut", "reset"]), max_size=40)
    )
    for act in acts:
        frames: list[Frame] = []
        if act == "say":
            if not session.open:
                frames += session.begin_message() + session.begin_block()
                expected += "|"
            words += 1
            frames += session.say(f"w{words} ")
            expected += f"w{words} "
        elif act == "finish" and session.open:
            frames += session.finish()
        elif act == "store":
            frames += session.store("system", {"subtype": "informational"})
        elif act == "cut":
            connected = False
        elif act == "reset" and connected:
            text = session.open[0] if session.open else None
            snapshot = session.attach({"after": str(len(session.messages))})[1:-1]
            frames += [{"type": "delta_reset", "thread": "main"}]
            frames += snapshot if text is not None else []
        if connected:
            shown += feed(cursor, frames)
        elif data.draw(st.booleans()):
            connected = True
            shown += feed(cursor, session.attach(cursor.query()))
    shown += feed(cursor, session.attach(cursor.query()))
    # A block that was opened and finished while away appears as a message: its bar is counted too.
    assert text_of(shown) == expected
    seqs = [event.message["seq"] for event in shown if isinstance(event, Stored)]
    assert seqs == list(range(1, len(session.messages) + 1))


def test_message_seen_before_is_dropped_and_a_missing_one_is_an_error() -> None:
    cursor, session = Cursor(after=0), ModelSession()
    first = session.store("system", {})
    assert len(feed(cursor, first + first)) == 1
    session.store("system", {})
    third = session.store("system", {})
    with pytest.raises(StreamGapError, match="message 3 came after message 1"):
        feed(cursor, third)
    assert cursor.after == 1


def test_resync_forgets_where_the_viewer_stood() -> None:
    cursor = Cursor(after=90, epoch="old")
    session = ModelSession()
    session.store("system", {})
    hello = {"type": "hello", "session": session.session(), "resync": True}
    assert cursor.receive(hello) == [Opened(session.session(), resync=True)]
    assert len(feed(cursor, session.attach({})[1:2])) == 1
    assert cursor.query() == {"threads": "all", "after": "1", "epoch": "e1"}


def test_block_grows_no_further_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursor_module, "MAX_BLOCK_CHARS", 10)
    cursor, session = Cursor(after=0), ModelSession()
    feed(cursor, session.attach(cursor.query()) + session.begin_message() + session.begin_block())
    shown = feed(cursor, session.say("0123456") + session.say("789abc") + session.say("def"))
    assert text_of(shown) == "|0123456789"
    shown += feed(cursor, session.finish())
    assert text_of(shown) == "|0123456789abcdef"


def test_no_more_blocks_are_followed_than_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursor_module, "MAX_BLOCKS", 2)
    cursor, session = Cursor(after=0), ModelSession()
    feed(cursor, session.attach(cursor.query()) + session.begin_message())
    for name in ("a", "b", "c"):
        shown = feed(cursor, session.begin_block() + session.say(name))
    assert shown == []


def test_sub_agents_text_is_left_to_its_messages() -> None:
    block = {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": "x"},
    }
    assert Cursor(after=0).receive(delta(block, thread="toolu_1")) == []


@pytest.mark.parametrize(
    ("frame", "event"),
    [
        ({"type": "live"}, Live()),
        ({"type": "session", "session": {"state": "idle"}}, Level({"state": "idle"})),
        ({"type": "status", "name": "api_retry", "body": {}}, Status("api_retry", {})),
        ({"type": "ok", "ref": "1"}, Answered({"type": "ok", "ref": "1"})),
    ],
)
def test_other_frames_become_their_events(frame: Frame, event: Event) -> None:
    assert Cursor().receive(frame) == [event]


@pytest.mark.parametrize(
    "event",
    [
        None,
        {"type": "content_block_delta", "index": 7, "delta": {"type": "text_delta", "text": "x"}},
        {"type": "content_block_delta", "index": 0, "delta": None},
        {"type": "content_block_start", "index": 0, "content_block": None},
        {"type": "content_block_start", "index": "0", "content_block": {"type": "text"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use"}},
        {"type": "ping"},
    ],
)
def test_delta_of_unknown_shape_shows_nothing_and_does_not_raise(event: Any) -> None:
    assert Cursor(after=0).receive(delta(event)) == []


def test_frame_of_a_type_added_later_is_ignored() -> None:
    assert Cursor().receive({"type": "weather", "sky": "blue"}) == []
