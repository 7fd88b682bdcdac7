"""Search over the doors: its shape, its limits, and who finds what; the catalogue is real."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from sqlalchemy import Connection

from holdoverd.catalogue import sessions
from holdoverd.catalogue.records import Change
from tests.catalogue.examples import a_session, main_thread, message, session_id
from tests.http.kit import Answer, Doors, open_catalogue, open_doors


def stored(cx: Connection, number: int, owner: str, words: list[str]) -> None:
    rows = [
        message(seq, body=json.dumps({"type": "user", "message": {"content": said}}))
        for seq, said in enumerate(words, 1)
    ]
    row = a_session(id=session_id(number), owner=owner)
    sessions.create_session(cx, row, Change(threads=[main_thread()]))
    for each in rows:
        sessions.apply_change(cx, row.id, 1, Change(messages=[each]))


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    catalogue = open_catalogue(tmp_path)
    await catalogue.write(lambda cx: stored(cx, 1, "alice", ["apple pie", "pear", "apple juice"]))
    await catalogue.write(lambda cx: stored(cx, 2, "bob", ["apple tree"]))
    async with open_doors(catalogue) as doors:
        yield doors
    catalogue.close()


async def ask(doors: Doors, token: str | None = None, **query: Any) -> Answer:
    path = "/v1/search?" + urlencode(query)
    if token is None:
        return await doors.admin("GET", path)
    return await doors.ask("GET", path, Authorization=f"Bearer {token}")


async def test_a_hit_tells_where_it_is(doors: Doors) -> None:
    answer = await ask(doors, q="juice")
    assert answer.status == 200
    hit = {
        "session": session_id(1), "seq": 3, "thread": "main", "page": 0, "snippet": "apple juice",
        "at": 2003,
    }  # fmt: skip
    assert answer.json() == {"items": [hit], "next": None}


async def test_lists_go_on_at_their_cursor(doors: Doors) -> None:
    found: list[tuple[str, int]] = []
    cursor = ""
    while True:
        answer = (await ask(doors, q="apple", limit=1, cursor=cursor)).json()
        found += [(hit["session"], hit["seq"]) for hit in answer["items"]]
        cursor = answer["next"]
        if cursor is None:
            break
    assert found == [(session_id(2), 1), (session_id(1), 3), (session_id(1), 1)]


async def test_one_finds_ones_own_and_an_admin_all_or_an_owners(doors: Doors) -> None:
    alice, _ = await doors.token("alice")
    await doors.token("bob")

    async def owners(token: str | None = None, **query: str) -> set[str]:
        answer = await ask(doors, token, q="apple", **query)
        assert answer.status == 200, answer.body
        return {hit["session"] for hit in answer.json()["items"]}

    assert await owners(alice) == {session_id(1)}
    assert await owners() == {session_id(1), session_id(2)}
    assert await owners(owner="bob") == {session_id(2)}
    assert (await ask(doors, alice, q="apple", owner="bob")).status == 403
    assert (await ask(doors, alice, q="apple", session=session_id(2))).status == 404
    writer, _ = await doors.token("alice", ("sessions",))
    assert (await ask(doors, writer, q="apple")).status == 403


@pytest.mark.parametrize(
    "query",
    ["", "q=", "q=%22", "q=%28%29", "q=a%00b", "q=" + "a" * 501, "q=" + "+".join("abcdefghijklmnopq"),
     "q=a&limit=0", "q=a&limit=501", "q=a&cursor=x", "q=a&cursor=-1", "q=a&cursor=" + "9" * 19,
     "q=a&session=" + "s" * 201, "q=a&q=b", "q=%ff"],
)  # fmt: skip
async def test_what_is_no_search_is_400(doors: Doors, query: str) -> None:
    answer = await doors.admin("GET", f"/v1/search?{query}")
    assert (answer.status, answer.code) == (400, "bad_request")


@pytest.mark.parametrize(
    "text", ["AND (", "NOT x", "'; DROP TABLE searched; --", '"a', "\x1b[2J x"]
)
async def test_what_somebody_types_is_words(doors: Doors, text: str) -> None:
    answer = await doors.admin("GET", f"/v1/search?q={quote(text)}")
    assert (answer.status, answer.json()) == (200, {"items": [], "next": None})
