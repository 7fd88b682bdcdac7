"""What people see: readable, and nothing of an agent's that could command their terminal."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdover.cursor import Event, Live, Opened, Status, Stored, Text
from holdover.render import Style, Transcript, moment, one_line, sanitise, table, tool_line


def show(*events: Event, own: frozenset[str] = frozenset()) -> str:
    transcript = Transcript(Style(colour=False), own)
    return "".join(transcript.render(event) for event in events) + transcript.close_line()


def stored(kind: str, body: dict[str, Any], **more: Any) -> Stored:
    return Stored({"seq": 1, "thread": "main", "kind": kind, "body": body, **more})


def said(*content: dict[str, Any]) -> dict[str, Any]:
    return {"message": {"content": list(content)}}


@given(st.text())
def test_no_control_character_survives_but_tab_and_newline(text: str) -> None:
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e\u2066]", sanitise(text))
    sanitise(text).encode()  # a lone surrogate could not be


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=0x7E)))
def test_plain_text_is_left_alone(text: str) -> None:
    assert sanitise(text) == text


def test_escape_sequences_become_visible() -> None:
    assert sanitise("\x1b]0;owned\x07\x9b31m") == "\\x1b]0;owned\\x07\\x9b31m"
    assert sanitise("a\r\nb\rc") == "a\nb\\x0dc"
    assert sanitise("safe \u202e.exe") == "safe \\u202e.exe"


@given(st.text(), st.integers(1, 50))
def test_one_line_is_one_line_of_its_width(text: str, width: int) -> None:
    shown = one_line(text, width)
    assert len(shown) <= width
    assert "\n" not in shown


def test_every_place_an_agent_writes_to_is_sanitised() -> None:
    bad = "\x1b[2J"
    events: list[Event] = [
        Text("text", bad, fresh=True),
        Text("thinking", bad, fresh=True),
        stored("user", said({"type": "text", "text": bad})),
        stored("user", said({"type": "tool_result", "content": [{"type": "text", "text": bad}]})),
        stored(
            "assistant", said({"type": "text", "text": bad}, {"type": "thinking", "thinking": bad})
        ),
        stored("assistant", said({"type": "tool_use", "name": bad, "input": {bad: bad}})),
        stored("assistant", said({"type": "text", "text": bad}), thread=bad),
        stored("result", {"subtype": bad, "is_error": True, "result": bad}),
        stored("permission", {"request": {"tool_name": bad, "input": {bad: bad}}}, request_id=bad),
        stored("answer", {"outcome": bad, "answered_by": bad, "message": bad}, request_id=bad),
        stored("notice", {"code": "x", "text": bad}),
        stored("system", {"subtype": bad, "content": bad}),
        Status("api_retry", {"attempt": bad, "max_retries": bad}),
    ]
    for event in events:
        assert "\x1b" not in show(event), event
        assert show(event), event


def test_text_that_was_shown_live_is_only_finished_by_its_message() -> None:
    whole = said({"type": "text", "text": "one two"})
    live = Text("text", "one ", fresh=True)
    finish = Stored({"thread": "main", "kind": "assistant", "body": whole}, {0: 4})
    assert show(live, finish) == "one two\n"


def test_conversation_reads_like_one() -> None:
    assert (
        show(
            stored("user", said({"type": "text", "text": "fix it\nplease"})),
            Text("thinking", "Hmm.", fresh=True),
            Text("text", "Let me ", fresh=True),
            Text("text", "see.", fresh=False),
            stored(
                "assistant", said({"type": "tool_use", "name": "Bash", "input": {"command": "ls"}})
            ),
            stored("user", said({"type": "tool_result", "content": "a\nb\nc\nd\ne\nf\ng\n"})),
            stored("assistant", said({"type": "text", "text": "Done."}), thread="toolu_1"),
            stored("result", {"subtype": "success", "duration_ms": 1500, "total_cost_usd": 0.25}),
        )
        == """\
› fix it
  please
~ Hmm.
Let me see.
● Bash(command="ls")
  ⎿ a
    b
    c
    d
    e
    … 2 more lines
[toolu_1] Done.
— done, 1.5 s, $0.2500 so far
"""
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"subtype": "success", "terminal_reason": "completed"}, "done"),
        ({"terminal_reason": "aborted_streaming", "is_error": True}, "interrupted"),
        (
            {"subtype": "error_max_turns", "errors": ["too many", "turns"]},
            "failed (error_max_turns), too many; turns",
        ),
        ({"subtype": "success", "is_error": True, "result": "No."}, "failed (success), No."),
    ],
)
def test_the_end_of_a_turn_is_said_in_words(body: dict[str, Any], said: str) -> None:
    assert show(stored("result", body)) == f"— {said}\n"


def test_permission_answer_and_notice_name_the_request() -> None:
    shown = show(
        stored(
            "permission",
            {"request": {"tool_name": "Bash", "input": {"command": "rm x"}}},
            request_id="p_1",
        ),
        stored(
            "answer", {"outcome": "deny", "answered_by": "me", "message": "no"}, request_id="p_1"
        ),
        stored("notice", {"code": "agent_exited", "text": "The agent exited with status 1."}),
    )
    assert shown == (
        '? p_1 May it? Bash(command="rm x")\n= p_1 denied by me: no\n! The agent exited with status 1.\n'
    )


def test_own_prompt_that_stands_on_the_screen_is_not_repeated() -> None:
    prompt = stored("user", said({"type": "text", "text": "hi"}), client_id="u1")
    assert show(prompt, own=frozenset({"u1"})) == ""
    assert show(prompt) == "› hi\n"


def test_cut_body_says_how_to_get_it_whole() -> None:
    shown = show(stored("user", {"truncated": True, "size": 300_000, "preview": "…"}))
    assert (
        shown == "(user message 1 of 300000 bytes; whole with `holdover session log ID --seq 1`)\n"
    )


def test_restored_log_is_announced_and_quiet_events_are_quiet() -> None:
    assert "restored from a backup" in show(Opened({}, resync=True))
    assert show(Opened({}, resync=False), Live(), Status("thinking_tokens", {})) == ""


@pytest.mark.parametrize(
    "body", [None, "text", {}, {"message": None}, {"message": {"content": [1]}}]
)
@pytest.mark.parametrize(
    "kind", ["user", "assistant", "result", "permission", "answer", "system", "later"]
)
def test_message_of_unknown_shape_does_not_raise(kind: str, body: Any) -> None:
    assert isinstance(show(stored(kind, body)), str)


def test_table_aligns_all_columns_but_the_last() -> None:
    assert (
        table(["ID", "T"], [["a", "long text"], ["bcd", "x"]]) == "ID   T\na    long text\nbcd  x"
    )


def test_moment_and_tool_line_survive_what_is_not_there() -> None:
    assert moment(None) == "-"
    assert moment(9_007_201_050_631_927_942) == "after 9999"
    assert tool_line("Read", None) == "Read()"


def test_colours_only_where_they_are_wanted() -> None:
    assert Style(colour=True).bold("x") == "\x1b[1mx\x1b[0m"
    assert Style(colour=False).bold("x") == "x"
