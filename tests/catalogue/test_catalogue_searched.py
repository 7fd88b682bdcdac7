"""The index of search: in the messages' transaction, bounded, for those who may see, without a trace."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from sqlalchemy import Connection, text

from holdoverd.catalogue import schema, searched, sessions
from holdoverd.catalogue.records import Change, MessageRow
from holdoverd.catalogue.searched import Hit
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import Internal, NotFound
from holdoverd.search import fill
from holdoverd.search.words import terms_of
from tests.catalogue.examples import (
    SESSION,
    a_session,
    main_thread,
    message,
    on_sqlite,
    session_id,
)


def saying(seq: int, words: str, **changed: object) -> MessageRow:
    body = json.dumps({"type": "assistant", "message": {"content": [{"text": words}]}})
    return message(seq, body=body, **changed)


def opened(cx: Connection, name: str = SESSION, **changed: object) -> None:
    sessions.create_session(cx, a_session(id=name, **changed), Change(threads=[main_thread()]))


def say(cx: Connection, words: Sequence[str], first: int = 1, name: str = SESSION) -> None:
    rows = [saying(seq, each) for seq, each in enumerate(words, first)]
    sessions.apply_change(cx, name, 1, Change(messages=rows))


def found(cx: Connection, query: str, owner: str | None = "default", **more: object) -> list[int]:
    hits, _ = searched.search(cx, terms_of(query), owner=owner, **more)  # type: ignore[arg-type]
    return [hit.seq for hit in hits]


def count(cx: Connection) -> int:
    return int(cx.execute(text("SELECT count(*) FROM searched")).scalar_one())


def caught_up(cx: Connection) -> None:
    while (name := searched.session_behind(cx)) is not None:
        searched.fill_slice(cx, name)


# --- finding ------------------------------------------------------------------------------------


def test_a_stored_message_is_found_with_all_that_a_hit_tells(cx: Connection) -> None:
    opened(cx)
    rows = [saying(1, "nothing"), saying(2, "Hello Wörld", n=101, thread="toolu_1", at=77)]
    threads = [sessions.ThreadRow("toolu_1", "main", None, 101, "open")]
    sessions.apply_change(cx, SESSION, 1, Change(messages=rows, threads=threads))
    hits, following = searched.search(cx, terms_of("world"), owner="default")
    assert hits == [Hit(SESSION, 2, "toolu_1", 1, "Hello Wörld", 77)]
    assert following is None


@pytest.mark.parametrize(
    ("query", "seqs"),
    [
        ("apple", [3, 1]),
        ("APPLE pear", [1]),
        ('"apple pear"', [1]),
        ('"pear apple"', []),
        ("foo_bar.py", [2]),
        ("bar", [2]),
        ("app*", [3, 1]),
        ("app", []),
        ("apple*", [3, 1]),
        ("jalapeno", [3]),
        ("straße", [2]),
        ("한국어", [2]),
    ],
)
def test_words_phrases_and_beginnings(cx: Connection, query: str, seqs: list[int]) -> None:
    opened(cx)
    say(cx, ["Apple, pear", "see src/foo_bar.py:12 Straße 한국어", "an apple; jalapeño"])
    assert found(cx, query) == seqs


HOSTILE = [
    "AND (", "NOT", "OR OR", '"', "a\"b'c", "'; DROP TABLE searched; --", "words:x", "scope : x",
    "^a", "a NEAR/3 b", "{words scope} : a", "-a", "a & b | !c", "a:*", "<->", "a <-> b", "\\", "%",
    "*", "a" * 500, "é" * 500, "\x01\x1b", "\ud7ff\ue000", "x" + "\u0301" * 200, "🙂 a", "٣ a",
]  # fmt: skip


@pytest.mark.parametrize("query", HOSTILE)
def test_a_hostile_query_gets_an_answer(cx: Connection, query: str) -> None:
    opened(cx)
    say(cx, ["a b c x and or not near"])
    for session in (None, SESSION):
        try:
            terms = terms_of(query)
        except Exception as error:
            assert "no word" in str(error)  # noqa: PT017
            continue
        searched.search(cx, terms, owner="default", session=session)


def test_pages_come_latest_first_and_end(cx: Connection) -> None:
    opened(cx)
    say(cx, [f"word {number}" for number in range(10)])
    seqs: list[int] = []
    cursor = None
    for _ in range(4):
        hits, cursor = searched.search(
            cx, terms_of("word"), owner="default", limit=3, cursor=cursor
        )
        seqs += [hit.seq for hit in hits]
    assert seqs == list(range(10, 0, -1))
    assert cursor is None


# --- for those who may see ----------------------------------------------------------------------


def test_own_and_shared_sessions_are_searched_and_nothing_else(cx: Connection) -> None:
    for number, (owner, share) in enumerate(
        [("alice", None), ("bob", None), ("bob", "read"), ("carol", "write")], 1
    ):
        opened(cx, session_id(number), owner=owner, share=share)
        say(cx, ["secret"] * number, name=session_id(number))

    def sessions_for(owner: str | None) -> list[str]:
        hits, _ = searched.search(cx, terms_of("secret"), owner=owner)
        return sorted({hit.session for hit in hits})

    assert sessions_for("alice") == [session_id(1), session_id(3), session_id(4)]
    assert sessions_for("bob") == [session_id(2), session_id(3), session_id(4)]
    assert sessions_for("nobody") == [session_id(3), session_id(4)]
    assert sessions_for(None) == [session_id(number) for number in (1, 2, 3, 4)]
    sessions.apply_change(cx, session_id(3), 1, Change(session={"share": None}))
    assert sessions_for("alice") == [session_id(1), session_id(4)]


def test_a_session_that_may_not_be_seen_is_not_there(cx: Connection) -> None:
    opened(cx, owner="bob")
    say(cx, ["secret"])
    assert found(cx, "secret", "bob", session=SESSION) == [1]
    assert found(cx, "secret", None, session=SESSION) == [1]
    for owner, name in (("alice", SESSION), ("bob", "s_none"), (None, "s_none")):
        with pytest.raises(NotFound):
            found(cx, "secret", owner, session=name)
    sessions.apply_change(cx, SESSION, 1, Change(session={"share": "read"}))
    assert found(cx, "secret", "alice", session=SESSION) == [1]


def test_many_shared_sessions_can_be_searched_at_once(cx: Connection) -> None:
    for number in range(searched.MAX_SHARED + 20):
        opened(cx, session_id(number), owner="bob", share="read", updated_at=number)
    say(cx, ["needle"], name=session_id(searched.MAX_SHARED + 19))
    assert found(cx, "needle", "alice") == [1]


# --- storing ------------------------------------------------------------------------------------


async def test_the_index_is_of_what_was_stored_and_of_nothing_else(catalogue: Catalogue) -> None:
    def fails(cx: Connection) -> None:
        say(cx, ["never"])
        raise Internal("undone")

    await catalogue.write(opened)
    with pytest.raises(Internal):
        await catalogue.write(fails)
    assert await catalogue.read(lambda cx: found(cx, "never")) == []
    await catalogue.write(lambda cx: say(cx, ["stored"]))
    assert await catalogue.read(lambda cx: found(cx, "stored")) == [1]


def test_a_burst_is_indexed_later_and_what_follows_it_waits(cx: Connection) -> None:
    opened(cx)
    burst = searched.AT_ONCE + 1
    say(cx, ["burst"] * burst)
    say(cx, ["after"], burst + 1)
    assert (found(cx, "burst"), found(cx, "after")) == ([], [])
    assert searched.session_behind(cx) == SESSION
    assert not searched.fill_slice(cx, SESSION, burst - 1)
    assert len(found(cx, "burst")) == burst - 1
    say(cx, ["again"], burst + 2)  # still behind
    assert found(cx, "again") == []
    caught_up(cx)
    assert found(cx, "burst after again") == []
    assert found(cx, "burst")[0] == burst
    assert (found(cx, "after"), found(cx, "again")) == ([burst + 1], [burst + 2])
    say(cx, ["live"], burst + 3)
    assert found(cx, "live") == [burst + 3]
    assert count(cx) == burst + 3


async def test_what_an_older_release_stored_is_indexed_without_anybody_waiting(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(searched, "add", lambda *_: None)
        for number in (1, 2):
            name = session_id(number)
            await catalogue.write(lambda cx, n=name: opened(cx, n))
            for first in range(1, 400, 50):
                await catalogue.write(lambda cx, n=name, f=first: say(cx, ["old"] * 50, f, n))
    monkeypatch.setattr(fill, "PAUSES", 0)
    await fill.fill(catalogue)
    assert len(await catalogue.read(lambda cx: found(cx, "old", limit=900))) == 800
    assert await catalogue.read(count) == 800


def test_a_message_without_words_costs_no_row(cx: Connection) -> None:
    opened(cx)
    sessions.apply_change(cx, SESSION, 1, Change(messages=[message(1, body='{"type":"system"}')]))
    assert count(cx) == 0
    assert searched.session_behind(cx) is None


def test_a_truncated_body_is_found_by_its_beginning(cx: Connection) -> None:
    opened(cx)
    say(cx, ["first words " + "x" * 400_000])
    say(cx, ["burst"] * (searched.AT_ONCE + 1), 2)
    say(cx, ["later words " + "x" * 400_000], searched.AT_ONCE + 3)
    caught_up(cx)
    assert found(cx, "first") == [1]
    assert found(cx, "later") == [searched.AT_ONCE + 3]


# --- removing -----------------------------------------------------------------------------------


def test_a_purged_session_is_found_no_more_and_leaves_nothing(cx: Connection) -> None:
    opened(cx)
    opened(cx, session_id(2))
    for first in range(1, 600, 10):
        say(cx, ["gone forever"] * 10, first)
    say(cx, ["gone too"], name=session_id(2))
    sessions.purge_session(cx, SESSION, 1)
    hits, _ = searched.search(cx, terms_of("gone"), owner=None)
    assert [hit.session for hit in hits] == [session_id(2)]
    slices = 0
    while not sessions.purge_slice(cx, SESSION):
        slices += 1
    assert slices >= 600 // searched.PURGED_AT_ONCE
    assert count(cx) == 1
    if cx.dialect.name == "sqlite":  # and its words are out of the index as well
        cx.exec_driver_sql("CREATE VIRTUAL TABLE temp.terms USING fts5vocab(main, searched, row)")
        terms = set(cx.exec_driver_sql("SELECT term FROM terms").scalars())
        assert "gone" in terms
        assert "forever" not in terms


async def test_what_an_older_release_purged_is_swept(catalogue: Catalogue) -> None:
    def older(cx: Connection) -> None:
        for table in ("messages", "threads"):
            cx.execute(text(f"DELETE FROM {table} WHERE session = '{SESSION}'"))
        cx.execute(text(f"DELETE FROM sessions WHERE id = '{SESSION}'"))

    for number in (1, 2):
        await catalogue.write(lambda cx, n=number: opened(cx, session_id(n)))
        await catalogue.write(lambda cx, n=number: say(cx, ["word"] * 5, name=session_id(n)))
    await catalogue.write(older)
    assert await catalogue.read(lambda cx: len(found(cx, "word", None))) == 5
    assert await catalogue.read(count) == 10
    await fill.sweep(catalogue)
    assert await catalogue.read(count) == 5


@on_sqlite
def test_orphans_are_looked_for_slice_by_slice(cx: Connection) -> None:
    for name in ("s_one", "s_two"):
        opened(cx, name)
        say(cx, ["a word", "a word"], name=name)
    cx.execute(text("UPDATE searched SET session = 's_gone' WHERE session = 's_two' AND seq = 2"))
    slices = []
    after: int | None = 0
    while after is not None:
        orphans, after = searched.orphans(cx, after, size=2)
        slices.append(orphans)
    assert slices == [[], ["s_gone"], []]


@on_sqlite
def test_the_index_is_whole_after_all_of_it(cx: Connection) -> None:
    """FTS5's own check of itself."""
    opened(cx)
    for first in range(1, 100, 10):
        say(cx, ["some words", "Größe"] * 5, first)
    searched.remove_slice(cx, SESSION, 50)
    cx.execute(text("INSERT INTO searched (searched) VALUES ('integrity-check')"))
    assert count(cx) == 50
    assert schema.VERSION >= 5
