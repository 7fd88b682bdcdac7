"""A change is stored whole, by the session's owner, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, event, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from holdoverd.catalogue import messages as message_table
from holdoverd.catalogue import schema, sessions
from holdoverd.catalogue.records import Change, MessageRow, OutboxRow, PromptRow, ThreadRow
from holdoverd.errors import Conflict, Internal, NotOwner
from tests.catalogue.examples import (
    SESSION,
    a_launch,
    a_permission,
    a_prompt,
    a_session,
    full_change,
    main_thread,
    message,
    messages,
    session_id,
)


def dump(cx: Connection) -> dict[str, list[tuple[object, ...]]]:
    """Everything stored."""
    return {
        table.name: [tuple(row) for row in cx.execute(select(table).order_by(*table.primary_key))]
        for table in schema.metadata.sorted_tables
    }


def counted(cx: Connection, table: object) -> int:
    return int(cx.execute(select(func.count()).select_from(table)).scalar_one())  # type: ignore[arg-type]


# --- every piece ---


def test_every_piece_of_a_change_comes_back(cx: Connection) -> None:
    change = full_change()
    sessions.create_session(cx, a_session(), change)
    loaded = sessions.load_session(cx, SESSION)
    assert loaded is not None
    assert loaded.row == a_session(last_seq=3, state="waiting", updated_at=5_000, cost_usd=0.25)
    assert loaded.threads == change.threads
    assert loaded.permissions == change.permissions
    assert loaded.prompts == change.prompts
    assert loaded.launches == [change.launch]
    assert loaded.outbox == change.outbox
    stored = message_table.log_after(cx, SESSION, 0, 10)
    assert [replace_plain(row) for row in stored] == change.messages


def replace_plain(row: message_table.StoredMessage) -> MessageRow:
    """The record a stored message was made from."""
    return MessageRow(*(getattr(row, name) for name in MessageRow.__struct_fields__))


def test_a_session_may_be_stored_as_it_is_after_its_first_change(cx: Connection) -> None:
    sessions.create_session(cx, a_session(last_seq=3), full_change())
    row = sessions.session_row(cx, SESSION)
    assert row is not None
    assert row.last_seq == 3


def test_an_id_that_is_taken_is_a_conflict(cx: Connection) -> None:
    sessions.create_session(cx, a_session(), Change())
    before = dump(cx)
    with pytest.raises(Conflict, match=SESSION):
        sessions.create_session(cx, a_session(title="Another"), Change())
    assert dump(cx) == before


def test_rows_with_a_key_that_exists_are_replaced(cx: Connection) -> None:
    sessions.create_session(cx, a_session(), full_change())
    threads = [ThreadRow("toolu_1", "main", "Looked", 1, "done"), main_thread(2)]
    change = Change(
        threads=threads,
        permissions=[a_permission(state="allow", answered_by="default")],
        prompts=[a_prompt(state="uncertain", launch="l_1")],
        launch=a_launch(state="ended", offset=77, replay_from=70, outcome="{}", agent_pid=2),
    )
    sessions.apply_change(cx, SESSION, 1, change)
    loaded = sessions.load_session(cx, SESSION)
    assert loaded is not None
    assert loaded.threads == [threads[1], threads[0]]  # still in the order they were opened
    assert loaded.permissions == []
    assert sessions.permission(cx, SESSION, "p_1") == change.permissions[0]
    assert loaded.prompts == change.prompts
    assert loaded.launches == []
    assert sessions.launch(cx, "l_1") == change.launch
    assert loaded.outbox == []  # the rows are there still, for a launch that is over


def of_its_own(change: Change, number: int) -> Change:
    """The same change as another session's: what is unique in all sessions is named after it."""
    launch = change.launch and replace(change.launch, id=f"l_{number}", session=session_id(number))
    outbox = [replace(row, launch=f"l_{number}") for row in change.outbox]
    return replace(change, launch=launch, outbox=outbox)


