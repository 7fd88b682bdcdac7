"""The rules of search, without a database."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.errors import BadRequest
from holdoverd.search.words import (
    MAX_PARSED,
    MAX_TEXT,
    SNIPPET_CHARACTERS,
    Term,
    folded,
    snippet,
    terms_of,
    text_of,
)


def body(*content: Any, **fields: Any) -> str:
    return json.dumps({"type": "assistant", "message": {"content": list(content)}, **fields})


# --- what of a message is searched --------------------------------------------------------------


def test_what_a_person_reads_is_searched_in_order_and_nothing_else() -> None:
    line = body(
        {"type": "text", "text": "first"},
        {"type": "thinking", "thinking": "second", "signature": "c2lnbmF0dXJl"},
        {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": ["third", "4th"]}},
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "5"}]},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw"}},
        uuid="00000000", session_id="s", parent_tool_use_id="toolu_0",
        tool_use_result={"stdout": "said again"},
    )  # fmt: skip
    assert text_of("assistant", line) == "first\nsecond\nBash\nthird\n4th\n5"


def test_a_prompt_of_plain_text_is_searched() -> None:
    line = '{"type":"user","message":{"role":"user","content":"Where is it?"}}'
    assert text_of("user", line) == "Where is it?"


def test_a_result_says_nothing_twice_unless_it_is_an_error() -> None:
    result = {"type": "result", "subtype": "success", "is_error": False, "result": "Done."}
    assert text_of("result", json.dumps(result)) == ""
    assert text_of("result", json.dumps({**result, "is_error": True})) == "Done."
    errors = {"type": "result", "subtype": "error_max_turns", "errors": ["too many turns"]}
    assert text_of("result", json.dumps(errors)) == "too many turns"


def test_what_is_no_word_is_left_out() -> None:
    line = body({"text": "a"}, {"text": "QUJD" * 100}, {"text": "word " * 100})
    assert text_of("assistant", line) == "a\n" + "word " * 100


def test_a_message_is_searched_as_far_as_the_bound() -> None:
    line = body(*({"text": f"{number:05} " + "w " * 1000} for number in range(100)))
    text = text_of("assistant", line)
    assert len(text) <= MAX_TEXT + 100
    assert "00007" in text
    assert "00020" not in text


@pytest.mark.parametrize("cut", [False, True])
def test_a_very_long_body_is_skimmed(cut: bool) -> None:
    line = body({"type": "text", "text": 'the "answer" is\nhere ' + "x" * MAX_PARSED})
    text = text_of("assistant", line[:4096] if cut else line)
    assert text.startswith('the "answer" is\nhere x')
    assert "content" not in text
    assert len(text) < 4096


def test_what_no_database_could_store_is_replaced() -> None:
    line = '{"text":"a\\u0000b \\ud800 c"}'
    text = text_of("system", line)
    text.encode()
    assert "\0" not in text


@given(st.text(max_size=300))
def test_anything_at_all_can_be_asked_for_the_words_of(text: str) -> None:
    for kind in ("assistant", "result"):
        text_of(kind, text).encode()


@given(st.recursive(st.none() | st.booleans() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)))  # fmt: skip
def test_any_json_has_words_that_can_be_stored(value: Any) -> None:
    for kind in ("user", "result"):
        found = text_of(kind, json.dumps(value))
        found.encode()
        assert "\0" not in found


# --- what somebody typed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("hello", [Term("hello", ("hello",))]),
        ("Hello  WÖRLD", [Term("Hello", ("hello",)), Term("WÖRLD", ("world",))]),
        ('"hello world" x', [Term("hello world", ("hello", "world")), Term("x", ("x",))]),
        ('"not closed', [Term("not closed", ("not", "closed"))]),
        ("foo_bar.py", [Term("foo_bar.py", ("foo", "bar", "py"))]),
        ("hand*", [Term("hand", ("hand",), prefix=True)]),
        ("ha*", [Term("ha", ("ha",))]),  # too short for a beginning
        ('"hand*"', [Term("hand", ("hand",))]),
        ("AND (", [Term("AND", ("and",))]),
        ("NEAR(a, b)", [Term("NEAR(a,", ("near", "a")), Term("b)", ("b",))]),
        ("words:x^2", [Term("words:x^2", ("words", "x", "2"))]),
        ("한국어", [Term("한국어", ("한국어",))]),
    ],
)
def test_a_query_is_words_and_phrases(query: str, terms: list[Term]) -> None:
    assert terms_of(query) == terms


@pytest.mark.parametrize("query", ["", "   ", '"', '""', "( ) * -", "___", "\0"])
def test_a_query_without_a_word_is_refused(query: str) -> None:
    with pytest.raises(BadRequest, match="no word"):
        terms_of(query)


def test_a_query_of_too_many_words_is_refused() -> None:
    assert len(terms_of("a " * 16)) == 16
    for query in ("a " * 17, "a_" * 17, '"' + "a " * 17 + '"'):
        with pytest.raises(BadRequest, match="more than 16 words"):
            terms_of(query)


@given(st.text(max_size=100))
def test_any_query_is_understood_or_refused(query: str) -> None:
    try:
        terms = terms_of(query)
    except BadRequest:
        return
    for term in terms:
        assert term.words
        assert all(word.isalnum() for word in term.words)


@given(st.text(max_size=100))
def test_folding_again_changes_nothing(text: str) -> None:
    once = folded(text)
    assert folded(once).split() == once.split()


# --- what is shown of a hit ---------------------------------------------------------------------


def test_a_short_text_is_shown_whole_on_one_line() -> None:
    assert snippet("one\n  two\tthree", terms_of("two")) == "one two three"


def test_a_long_text_is_shown_around_the_first_word_found() -> None:
    text = "before " * 100 + "needle in it " + "after " * 100
    shown = snippet(text, terms_of("missing Needle"))
    assert shown.startswith("…before")
    assert "before needle in it after" in shown
    assert shown.endswith("after…")
    assert len(shown) <= SNIPPET_CHARACTERS + 2


def test_a_word_is_not_found_inside_another() -> None:
    text = "artist " * 100 + "art"
    assert snippet(text, terms_of("art")).endswith("artist art")


def test_a_phrase_is_found_however_its_words_are_kept_apart() -> None:
    text = "filler " * 100 + "foo_bar.py is it"
    assert "foo_bar.py is it" in snippet(text, terms_of('"foo bar py"'))


def test_a_word_that_accents_hide_shows_the_beginning() -> None:
    assert snippet("x " * 500 + "Zürich", terms_of("zurich")).startswith("x x")


def test_nothing_in_a_snippet_moves_a_terminal_or_turns_text_around() -> None:
    shown = snippet("a \x1b[31mred\x07 \u202eturned\u200b \x9b2J", terms_of("red"))
    assert shown == "a [31mred turned 2J"


@given(st.text(max_size=2000), st.sampled_from(["a", "b c", "ab*"]))
def test_any_snippet_is_one_bounded_plain_line(text: str, query: str) -> None:
    shown = snippet(text, terms_of(query))
    assert shown.isprintable()
    assert len(shown) <= SNIPPET_CHARACTERS + 2
