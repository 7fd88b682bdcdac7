"""What a prompt tells the demo agent to do."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.demo.script import HELP, MAX_BYTES, MAX_COUNT, MAX_DEPTH, MAX_QUESTIONS, Step, parse


def shape(prompt: str) -> list[dict[str, Any]]:
    return [
        {name: value for name in Step.__slots__ if (value := getattr(step, name))}
        for step in parse(prompt)
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("say hello there", {"text": "hello there"}),
        ("think hm", {"text": "hm"}),
        ("stream 10", {"n": 10}),
        ("stream 10 rate 2.5", {"n": 10, "rate": 2.5}),
        ("lines 3", {"n": 3}),
        ("lines 3 rate 20 size 1024", {"n": 3, "rate": 20.0, "size": 1024}),
        ("lines 3 size 1024", {"n": 3, "size": 1024}),
        ("history 100", {"n": 100}),
        (f"huge {MAX_BYTES}", {"n": MAX_BYTES}),
        ('tool Bash {"command": "ls"}', {"name": "Bash", "text": '{"command": "ls"}'}),
        (f"ask {MAX_QUESTIONS}", {"n": MAX_QUESTIONS}),
        ("withdraw 2", {"n": 2}),
        ("withdraw 2 after 1.5", {"n": 2, "seconds": 1.5}),
        ("ask-question", {}),
        ("plan", {}),
        ("agent 3", {"n": 3}),
        ("agent 3 lines 5", {"n": 3, "size": 5}),
        ("agent-ask 2 3", {"n": 2, "size": 3}),
        ("wait 0.5", {"seconds": 0.5}),
        ("sha", {}),
        ("pid", {}),
        ("stderr oops", {"text": "oops"}),
        ("noise oops", {"text": "oops"}),
        ('raw {"type":"x"}', {"text": '{"type":"x"}'}),
        ('cut {"ty', {"text": '{"ty'}),
        ("crash exit 3", {"n": 3}),
        ("crash signal KILL", {"name": "KILL"}),
        ("help", {}),
    ],
)
def test_directives_are_read(line: str, expected: dict[str, Any]) -> None:
    verb = " ".join(line.split(" ")[: 2 if line.startswith("crash") else 1])
    assert shape(line) == [{"verb": verb, **expected}]
    assert shape(line + "\r") == [{"verb": verb, **expected}]
    assert verb in HELP


@pytest.mark.parametrize(
    "line",
    [
        "say", "stream", "stream ten", "stream 10 rate", "stream 10 rate 0", "stream 10 rate 99999",
        f"lines {MAX_COUNT + 1}", f"lines 1 size {MAX_BYTES + 1}", "lines 1 size 1 rate 1",
        f"huge {MAX_BYTES + 1}", "tool Bash ls", "ask", f"ask {MAX_QUESTIONS + 1}",
        f"agent {MAX_DEPTH + 1}", "agent-ask 2", "wait long", "wait 99999", "sha x",
        "crash", "crash exit", "crash exit 256", "crash signal CHLD", "crash softly", "helpme",
        "Say hello", "please say hello", "stream -5", "agent 2 lines 9999999",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_directive_is_text(line: str) -> None:
    assert shape(line) == [{"verb": "text", "text": line}]


def test_neighbouring_text_lines_are_one_text() -> None:
    assert shape("one\n\ntwo\nsay x\n\nthree\n") == [
        {"verb": "text", "text": "one\n\ntwo"},
        {"verb": "say", "text": "x"},
        {"verb": "text", "text": "three"},
    ]


def test_an_empty_prompt_is_still_answered() -> None:
    assert shape("") == shape(" \n ") == [{"verb": "text"}]


def test_sha_takes_the_rest_to_the_last_byte() -> None:
    assert shape("say a\nsha\nsay b\n\n x \n") == [
        {"verb": "say", "text": "a"},
        {"verb": "sha", "text": "say b\n\n x \n"},
    ]
    assert shape("sha") == [{"verb": "sha"}]


@given(st.text())
def test_any_prompt_is_understood_somehow(prompt: str) -> None:
    steps = parse(prompt)
    assert steps
    assert all(step.verb == "text" or step.verb in HELP for step in steps)
