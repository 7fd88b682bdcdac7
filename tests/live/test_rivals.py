"""Several people at one session: who answers first, and who hears of it; over kill -9, too."""

from __future__ import annotations

import http.client
import json
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.live.up import Up, running, wait_until
from tests.live.watcher import Watcher

pytestmark = pytest.mark.slow

PEOPLE = ("ann", "bob", "cid")
RIVALS_S = 0.015
"""Three times the figure of 5 ms that makes answers rivals."""


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="hv") as folder, running(Path(folder)) as up:
        yield up


def raw(**frame: Any) -> str:
    return "raw " + json.dumps(frame)


def uses(parent: str | None, uuid: str, *tools: tuple[str, str]) -> str:
    content = [{"type": "tool_use", "id": i, "name": n, "input": {"n": i}} for i, n in tools]
    message = {"role": "assistant", "id": uuid, "content": content}
    return raw(type="assistant", uuid=uuid, parent_tool_use_id=parent, message=message)


def asks(tool: str) -> str:
    request = {"subtype": "can_use_tool", "tool_name": "Bash", "input": {"n": tool}}
    return raw(
        type="control_request", request_id=f"r{tool}", request={**request, "tool_use_id": tool}
    )


# Five at once, two of them a sub-agent's; then the turn stays open.
FIVE = "\n".join(
    [
        uses(None, "u1", ("t1", "Bash"), ("t2", "Bash"), ("t3", "Bash"), ("sub", "Agent")),
        uses("sub", "u2", ("t4", "Bash"), ("t5", "Bash")),
        *(asks(f"t{n}") for n in range(1, 6)),
        "wait 600",
    ]
)


class Person:
    def __init__(self, up: Up, name: str) -> None:
        self.name = name
        self._up = up
        made = up.call(
            "POST", "/v1/tokens", {"name": name, "owner": name, "scopes": ["read", "sessions"]}
        )
        self.token: str = made["token"]

    def dial(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._up.port))

    def answer(
        self, session: str, request_id: str, behavior: str, at_once: threading.Barrier
    ) -> tuple[float, int, Any]:
        """(when it was sent, status, answer), sent with the others."""
        body = json.dumps({"request_id": request_id, "behavior": behavior, "message": self.name})
        headers = {"Authorization": f"Bearer {self.token}"}
        with closing(http.client.HTTPConnection("127.0.0.1", self._up.port, timeout=60)) as one:
            one.connect()
            at_once.wait(60)
            sent = time.monotonic()
            one.request("POST", f"/v1/sessions/{session}/answers", body, headers)
            response = one.getresponse()
            return sent, response.status, json.loads(response.read())


def rivals(
    people: list[Person], session: str, request_id: str
) -> tuple[Person, list[tuple[int, Any]], float]:
    """(who won, the other answers, seconds between the first and the last)."""
    barrier = threading.Barrier(len(people))
    with ThreadPoolExecutor(len(people)) as pool:
        said = list(
            pool.map(
                lambda p: p.answer(
                    session, request_id, "allow" if p.name != "bob" else "deny", barrier
                ),
                people,
            )
        )
    (winner,) = (p for p, (_, status, _) in zip(people, said, strict=True) if status == 200)
    others = [(status, answer) for _, status, answer in said if status != 200]
    times = [sent for sent, _, _ in said]
    return winner, others, max(times) - min(times)


@asynccontextmanager
async def watching(up: Up, people: list[Person], session: str) -> AsyncIterator[list[Watcher]]:
    watchers = [Watcher(up.admin_socket, session, dial=p.dial, token=p.token) for p in people]
    async with trio.open_nursery() as nursery:
        for watcher in watchers:
            nursery.start_soon(watcher.run)
        for watcher in watchers:
            await watcher.wait(lambda w: w.live.is_set())
        yield watchers
        nursery.cancel_scope.cancel()


def of_kind(messages: list[Any], kind: str) -> list[Any]:
    return [message for message in messages if message["kind"] == kind]


async def test_of_rival_answers_exactly_one_counts_and_the_others_hear_whose(up: Up) -> None:
    people = [Person(up, name) for name in PEOPLE]
    session = up.new_session(FIVE, share="write")["id"]
    view = await trio.to_thread.run_sync(
        wait_until,
        lambda: len((seen := up.session(session))["pending"]) == 5 and seen,
        "five are open",
    )
    assert [one["thread"] for one in view["pending"]] == ["main"] * 3 + ["sub"] * 2
    requests = [one["request_id"] for one in view["pending"]]
    winners: dict[str, str] = {}
    spreads = []

    async def contest(request_id: str) -> None:
        winner, others, spread = await trio.to_thread.run_sync(rivals, people, session, request_id)
        winners[request_id] = winner.name
        spreads.append(spread)
        for status, answer in others:
            assert (status, answer["error"]["code"]) == (409, "conflict")
            assert answer["error"]["answered_by"] == winner.name

    async with watching(up, people, session) as watchers:
        await contest(requests[0])
        await contest(requests[3])
        # Between two contests, the daemon dies: what was answered stays so, what was asked is.
        old = up.kill_daemon()
        await trio.to_thread.run_sync(up.wait_new_daemon, old)
        for request_id in (requests[1], requests[2], requests[4]):
            await contest(request_id)
        old = up.kill_daemon()
        await trio.to_thread.run_sync(up.wait_new_daemon, old)
        for watcher in watchers:
            await watcher.wait(lambda w: len(of_kind(w.messages, "answer")) == 5)
            await watcher.wait(lambda w: w.live.is_set() and w.view["state"] == "working")

    log = up.log(session)
    assert [m["request_id"] for m in of_kind(log, "permission")] == requests
    told = {m["request_id"]: m["body"]["answered_by"] for m in of_kind(log, "answer")}
    assert told == winners
    for watcher in watchers:
        assert watcher.messages == log
        assert watcher.repeated == 0
    # Later is too late, after two deaths as before.
    late = {"request_id": requests[0], "behavior": "allow"}
    status, answer = up.request("POST", f"/v1/sessions/{session}/answers", late)
    assert (status, answer["error"]["answered_by"]) == (409, winners[requests[0]])
    assert sorted(spreads)[len(spreads) // 2] <= RIVALS_S, f"no rivals: {spreads}"
    up.call("DELETE", f"/v1/sessions/{session}")


def test_what_was_withdrawn_or_lost_its_agent_is_gone_for_everybody(up: Up) -> None:
    session = up.new_session("withdraw 2\nask 1")["id"]
    wait_until(lambda: len(of_kind(up.log(session), "permission")) == 3, "all were asked")
    up.wait_state(session, "waiting")
    asked = [m["request_id"] for m in of_kind(up.log(session), "permission")]

    def answered(request_id: str) -> tuple[int, str]:
        status, answer = up.request(
            "POST",
            f"/v1/sessions/{session}/answers",
            {"request_id": request_id, "behavior": "allow"},
        )
        return status, answer["error"]["code"]

    assert [answered(one) for one in asked[:2]] == [(410, "gone")] * 2
    up.call("DELETE", f"/v1/sessions/{session}")
    wait_until(lambda: up.session(session)["pending"] == [], "the agent is gone")
    assert answered(asked[2])[0] == 410
    outcomes = [m["body"]["outcome"] for m in of_kind(up.log(session), "answer")]
    assert outcomes == ["withdrawn"] * 3
