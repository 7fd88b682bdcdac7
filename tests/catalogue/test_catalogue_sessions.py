"""Reading sessions: loading, adopting, listing in pages, the wire's view."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine

from holdoverd.catalogue import schema, sessions
from holdoverd.catalogue.records import Change, SessionRow, ThreadRow
from holdoverd.errors import BadRequest
from tests.catalogue.examples import (
    SESSION,
    a_launch,
    a_permission,
    a_prompt,
    a_session,
    full_change,
    main_thread,
    message,
    session_id,
)


def test_there_is_nothing_to_load_where_there_is_no_session(cx: Connection) -> None:
    assert sessions.load_session(cx, SESSION) is None
    assert sessions.session_row(cx, SESSION) is None
    assert sessions.prompt(cx, SESSION, "x") is None
    assert sessions.permission(cx, SESSION, "x") is None
    assert sessions.launch(cx, "x") is None


def test_an_owner_gets_what_is_open_and_nothing_that_is_over(cx: Connection) -> None:
    prompts = [
        a_prompt("late", seq=9, state="queued"),
        a_prompt("early", seq=2, state="uncertain"),
        a_prompt("seen", seq=3, state="echoed"),
        a_prompt("taken back", seq=4, state="cancelled"),
    ]
    permissions = [
        a_permission("p_open", seq=5),
        a_permission("p_first", seq=4),
        a_permission("p_denied", state="deny", answered_by="default"),
        a_permission("p_withdrawn", state="withdrawn"),
    ]
    sessions.create_session(
        cx, a_session(), Change(prompts=prompts, permissions=permissions, launch=a_launch())
    )
    for launch in (
        a_launch("l_0", state="starting", created_at=9_000),
        a_launch("l_2", state="ended"),
    ):
        sessions.apply_change(cx, SESSION, 1, Change(launch=launch))
    loaded = sessions.load_session(cx, SESSION)
    assert loaded is not None
    assert [row.id for row in loaded.prompts] == ["early", "late"]
    assert [row.request_id for row in loaded.permissions] == ["p_first", "p_open"]
    assert [row.id for row in loaded.launches] == ["l_1", "l_0"]
    assert sessions.prompt(cx, SESSION, "seen") == prompts[2]
    assert sessions.permission(cx, SESSION, "p_denied") == permissions[2]


# --- adopting ---


def adoptable(cx: Connection, live: set[int], own: int | None = None) -> set[int]:
    found = sessions.sessions_to_adopt(cx, "alpha", live, own=own)
    assert len(found) == len(set(found))
    return {int(name.removeprefix("s_")) for name in found}


def test_sessions_of_the_dead_are_adopted_and_those_of_the_living_are_not(cx: Connection) -> None:
    def working(number: int, **row: Any) -> None:
        name = session_id(number)
        launch = a_launch(f"l_{number}", session=name)
        sessions.create_session(cx, a_session(id=name, **row), Change(launch=launch))

    for number, generation in enumerate([1, 2, 3, 3], start=1):
        working(number, generation=generation)
    working(9, generation=1, host="beta")
    assert adoptable(cx, {2, 3}) == {1}
    assert adoptable(cx, {1, 2, 3}) == set()
    assert adoptable(cx, set()) == {1, 2, 3, 4}
    # A restarted instance is alive, and has to take up what it owned before it died.
    assert adoptable(cx, {2, 3}, own=3) == {1, 3, 4}


@pytest.mark.parametrize(
    ("row", "launch", "prompt", "needs_an_owner"),
    [
        *[
            ({"state": state}, None, None, False)
            for state in ("idle", "dormant", "ended", "failed")
        ],
        ({"state": "idle"}, "live", None, True),
        ({"state": "starting"}, "starting", None, True),
        ({"state": "dormant"}, "ended", None, False),
        ({"state": "dormant"}, "ended", "queued", True),
        ({"state": "dormant"}, "ended", "echoed", False),
        ({"state": "ended"}, "ended", "cancelled", False),
        ({"state": "ended"}, "live", None, True),  # its last words have not been read
        ({"state": "failed", "error": "{}"}, "ended", "queued", False),
        ({"state": "failed", "error": "{}"}, "starting", None, True),
    ],
)
def test_only_sessions_that_need_an_owner_are_adopted(
    cx: Connection,
    row: dict[str, Any],
    launch: str | None,
    prompt: str | None,
    needs_an_owner: bool,
) -> None:
    change = Change(
        threads=[main_thread(1)] if prompt else [],
        messages=[message(1)] if prompt else [],
        prompts=[a_prompt(state=prompt)] if prompt else [],
        launch=a_launch(state=launch) if launch else None,
    )
    sessions.create_session(cx, a_session(**row), change)
    assert adoptable(cx, {7}) == ({1} if needs_an_owner else set())


def test_turns_that_a_reboot_cut_are_adopted_where_they_are_to_go_on(cx: Connection) -> None:
    rows: list[dict[str, Any]] = [
        {"turn_cut": "reboot"},
        {"turn_cut": "agent"},
        {"turn_cut": "reboot", "error": "{}"},
        {"turn_cut": "reboot", "ended_at": 1},
    ]
    for number, row in enumerate(rows, start=1):
        sessions.create_session(cx, a_session(id=session_id(number), **row), Change())
    assert sessions.sessions_to_adopt(cx, "alpha", [], go_on_in="now") == [session_id(1)]
    # Once an agent of this boot was there, whatever became of it, a person decides.
    launch = a_launch(session=session_id(1), state="ended", boot_id="now")
    sessions.apply_change(cx, session_id(1), 1, Change(launch=launch))
    assert sessions.sessions_to_adopt(cx, "alpha", [], go_on_in="now") == []
    assert sessions.sessions_to_adopt(cx, "alpha", [], go_on_in="next") == [session_id(1)]
    assert sessions.launched_in(cx, session_id(1), "now")
    assert not sessions.launched_in(cx, session_id(1), "next")
    assert sessions.sessions_to_adopt(cx, "alpha", []) == []


def test_a_conversation_has_one_session_that_has_not_ended(cx: Connection) -> None:
    sessions.create_session(cx, a_session(agent_session="c1", ended_at=1), Change())
    assert sessions.with_conversation(cx, "c1") is None
    sessions.create_session(cx, a_session(id=session_id(2), agent_session="c1"), Change())
    assert sessions.with_conversation(cx, "c1") == session_id(2)


def test_the_files_of_launches_that_are_not_over_are_wanted(cx: Connection) -> None:
    sessions.create_session(cx, a_session(), Change(launch=a_launch("l_1")))
    sessions.apply_change(cx, SESSION, 1, Change(launch=a_launch("l_2", state="ended")))
    sessions.apply_change(cx, SESSION, 1, Change(launch=a_launch("l_3", state="starting")))
    assert sorted(sessions.launches_not_ended(cx)) == ["l_1", "l_3"]


def test_states_are_counted_by_owner(cx: Connection) -> None:
    for number, state in enumerate(["idle", "idle", "working"], start=1):
        sessions.create_session(cx, a_session(id=session_id(number), state=state), Change())
    sessions.create_session(cx, a_session(id=session_id(4), generation=2), Change())
    assert sessions.states(cx, "alpha", 1) == {"idle": 2, "working": 1}


# --- listing ---


def listed(cx: Connection, **asked: object) -> list[int]:
    found, cursor = sessions.list_sessions(cx, **{"owner": None, **asked})  # type: ignore[arg-type]
    assert cursor is None
    return [int(row.id.removeprefix("s_")) for row in found]


def test_a_list_is_filtered_by_all_that_was_asked(cx: Connection) -> None:
    rows = [
        a_session(id=session_id(1), owner="ann", updated_at=1, title="Fix the lock"),
        a_session(id=session_id(2), owner="bob", updated_at=2, state="working", agent="claude"),
        a_session(id=session_id(3), owner="bob", updated_at=3, share="read", title=None),
        a_session(id=session_id(4), owner="ann", updated_at=4, title="100% done_", cwd=None),
    ]
    for row in rows:
        sessions.create_session(cx, row, Change())
    assert listed(cx) == [4, 3, 2, 1]
    assert listed(cx, owner="ann") == [4, 3, 1]  # a shared session is open to every owner
    assert listed(cx, owner="bob") == [3, 2]
    assert listed(cx, owner="nobody") == [3]
    assert listed(cx, state="working") == [2]
    assert listed(cx, agent="demo") == [4, 3, 1]
    assert listed(cx, q="the LOCK") == [1]
    assert listed(cx, q="0%") == [4]
    assert listed(cx, q="e_") == [4]  # not "any character"
    assert listed(cx, q="/srv/pro") == [3, 2, 1]
    assert listed(cx, q=session_id(2)[:-1]) == [4, 3, 2, 1]
    assert listed(cx, q=session_id(2), owner="ann") == []


def pages(cx: Connection, limit: int, owner: str | None = None) -> list[list[str]]:
    found: list[list[str]] = []
    cursor = None
    for _ in range(200):
        rows, cursor = sessions.list_sessions(cx, owner=owner, limit=limit, cursor=cursor)
        found.append([row.id for row in rows])
        if cursor is None:
            return found
    raise AssertionError("the pages do not end")


@settings(max_examples=30, deadline=None)
@given(times=st.lists(st.integers(0, 3), max_size=25), limit=st.integers(1, 9))
def test_pages_join_to_the_whole_list_also_where_times_are_equal(
    times: list[int], limit: int
) -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as cx:
        schema.metadata.create_all(cx)
        rows: list[SessionRow] = []
        for number, at in enumerate(times):
            rows.append(a_session(id=session_id(number), updated_at=at))
            sessions.create_session(cx, rows[-1], Change())
        found = pages(cx, limit)
    engine.dispose()
    newest_first = sorted(rows, key=lambda row: (row.updated_at, row.id), reverse=True)
    assert [name for page in found for name in page] == [row.id for row in newest_first]
    assert all(len(page) == limit for page in found[:-1])


def test_a_session_that_moves_while_somebody_pages_hides_no_other(cx: Connection) -> None:
    for number in range(1, 11):
        row = a_session(id=session_id(number), updated_at=number)
        sessions.create_session(cx, row, Change())
    first, cursor = sessions.list_sessions(cx, owner=None, limit=4)  # 10 9 8 7
    sessions.apply_change(cx, session_id(9), 1, Change(session={"updated_at": 99}))
    sessions.apply_change(cx, session_id(5), 1, Change(session={"updated_at": 98}))
    sessions.create_session(cx, a_session(id=session_id(11), updated_at=100), Change())
    second, cursor = sessions.list_sessions(cx, owner=None, limit=4, cursor=cursor)
    third, cursor = sessions.list_sessions(cx, owner=None, limit=4, cursor=cursor)
    assert cursor is None
    seen = [row.id for row in (*first, *second, *third)]
    assert seen == [session_id(number) for number in (10, 9, 8, 7, 6, 4, 3, 2, 1)]
    top, _ = sessions.list_sessions(cx, owner=None, limit=3)  # where the others are now
    assert [row.id for row in top] == [session_id(number) for number in (11, 9, 5)]


def test_a_list_is_never_longer_than_the_contract_allows(cx: Connection) -> None:
    for number in range(sessions.MAX_LIST + 1):
        sessions.create_session(cx, a_session(id=session_id(number)), Change())
    found, cursor = sessions.list_sessions(cx, owner=None, limit=10**9)
    assert len(found) == sessions.MAX_LIST
    assert cursor is not None
    assert len(sessions.list_sessions(cx, owner=None, limit=0)[0]) == 1


FOREIGN_CURSORS = [
    "",
    "x",
    "%%%",
    "é",
    base64.urlsafe_b64encode(b"12").decode(),
    base64.urlsafe_b64encode(b"twelve s_1").decode(),
    base64.urlsafe_b64encode(b"-4 s_1").decode(),
    base64.urlsafe_b64encode(f"{2**63} s_1".encode()).decode(),
    base64.urlsafe_b64encode(b"\xff\xff s_1").decode(),
]


@pytest.mark.parametrize("cursor", FOREIGN_CURSORS)
def test_a_foreign_cursor_is_a_bad_request(cx: Connection, cursor: str) -> None:
    with pytest.raises(BadRequest, match="start again without a cursor"):
        sessions.list_sessions(cx, owner=None, cursor=cursor)


# --- the wire's view ---


def test_views_belong_to_their_sessions(cx: Connection) -> None:
    other = session_id(2)
    sessions.create_session(cx, a_session(), full_change())
    change = Change(
        threads=[main_thread(), ThreadRow("b", "main", None, 0, "done")],
        prompts=[a_prompt("two", seq=2), a_prompt("one"), a_prompt("gone", state="echoed")],
        permissions=[a_permission("p_9", state="allow")],
    )
    sessions.create_session(cx, a_session(id=other), change)
    rows = [sessions.session_row(cx, name) for name in (other, SESSION)]
    second, first = sessions.session_view_rows(cx, [row for row in rows if row is not None])
    assert (first.row.id, second.row.id) == (SESSION, other)
    assert [row.request_id for row in first.pending] == ["p_1"]
    assert first.queued == ["prompt-1"]
    assert [row.thread for row in first.threads] == ["main", "toolu_1"]
    assert second.pending == []
    assert second.queued == ["one", "two"]
    assert second.threads == change.threads


def test_there_are_no_views_of_nothing(cx: Connection) -> None:
    assert sessions.session_view_rows(cx, []) == []