def test_changes_stored_together_are_what_they_are_one_by_one(cx: Connection) -> None:
    """New rows and known ones, few messages and many, levels and none, large bodies among small."""
    more = Change(threads=[main_thread(4), ThreadRow("toolu_9", "main", "A title", 1, "done")])
    more.messages = [message(4, 4), message(5, 1, thread="toolu_9", client_id="c1")]
    more.session = {"updated_at": 7, "state": "idle"}
    quiet = Change(messages=messages(4, 40), launch=a_launch(offset=9), outbox_acked=("l_1", 1))
    large = Change(messages=[message(4, body='{"of":"' + "x" * 300_000 + '"}')])
    steps = [
        more,
        quiet,
        large,
        Change(session={"title": None}),
        Change(),
        Change(messages=[message(4)]),
    ]
    first = [
        sessions.Applied(session_id(at), 1, of_its_own(full_change(), at))
        for at in range(len(steps))
    ]
    second = [
        sessions.Applied(session_id(at), 1, of_its_own(step, at)) for at, step in enumerate(steps)
    ]
    stored = []
    for together in (False, True):
        savepoint = cx.begin_nested()
        for each in first:
            sessions.create_session(cx, a_session(id=each.session_id), Change())
        for changes in (first, second):
            if together:
                sessions.Applied.run(cx, changes)
            else:
                for each in changes:
                    each(cx)
        stored.append((dump(cx), words_indexed(cx)))
        savepoint.rollback()
    assert stored[0] == stored[1]
    assert len(stored[1][0]["messages"]) == 3 * len(steps) + 2 + 37 + 1 + 1


def words_indexed(cx: Connection) -> list[tuple[str, int]]:
    found = cx.execute(text("SELECT session, seq FROM searched ORDER BY session, seq"))
    return [(row[0], row[1]) for row in found]


@pytest.mark.parametrize(
    "wrong",
    [
        sessions.Applied(session_id(2), 2, Change(messages=[message(1)])),
        sessions.Applied(session_id(2), 1, Change(messages=[message(2)])),
        sessions.Applied(session_id(9), 1, Change(session={"title": "x"})),
        sessions.Applied(session_id(2), 1, Change(messages=[message(1, thread="nowhere")])),
    ],
    ids=["epoch", "gap", "gone", "thread"],
)
def test_of_changes_stored_together_one_that_cannot_be_fails_them_all(
    cx: Connection, wrong: sessions.Applied
) -> None:
    for number in (1, 2):
        sessions.create_session(
            cx, a_session(id=session_id(number)), Change(threads=[main_thread()])
        )
    good = sessions.Applied(session_id(1), 1, Change(messages=[message(1)]))
    with pytest.raises(Internal):
        sessions.Applied.run(cx, [good, wrong])


def test_acknowledged_commands_leave_the_outbox_of_their_launch_only(cx: Connection) -> None:
    first = Change(launch=a_launch("l_1"), outbox=[OutboxRow("l_1", 1, "line", "a", None)])
    second = Change(
        launch=a_launch("l_2", created_at=3_001),
        outbox=[OutboxRow("l_2", n, "line", "b", None) for n in (1, 2, 3)],
    )
    sessions.create_session(cx, a_session(), first)
    sessions.apply_change(cx, SESSION, 1, second)
    sessions.apply_change(cx, SESSION, 1, Change(outbox_acked=("l_2", 2)))
    loaded = sessions.load_session(cx, SESSION)
    assert loaded is not None
    assert [(row.launch, row.n) for row in loaded.outbox] == [("l_1", 1), ("l_2", 3)]


def test_threads_follow_their_messages_when_the_change_does_not_say(cx: Connection) -> None:
    sessions.create_session(cx, a_session(), Change(threads=[main_thread()]))
    sessions.apply_change(cx, SESSION, 1, Change(messages=messages(1, 5)))
    loaded = sessions.load_session(cx, SESSION)
    assert loaded is not None
    assert loaded.threads == [main_thread(5)]


def test_null_and_false_values_are_stored_as_they_are(cx: Connection) -> None:
    sessions.create_session(cx, a_session(), Change())
    setting: dict[str, object] = {"title": None, "cwd": None, "error": '{"code":"x"}', "share": ""}
    sessions.apply_change(cx, SESSION, 1, Change(session=setting))
    row = sessions.session_row(cx, SESSION)
    assert row is not None
    assert {name: getattr(row, name) for name in setting} == setting


# --- fences ---


def stale_write(cx: Connection, epoch: int) -> None:
    sessions.apply_change(cx, SESSION, epoch, full_change())


def stale_touch(cx: Connection, epoch: int) -> None:
    sessions.apply_change(cx, SESSION, epoch, Change(session={"title": "Mine"}))


def stale_prompt(cx: Connection, epoch: int) -> None:
    """Touches no column of the session, so the epoch has to be looked at apart."""
    sessions.apply_change(cx, SESSION, epoch, Change(prompts=[a_prompt()]))


def stale_take(cx: Connection, epoch: int) -> None:
    sessions.take_ownership(cx, SESSION, epoch, "beta", 9, "0.2.0")


