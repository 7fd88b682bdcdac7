"""Messages: pages, the log, limits, and text that comes back byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs
from sqlalchemy import Connection, create_engine, select

from holdoverd.catalogue import messages as table
from holdoverd.catalogue import schema, sessions
from holdoverd.catalogue.records import Change, MessageRow, ThreadRow
from tests.catalogue.examples import SESSION, a_session, main_thread, message, messages

SUB = "toolu_1"


def store(cx: Connection, rows: list[MessageRow]) -> None:
    threads = [main_thread(), ThreadRow(SUB, "main", None, 0, "open")]
    sessions.create_session(cx, a_session(), Change(threads=threads, messages=rows))


def as_given(stored: list[table.StoredMessage]) -> list[MessageRow]:
    """The rows that they were stored from."""
    return [MessageRow(*(getattr(row, n) for n in MessageRow.__struct_fields__)) for row in stored]


def two_threads(main: int, sub: int) -> list[MessageRow]:
    """`main` messages of main with `sub` of a sub-agent after the first of them."""
    rows = [message(1)]
    rows += [message(1 + n, n, thread=SUB) for n in range(1, sub + 1)]
    rows += [message(sub + n, n) for n in range(2, main + 1)]
    return rows


@pytest.mark.parametrize("count", [1, 15, 16, 17, 255, 256, 257, 16 * 17 + 256 + 15])
def test_a_burst_of_any_size_is_stored_whole_and_in_order(cx: Connection, count: int) -> None:
    """Rows go many to a statement, in groups of fixed sizes: on each side of the borders."""
    rows = [message(n, at=2_000, body=f'{{"number":{n}}}') for n in range(1, count + 1)]
    store(cx, rows)
    assert as_given(table.log_after(cx, SESSION, 0, 1000)) == rows


def test_what_only_some_rows_of_a_burst_have_stays_with_these(cx: Connection) -> None:
    """Values that all rows of a statement have are bound once: the rows at each change of one."""
    odd: dict[int, dict[str, object]] = {
        1: {"request_id": "p_1", "kind": "permission"},
        20: {"client_id": "c20", "uuid": "c20", "kind": "user"},
        21: {"client_id": "c21", "uuid": "c21", "kind": "user"},
        22: {"at": 1_999},
        40: {"at": 2_001, "thread": SUB, "n": 1},
        41: {"uuid": None},
        60: {"body": f'{{"large":"{"x" * 300_000}"}}'},
    }
    rows = [message(n, at=2_000) for n in range(1, 100)]
    rows = [structs.replace(row, **odd.get(row.seq, {})) for row in rows]
    store(cx, rows)
    stored = table.log_after(cx, SESSION, 0, 1000)
    assert [row.seq for row in stored if row.truncated] == [60]
    for row in stored:
        row.body = table.body(cx, SESSION, row.seq) or ""
    assert as_given(stored) == rows


# --- pages ---


@pytest.mark.parametrize(
    ("count", "page", "first", "last"),
    [
        (250, 0, 1, 100),
        (250, 1, 101, 200),
        (250, 2, 201, 250),
        (200, 1, 101, 200),
        (1, 0, 1, 1),
    ],
)
def test_a_page_is_a_hundred_of_its_thread(
    cx: Connection, count: int, page: int, first: int, last: int
) -> None:
    store(cx, two_threads(count, 30))
    found = table.page(cx, SESSION, "main", page)
    assert [row.n for row in found] == list(range(first, last + 1))
    assert {row.thread for row in found} == {"main"}


@pytest.mark.parametrize(("thread", "page"), [("main", 1), ("main", 10**9), ("none", 0), (SUB, 0)])
def test_a_page_that_does_not_exist_is_empty(cx: Connection, thread: str, page: int) -> None:
    store(cx, messages(1, 100))
    assert table.page(cx, SESSION, thread, page) == []


@pytest.mark.parametrize(
    ("main", "opening_n"),
    [(1, 1), (99, 1), (100, 1), (101, 1), (200, 1), (201, 101), (300, 101), (301, 201)],
)
def test_the_last_two_pages_open_where_they_do(cx: Connection, main: int, opening_n: int) -> None:
    store(cx, two_threads(main, 7))
    seq = table.seq_opening_last_pages(cx, SESSION)
    assert table.log_after(cx, SESSION, seq - 1, 1)[0].n == opening_n
    assert seq == (1 if opening_n == 1 else opening_n + 7)


def test_a_session_without_messages_opens_at_the_first_to_come(cx: Connection) -> None:
    store(cx, [])
    assert table.seq_opening_last_pages(cx, SESSION) == 1


# --- the log ---


def test_the_log_goes_on_after_a_seq_in_all_threads(cx: Connection) -> None:
    rows = two_threads(5, 3)
    store(cx, rows)
    for after in range(len(rows) + 2):
        found = table.log_after(cx, SESSION, after, 100)
        assert [row.seq for row in found] == list(range(after + 1, len(rows) + 1))
    assert [row.seq for row in table.log_after(cx, SESSION, 2, 3)] == [3, 4, 5]


def test_a_thread_goes_on_after_an_n(cx: Connection) -> None:
    store(cx, two_threads(5, 3))
    found = table.thread_after(cx, SESSION, "main", 2, 100)
    assert [(row.n, row.seq) for row in found] == [(3, 6), (4, 7), (5, 8)]
    assert [row.n for row in table.thread_after(cx, SESSION, "main", 0, 2)] == [1, 2]
    until = table.thread_after(cx, SESSION, "main", 0, 100, up_to_seq=6)
    assert [row.n for row in until] == [1, 2, 3]
    assert table.thread_after(cx, SESSION, SUB, 3, 100) == []


def test_how_far_a_thread_had_come(cx: Connection) -> None:
    store(cx, two_threads(3, 3))  # seq: 1 main, 2-4 sub, 5 6 main
    assert [table.thread_n_at(cx, SESSION, "main", seq) for seq in range(8)] == [
        0, 1, 1, 1, 1, 2, 3, 3,
    ]  # fmt: skip
    assert [table.thread_n_at(cx, SESSION, SUB, seq) for seq in range(6)] == [0, 0, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("budget", "count"), [(0, 1), (99, 1), (100, 1), (199, 1), (200, 2), (4000, 40), (10**9, 50)]
)
def test_a_budget_of_bytes_ends_the_log_but_never_before_one(
    cx: Connection, budget: int, count: int
) -> None:
    store(cx, [message(seq, body="é" * 50) for seq in range(1, 51)])
    assert len(table.log_after(cx, SESSION, 0, 100, budget)) == count
    assert len(table.thread_after(cx, SESSION, "main", 0, 100, max_bytes=budget)) == count


def test_recent_uuids_are_the_latest_first(cx: Connection) -> None:
    store(cx, [message(1), message(2, uuid=None), message(3), message(4)])
    assert table.recent_uuids(cx, SESSION, 3) == ["u4", "u3"]
    assert table.recent_uuids(cx, SESSION, 100) == ["u4", "u3", "u1"]
    assert table.recent_uuids(cx, "s_other", 100) == []


# --- text ---

# Of the migrations, since the metadata knows nothing of it: a body may hold words to be indexed.
SEARCHED = (
    "CREATE VIRTUAL TABLE searched USING fts5(scope, words, session UNINDEXED, seq UNINDEXED)"
)


@settings(max_examples=60, deadline=None)
@given(
    bodies=st.lists(st.text(st.characters(codec="utf-8"), max_size=60), min_size=1, max_size=10),
    name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
)
@example(bodies=['" '], name="0")
def test_any_text_comes_back_byte_for_byte(bodies: list[str], name: str) -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as cx:
        schema.metadata.create_all(cx)
        cx.exec_driver_sql(SEARCHED)
        rows = [
            message(seq, body=body, uuid=name, client_id=name, request_id=name, thread=name)
            for seq, body in enumerate(bodies, start=1)
        ]
        threads = [ThreadRow(name, None, name, 0, "open")]
        sessions.create_session(cx, a_session(), Change(threads=threads, messages=rows))
        found = table.log_after(cx, SESSION, 0, 100)
        whole = [table.body(cx, SESSION, row.seq) for row in rows]
        sizes = cx.execute(select(schema.messages.c.size)).scalars().all()
    engine.dispose()
    assert [row.body for row in found] == bodies
    assert whole == bodies
    assert sizes == [len(body.encode()) for body in bodies]
    assert (found[0].uuid, found[0].client_id, found[0].request_id, found[0].thread) == (name,) * 4


@pytest.mark.parametrize("character", ["x", "é", "€", "𝄞", "\x7f"])
@pytest.mark.parametrize("over", [0, 1])
def test_a_body_over_the_limit_is_listed_by_its_beginning(
    cx: Connection, character: str, over: int
) -> None:
    width = len(character.encode())
    body = character * (table.WHOLE_BODY_BYTES // width) + "x" * (
        table.WHOLE_BODY_BYTES % width + over
    )
    store(cx, [message(1, body=body)])
    (row,) = table.log_after(cx, SESSION, 0, 1)
    assert row.truncated is bool(over)
    assert row.size == table.WHOLE_BODY_BYTES + over
    assert row.body == (body[: table.PREVIEW_CHARACTERS] if over else body)
    assert table.page(cx, SESSION, "main", 0) == [row]
    assert table.body(cx, SESSION, 1) == body


def test_forty_mebibytes_in_one_line_come_back_whole(cx: Connection) -> None:
    body = '{"text":"' + "0123456789abcdé€" * (40 * 1024 * 1024 // 19) + '"}'
    store(cx, [message(1, body=body)])
    assert table.body(cx, SESSION, 1) == body
    # It takes its listed size from a budget, not its whole one.
    sessions.apply_change(cx, SESSION, 1, Change(messages=[message(2)]))
    assert len(table.log_after(cx, SESSION, 0, 10, 100_000)) == 2


def test_there_is_no_body_where_there_is_no_message(cx: Connection) -> None:
    store(cx, messages(1, 2))
    assert table.body(cx, SESSION, 3) is None
    assert table.body(cx, "s_other", 1) is None
