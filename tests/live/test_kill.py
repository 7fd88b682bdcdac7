"""The daemon dies; nobody else notices more than a reconnect."""

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from tests.live.kills import agent_pids, kills_cost_nobody_anything, lines_of
from tests.live.up import Up, running, wait_until
from tests.live.watcher import Watcher, shown

pytestmark = pytest.mark.slow

BACK_S = 9.0
"""Three times the figure of 3 s in which viewers are back; `make soak` measures the figure."""


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with running(tmp_path) as instance:
        yield instance


async def test_five_kills_under_twenty_streams_lose_and_repeat_nothing(up: Up) -> None:
    killed = await kills_cost_nobody_anything(
        up, sessions=20, viewers=2, kills=5, rate=20, seconds=None
    )
    assert len(killed.gaps_s) >= 5 * 40
    assert max(killed.gaps_s) < BACK_S


async def test_an_agent_that_ends_while_no_daemon_lives_is_heard_to_its_last_word(up: Up) -> None:
    session = up.new_session("lines 30 rate 20 size 64\ncrash exit 3")["id"]
    # Before its first line the prompt may still be the daemon's to send.
    wait_until(lambda: lines_of(up.log(session)), "the agent is at work")
    os.kill(up.process.pid, signal.SIGSTOP)  # nobody starts another daemon
    try:
        up.kill_daemon()
        wait_until(lambda: not agent_pids(up, session), "the agent has ended")
    finally:
        os.kill(up.process.pid, signal.SIGCONT)
    view = up.wait_state(session, "dormant")
    log = up.log(session)
    assert lines_of(log) == list(range(1, 31))
    notice = log[-1]
    assert (notice["kind"], notice["body"]["code"]) == ("notice", "agent_exited")
    assert notice["body"]["data"]["status"] == 3
    assert view["last_seq"] == len(log)


async def test_a_daemon_away_for_a_minute_misses_nothing(up: Up) -> None:
    session = up.new_session("lines 1500 rate 20 size 256")["id"]
    pids = wait_until(lambda: agent_pids(up, session), "the agent runs")
    watcher = Watcher(up.admin_socket, session)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        await watcher.wait(lambda w: len(w.seqs) > 5)
        os.kill(up.process.pid, signal.SIGSTOP)
        up.kill_daemon()
        spool = next((up.state / "spool").iterdir())
        size = spool.stat().st_size
        # A minute by the agent's own clock: 20 lines a second of 256 bytes and more.
        await trio.to_thread.run_sync(
            lambda: wait_until(
                lambda: spool.stat().st_size > size + 60 * 20 * 400, "a minute was said", 180
            )
        )
        os.kill(up.process.pid, signal.SIGCONT)
        await watcher.wait(lambda w: w.messages[-1]["kind"] == "result", 120)
        nursery.cancel_scope.cancel()
    assert watcher.seqs == list(range(1, watcher.seqs[-1] + 1))
    assert lines_of(watcher.messages) == list(range(1, 1501))
    assert agent_pids(up, session) == pids


async def test_a_daemon_that_dies_while_sending_ten_mebibytes_sends_them_once_and_whole(
    up: Up,
) -> None:
    session = up.new_session("say ready")["id"]
    up.wait_state(session, "idle")
    payload = "0123456789abcdef" * (10 * 1024 * 1024 // 16 - 8)
    digest = hashlib.sha256(payload.encode()).hexdigest()
    watcher = Watcher(up.admin_socket, session)
    prompt_id = str(uuid4())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        await watcher.live.wait()
        # The agent does not read while it is stopped: its pipe fills and the line stays cut.
        (agent,) = agent_pids(up, session).values()
        os.kill(agent, signal.SIGSTOP)
        await watcher.connection.send_message(
            json.dumps({"type": "prompt", "id": prompt_id, "text": f"sha\n{payload}"})
        )
        await watcher.wait(lambda w: w.messages and w.messages[-1]["client_id"] == prompt_id)
        for _ in range(3):
            old = up.kill_daemon()
            await trio.to_thread.run_sync(up.wait_new_daemon, old)
        os.kill(agent, signal.SIGCONT)
        await watcher.wait(lambda w: w.messages[-1]["kind"] == "result" and len(w.seqs) > 4)
        nursery.cancel_scope.cancel()
    told = [
        block["text"]
        for m in up.log(session)
        if m["kind"] == "assistant"
        for block in m["body"]["message"]["content"]
        if block["text"].startswith("sha256")
    ]
    assert told == [f"sha256 {digest} {len(payload)}"]
    prompts = [m for m in up.log(session) if m["client_id"] == prompt_id]
    assert len(prompts) == 1
    assert prompts[0]["body"]["truncated"]


async def test_a_sentence_goes_on_where_it_was_for_who_comes_back(up: Up) -> None:
    session = up.new_session("stream 60 rate 10")["id"]
    watcher = Watcher(up.admin_socket, session)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        await watcher.wait(lambda w: len(shown(w.frames)) > 40)
        old = up.kill_daemon()
        await trio.to_thread.run_sync(up.wait_new_daemon, old)
        await watcher.wait(lambda w: w.messages and w.messages[-1]["kind"] == "result")
        nursery.cancel_scope.cancel()
    (said,) = (
        m["body"]["message"]["content"][0]["text"]
        for m in watcher.messages
        if m["kind"] == "assistant"
    )
    assert shown(watcher.frames) == said


def test_a_restart_by_systemctl_or_term_lets_go_within_two_seconds(up: Up) -> None:
    session = up.new_session("lines 200 rate 20")["id"]
    pids = wait_until(lambda: agent_pids(up, session), "the agent runs")
    old = up.kill_daemon(signal.SIGTERM)
    up.wait_new_daemon(old)
    assert agent_pids(up, session) == pids
    up.wait_state(session, "idle")
    assert lines_of(up.log(session)) == list(range(1, 201))