def stale_purge(cx: Connection, epoch: int) -> None:
    sessions.purge_session(cx, SESSION, epoch)


EVERY_WRITE = [stale_write, stale_touch, stale_prompt, stale_take, stale_purge]


@pytest.mark.parametrize("write", EVERY_WRITE)
@pytest.mark.parametrize("epoch", [0, 1, 3, -1, 2**62])
def test_an_owner_with_another_epoch_changes_nothing(
    cx: Connection, write: Callable[[Connection, int], None], epoch: int
) -> None:
    sessions.create_session(cx, a_session(owner_epoch=2), Change(threads=[main_thread()]))
    before = dump(cx)
    with pytest.raises(NotOwner, match=rf"generation 1 on alpha .*epoch 2; .*epoch {epoch}"):
        write(cx, epoch)
    assert dump(cx) == before


@pytest.mark.parametrize("write", EVERY_WRITE)
def test_a_session_that_is_gone_has_no_owner(
    cx: Connection, write: Callable[[Connection, int], None]
) -> None:
    before = dump(cx)
    with pytest.raises(NotOwner, match="does not exist any more"):
        write(cx, 1)
    assert dump(cx) == before


def test_ownership_moves_one_epoch_at_a_time(cx: Connection) -> None:
    sessions.create_session(cx, a_session(), Change(threads=[main_thread()]))
    assert sessions.take_ownership(cx, SESSION, 1, "beta", 7, "0.2.0") == 2
    with pytest.raises(NotOwner):  # a rival saw the same epoch
        sessions.take_ownership(cx, SESSION, 1, "alpha", 8, "0.3.0")
    with pytest.raises(NotOwner):  # and the old owner has lost it
        sessions.apply_change(cx, SESSION, 1, full_change())
    sessions.apply_change(cx, SESSION, 2, full_change())
    row = sessions.session_row(cx, SESSION)
    assert row is not None
    assert (row.host, row.generation, row.release, row.owner_epoch) == ("beta", 7, "0.2.0", 2)


# --- no gap, no repeat, nothing foreign ---


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Change(messages=messages(4, 5)), "the next is 3, not 4"),
        (Change(messages=messages(2, 3)), "the next is 3, not 2"),
        (Change(messages=[message(3), message(5)]), "5 stands where 4 belongs"),
        (Change(messages=[message(4), message(3)]), "3 stands where 5 belongs"),
        (Change(messages=[message(3)], session={"last_seq": 4}), "end with 3, its last_seq with 4"),
        (Change(session={"last_seq": 9}), "last_seq moves without any"),
        (Change(messages=[message(3, thread="never")]), "a thread that was never opened"),
        (Change(session={"owner_epoch": 5}), "sets owner_epoch, which a change may not"),
        (Change(session={"id": "x", "host": "y"}), "sets host, id, which"),
        (Change(session={"title; DROP": 1}), "sets title; DROP, which"),
        (Change(launch=a_launch(session=session_id(2))), f"launch l_1 of session {session_id(2)}"),
    ],
)
def test_a_change_that_cannot_be_right_is_refused_by_name(
    cx: Connection, change: Change, reason: str
) -> None:
    sessions.create_session(
        cx, a_session(), Change(messages=messages(1, 2), threads=[main_thread(2)])
    )
    before = dump(cx)
    with pytest.raises(Internal, match=reason), cx.begin_nested():
        sessions.apply_change(cx, SESSION, 1, change)
    assert dump(cx) == before


def test_a_repeated_n_in_a_thread_is_refused_by_the_database(cx: Connection) -> None:
    sessions.create_session(cx, a_session(), Change(threads=[main_thread()]))
    with pytest.raises(Exception, match=r"(?i)unique"), cx.begin_nested():
        sessions.apply_change(cx, SESSION, 1, Change(messages=[message(1, 1), message(2, 1)]))
    assert counted(cx, schema.messages) == 0


def test_a_command_may_only_point_at_a_message_that_exists(cx: Connection) -> None:
    sessions.create_session(cx, a_session(), Change(launch=a_launch()))
    change = Change(outbox=[OutboxRow("l_1", 1, "line", None, 44)])
    with pytest.raises(Exception, match=r"(?i)foreign key"), cx.begin_nested():
        sessions.apply_change(cx, SESSION, 1, change)


# --- purging ---


def test_a_purged_session_is_gone_for_everyone_at_once(cx: Connection) -> None:
    sessions.create_session(cx, a_session(), full_change())
    sessions.purge_session(cx, SESSION, 1)
    assert sessions.load_session(cx, SESSION) is None
    assert sessions.list_sessions(cx, owner=None) == ([], None)
    assert sessions.sessions_to_adopt(cx, "alpha", []) == []
    assert sessions.states(cx, "alpha", 1) == {}
    for epoch in (1, 2):
        with pytest.raises(NotOwner, match="does not exist any more"):
            sessions.purge_session(cx, SESSION, epoch)
    with pytest.raises(NotOwner):
        sessions.take_ownership(cx, SESSION, 2, "beta", 9, "r")
    with pytest.raises(NotOwner):
        sessions.apply_change(cx, SESSION, 1, Change(session={"title": "x"}))


def test_a_purge_goes_in_slices_from_the_end_and_leaves_others_alone(cx: Connection) -> None:
    other = session_id(2)
    sessions.create_session(cx, a_session(id=other), Change())
    before = dump(cx)
    sessions.create_session(cx, a_session(), full_change())
    sessions.apply_change(
        cx, SESSION, 1, Change(messages=[message(seq, seq - 1) for seq in range(4, 11)])
    )
    sessions.purge_session(cx, SESSION, 1)
    assert sessions.purges_unfinished(cx) == [SESSION]
    left = []
    while not sessions.purge_slice(cx, SESSION, size=4):
        left.append([row.seq for row in message_table.log_after(cx, SESSION, 0, 100)])
    assert left == [[1, 2, 3, 4, 5, 6], [1, 2]]
    assert dump(cx) == before
    assert sessions.purges_unfinished(cx) == []
    assert sessions.purge_slice(cx, SESSION)  # again: nothing to do


def test_a_slice_of_a_session_that_was_not_purged_does_nothing(cx: Connection) -> None:
    sessions.create_session(cx, a_session(), full_change())
    before = dump(cx)
    assert sessions.purge_slice(cx, SESSION)
    assert dump(cx) == before


# --- any sequence of changes ---

THREADS = ["main", "toolu_a", "toolu_b"]
STEPS = st.lists(
    st.fixed_dictionaries(
        {
            "threads": st.lists(st.sampled_from(THREADS), max_size=6),
            "prompt": st.booleans(),
            "ok": st.booleans(),
            "offset": st.integers(0, 1000),
        }
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_whatever_the_owner_does_the_log_has_no_gap(steps: list[dict[str, object]]) -> None:
    """A plain model in memory against the tables, with stale writes in between."""
    engine = create_engine("sqlite://", connect_args={"isolation_level": None})
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    expected: list[MessageRow] = []
    counts = dict.fromkeys(THREADS, 0)
    queued: list[PromptRow] = []
    with engine.connect() as cx:
        schema.metadata.create_all(cx)
        opened = [ThreadRow(name, None, None, 0, "open") for name in THREADS]
        sessions.create_session(cx, a_session(), Change(threads=opened))
        for number, step in enumerate(steps):
            change = Change(launch=a_launch(offset=step["offset"]))
            after = dict(counts)
            for thread in step["threads"]:  # type: ignore[attr-defined]
                after[thread] += 1
                seq = len(expected) + len(change.messages) + 1
                change.messages.append(message(seq, after[thread], thread=thread))
            if step["prompt"]:
                change.prompts.append(a_prompt(f"prompt-{number}", seq=number))
            if not step["ok"]:
                with pytest.raises(NotOwner):
                    sessions.apply_change(cx, SESSION, 0, change)
                continue
            sessions.apply_change(cx, SESSION, 1, change)
            counts = after
            expected += change.messages
            queued += change.prompts
        loaded = sessions.load_session(cx, SESSION)
        log = message_table.log_after(cx, SESSION, 0, 1000)
    engine.dispose()
    assert loaded is not None
    assert [replace_plain(row) for row in log] == expected
    assert loaded.row.last_seq == len(expected)
    assert {row.thread: row.n for row in loaded.threads} == counts
    assert loaded.prompts == queued


def test_creating_a_session_leaves_the_callers_row_as_it_was(cx: Connection) -> None:
    row = a_session(last_seq=3)
    sessions.create_session(cx, row, full_change())
    assert row == a_session(last_seq=3)


def test_text_with_an_unpaired_surrogate_is_an_error_not_a_half_stored_change(
    cx: Connection,
) -> None:
    sessions.create_session(cx, a_session(), Change(threads=[main_thread()]))
    before = dump(cx)
    with pytest.raises((SQLAlchemyError, UnicodeEncodeError)), cx.begin_nested():
        sessions.apply_change(cx, SESSION, 1, Change(messages=[message(1, body="\ud800")]))
    assert dump(cx) == before
