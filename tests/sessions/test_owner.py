"""The owner's shell with real keepers: ending what will not end, and what happens in between."""

import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import Connection

from holdoverd.catalogue.writer import Write
from holdoverd.errors import Capacity, CatalogueError, Conflict, NotFound, RequestError, Unavailable
from holdoverd.sessions import holding, launcher, owner, service, spool
from holdoverd.sessions.owner import OwnedSession
from holdoverd.sessions.viewer import ViewerClosed
from tests.sessions import house as house_module
from tests.sessions.house import (
    ADMIN,
    BOB,
    CLOSES_STDIN,
    DEAF,
    STAYS,
    WAIT_S,
    House,
    a_house,
    a_prompt,
    wait_until,
)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_either_database(migrated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house_module, "catalogue_url", lambda _folder: migrated)


def has_open_stdin(keeper: int) -> bool:
    """Whether any descendant of the keeper but its init still holds a pipe as its stdin."""
    children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    agents = [
        agent
        for init in children
        for agent in Path(f"/proc/{init}/task/{init}/children").read_text().split()
    ]
    return not agents or any(Path(f"/proc/{agent}/fd/0").is_symlink() for agent in agents)


async def nothing_stored(house: House, session: str) -> bool:
    try:
        await house.view(session)
    except NotFound:
        return True
    return False


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that do not end by themselves get half a second at each step instead of five."""
    monkeypatch.setattr(owner, "STOP_STEP_S", 0.5)


@pytest.mark.usefixtures("hurried")
async def test_an_agent_that_never_reads_can_be_ended(tmp_path: Path) -> None:
    async with a_house(tmp_path, DEAF) as house:
        session = (await house.new())["id"]
        for letter in "xyz":  # more than pipe and keeper hold
            await house.sessions.prompt(ADMIN, session, a_prompt(letter * 300_000))
        owned = await house.owned(session)
        await house.sessions.end(ADMIN, session, False)
        await wait_until(lambda: owned.model.launch is None, "the agent is gone")
        assert (await house.view(session))["state"] == "ended"


@pytest.mark.usefixtures("hurried")
async def test_nothing_that_is_asked_of_an_ended_session_stands_before_its_end(
    tmp_path: Path,
) -> None:
    async with a_house(tmp_path, STAYS) as house:
        session = (await house.new())["id"]
        owned = await house.owned(session)
        await house.sessions.end(ADMIN, session, False)
        await house.sessions.patch(ADMIN, session, {"model": "m"})
        await wait_until(lambda: owned.model.launch is None, "the agent is gone")


async def test_an_agent_that_has_closed_its_stdin_is_ended_when_it_is_to_be_told_something(
    tmp_path: Path,
) -> None:
    async with a_house(tmp_path, CLOSES_STDIN) as house:
        session = (await house.new())["id"]
        owned = await house.owned(session)
        (keeper,) = house.keepers
        await wait_until(lambda: not has_open_stdin(keeper.pid), "the agent has closed its stdin")
        for _ in range(2):  # what breaks the pipe may be acknowledged, what follows is not
            await house.sessions.prompt(ADMIN, session, a_prompt())
        await wait_until(lambda: owned.model.launch is None, "the agent was ended")
        notices: list[str] = []
        with trio.fail_after(WAIT_S):
            while not notices:  # the model is ahead of what is stored
                await trio.sleep(0.02)
                log = json.loads(await house.sessions.log(ADMIN, session, 0, 100))
                notices = [m["body"]["code"] for m in log["messages"] if m["kind"] == "notice"]
        await wait_until(lambda: not owned.live or owned.model.launch, "what follows was settled")
        assert notices[0] == "agent_exited"


async def test_a_session_that_was_answered_stays_whatever_becomes_of_its_keeper(
    tmp_path: Path,
) -> None:
    async with a_house(tmp_path, STAYS) as house:
        house.answering = False
        made = await house.new("precious")
        owned = await house.owned(made["id"])
        # What is stored, and not the model, which is ahead of it by a commit.
        with trio.fail_after(WAIT_S):
            while (view := await house.view(made["id"]))["state"] != "failed":
                await trio.sleep(0.02)
        assert view["queued"] == made["queued"]
        house.answering = True
        await house.sessions.resume(ADMIN, made["id"])
        await wait_until(lambda: owned.model.launch is not None, "an agent runs")


@pytest.mark.usefixtures("hurried")
async def test_a_purge_is_done_once_the_agent_is_gone_also_while_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = trio.Event()
    start = launcher.start_keeper

    async def held(*args: object) -> launcher.Started:
        await gate.wait()
        return await start(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(launcher, "start_keeper", held)
    async with a_house(tmp_path, STAYS) as house:
        async with trio.open_nursery() as nursery:

            async def make() -> None:
                with contextlib.suppress(RequestError):
                    await house.new()

            nursery.start_soon(make)
            await wait_until(lambda: house.sessions._owned, "the session has an owner")
            (session,) = house.sessions._owned
            with trio.fail_after(WAIT_S):
                while await nothing_stored(house, session):
                    await trio.sleep(0.02)
            await house.sessions.end(ADMIN, session, True)
            gate.set()
        with trio.fail_after(60):
            while True:
                try:
                    await house.view(session)
                except NotFound:
                    break
                await trio.sleep(0.05)
        await wait_until(lambda: not list(house.paths.spools.iterdir()), "its spool is gone")


async def test_no_more_agents_run_than_the_limit_however_they_race(tmp_path: Path) -> None:
    async with a_house(tmp_path, STAYS, max_live=2) as house:
        made: list[str] = []
        refused: list[Capacity] = []

        async def make() -> None:
            try:
                made.append((await house.new())["id"])
            except Capacity as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(make)
        assert (len(made), len(refused)) == (2, 4)
        assert house.sessions.counts()[0] == 2
        assert "max_live" in refused[0].message


async def test_whoever_else_has_agents_is_asked_for_room_before_one_starts(tmp_path: Path) -> None:
    async with a_house(tmp_path, STAYS, max_live=2) as house:
        asked: list[int] = []

        async def make_room(sessions: int) -> None:
            asked.append(sessions)

        house.sessions.before_agents(make_room)
        for _ in range(2):
            await house.new()
        with pytest.raises(Capacity):
            await house.new()
        assert asked == [1, 2]


async def test_who_is_shut_out_while_opening_a_stream_does_not_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_house(tmp_path, STAYS) as house:
        session = (await house.new(share="read"))["id"]
        gate = trio.Event()
        read, reads = house.catalogue.read, 0

        async def slow(fn: object) -> object:
            nonlocal reads
            reads += 1
            number, found = reads, await read(fn)  # type: ignore[arg-type]
            if number == 2:  # the first one asks for his rights
                await gate.wait()
            return found

        outcome: list[object] = []

        async def bob_opens() -> None:
            try:
                outcome.append(
                    await house.sessions.open_viewer(
                        BOB, session, after=None, epoch=None, threads="all"
                    )
                )
            except NotFound as error:
                outcome.append(error)

        async with trio.open_nursery() as nursery:
            monkeypatch.setattr(house.catalogue, "read", slow)
            nursery.start_soon(bob_opens)
            await wait_until(lambda: reads >= 2, "Bob's rights were found good")
            monkeypatch.setattr(house.catalogue, "read", read)
            await house.sessions.patch(ADMIN, session, {"share": None})
            gate.set()
        assert isinstance(outcome[0], NotFound)
        assert len((await house.owned(session)).hub) == 0


async def test_a_session_lost_by_a_defect_is_adopted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "ADOPT_S", 0.1)
    async with a_house(tmp_path, STAYS) as house:
        session = (await house.new())["id"]
        first = await house.owned(session)
        viewer = await house.sessions.open_viewer(
            ADMIN, session, after=None, epoch=None, threads="all"
        )

        async def defective() -> None:
            raise ZeroDivisionError("a defect")

        first.spawn(defective)
        await wait_until(
            lambda: house.sessions._owned.get(session) not in (None, first), "it is adopted"
        )
        again = await house.owned(session)
        assert again.owner_epoch == first.owner_epoch + 1
        assert again.model.launch is not None
        with pytest.raises(ViewerClosed) as closed:
            await viewer.next_frame()
        assert closed.value.code == 1001


async def test_stopping_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_house(tmp_path, STAYS) as house:
        session = (await house.new())["id"]
        await house.owned(session)
        refusals = 0

        def full(_fn: object, **_hints: object) -> None:
            nonlocal refusals
            refusals += 1
            raise CatalogueError("The disk is full.")

        monkeypatch.setattr(house.catalogue, "begin_write", full)
        house.kill_keepers()
        await wait_until(lambda: refusals > 0, "the agent's end could not be stored")
        with pytest.raises(Unavailable, match="disk is full"):
            await house.sessions.prompt(ADMIN, session, a_prompt())
        begun = time.monotonic()
        house.nursery.cancel_scope.cancel()
    # A timeout of many times what it takes; before, it waited until the disk had room.
    assert time.monotonic() - begun < 30


async def test_an_end_while_a_rival_holds_the_lock_leaves_the_lock_to_others(
    tmp_path: Path,
) -> None:
    async with a_house(tmp_path, STAYS) as house:
        session = (await house.new())["id"]
        owned = await house.owned(session)
        house.kill_keepers()
        await wait_until(lambda: owned.model.launch is None, "the agent's end is told")
        lock = house.paths.lock(session)
        rival = await launcher.Lock.wait_taken(lock)
        await house.sessions.resume(ADMIN, session)
        await house.sessions.end(ADMIN, session, False)
        rival.close()
        await wait_until(lambda: not owned.live, "nothing is started any more")
        launcher.Lock.take_nowait(lock).close()


async def test_sessions_that_rest_are_forgotten_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "ADOPT_S", 0.05)
    monkeypatch.setattr(holding, "REST_S", 0.1)
    async with a_house(tmp_path, STAYS) as house:
        session = (await house.new("hello"))["id"]
        await house.sessions.end(ADMIN, session, False)
        house.kill_keepers()
        await wait_until(lambda: session not in house.sessions._owned, "it is forgotten")
        viewer = await house.sessions.open_viewer(
            ADMIN, session, after=0, epoch=None, threads="all"
        )
        kinds = [json.loads(await viewer.next_frame())["type"] for _ in range(3)]
        with pytest.raises(ViewerClosed) as closed:
            await viewer.next_frame()
        assert kinds == ["hello", "messages", "live"]
        assert closed.value.code == 1000


async def test_leftovers_of_launches_that_are_over_are_removed_at_the_start(tmp_path: Path) -> None:
    for folder, name in (("spool", "l_dead.spool"), ("sessions", "l_dead.sock")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    async with a_house(tmp_path, STAYS) as house:
        # The doors need not wait for that: it is done once the instance adopts.
        for folder in (house.paths.spools, house.paths.sessions):
            await wait_until(lambda folder=folder: not list(folder.iterdir()), f"{folder} is empty")
        session = (await house.new())["id"]
        assert len(list(house.paths.spools.iterdir())) == 1
        assert (await house.view(session))["state"] in ("starting", "idle")


GIVES_BACK = """
import json, sys
for line in sys.stdin:
    said = json.loads(line)
    request = said.get("request") or {}
    if request.get("subtype") == "cancel_async_message":
        given = {"cancelled": request["message_uuid"].startswith("0")}
        answer = {"subtype": "success", "request_id": said["request_id"], "response": given}
        print(json.dumps({"type": "control_response", "response": answer}), flush=True)
"""


async def test_a_prompt_in_the_agents_own_queue_is_withdrawn_if_the_agent_gives_it_back(
    tmp_path: Path,
) -> None:
    async with a_house(tmp_path, GIVES_BACK) as house:
        session = (await house.new())["id"]
        given, kept = ({**a_prompt(), "id": f"{n}{a_prompt()['id'][1:]}"} for n in "01")
        for prompt in (given, kept):
            await house.sessions.prompt(ADMIN, session, prompt)
        await house.sessions.cancel_prompt(ADMIN, session, given["id"])
        with pytest.raises(Conflict, match="has not given it back"):
            await house.sessions.cancel_prompt(ADMIN, session, kept["id"])
        assert (await house.view(session))["queued"] == [kept["id"]]
        log = json.loads(await house.sessions.log(ADMIN, session, 0, 10))["messages"]
        assert [m["kind"] for m in log] == ["user", "user", "notice"]
        assert log[-1]["body"]["data"]["prompt_id"] == given["id"]


async def test_an_agent_that_is_silent_about_a_prompt_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "WITHDRAW_S", 0.05)
    async with a_house(tmp_path, STAYS) as house:
        session = (await house.new())["id"]
        prompt = a_prompt()
        await house.sessions.prompt(ADMIN, session, prompt)
        with pytest.raises(Conflict, match="has not given it back"):
            await house.sessions.cancel_prompt(ADMIN, session, prompt["id"])


SAYS_MANY = """
import sys, json
for line in sys.stdin:
    frame = json.loads(line)
    if frame["type"] == "user":
        for n in range(6000):
            said = {"type": "text", "text": f"#{n} " + "x" * 100}
            print(json.dumps({"type": "assistant", "message": {"content": [said]}}))
        sys.stdout.flush()
"""


class SlowDisk:
    """Writes that take a while, of which every `fails`-th finds the disk full (0: none does)."""

    def __init__(
        self,
        house: House,
        monkeypatch: pytest.MonkeyPatch,
        *,
        takes_s: float = 0.02,
        fails: int = 0,
    ) -> None:
        self._begin: Callable[..., Write[Any]] = house.catalogue.begin_write
        self._takes_s = takes_s
        self._fails = fails
        self._begun = 0
        self.failed = 0
        monkeypatch.setattr(owner, "RETRY_S", 0.01)
        monkeypatch.setattr(house.catalogue, "begin_write", self.begin_write)

    def begin_write(self, fn: Callable[[Connection], Any], **hints: Any) -> Write[Any]:
        self._begun += 1
        full = self._fails > 0 and self._begun % self._fails == 0
        self.failed += full

        def slowly(cx: Connection) -> Any:
            time.sleep(self._takes_s)
            found = fn(cx)
            if full:
                raise CatalogueError("The disk is full.")
            return found

        return self._begin(slowly, **hints)


def when_ahead(owned: OwnedSession, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What was committed each time that a step was shown while the next one had begun."""
    publish = owned.hub.publish
    ahead: list[int] = []

    def watched(*args: Any, **how: Any) -> None:
        publish(*args, **how)
        if how.get("ahead"):
            ahead.append(owned.hub.committed)

    monkeypatch.setattr(owned.hub, "publish", watched)
    return ahead


async def says_all(house: House, owned: OwnedSession) -> None:
    """Have the agent say its lines, of which nothing is read before the spool holds them."""
    await owned.pause()
    await house.sessions.prompt(ADMIN, owned.id, a_prompt())
    following = owned.following
    assert following is not None
    await wait_until(lambda: following.lag_bytes() > 1_000_000, "the spool holds the lines")
    owned.go_on()


@asynccontextmanager
async def a_step_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, takes_s: float = 0.02
) -> AsyncIterator[tuple[House, OwnedSession]]:
    """A session whose agent has said its lines, at the moment at which a step was first made ahead."""
    async with a_house(tmp_path, SAYS_MANY) as house:
        owned = await house.owned((await house.new())["id"])
        SlowDisk(house, monkeypatch, takes_s=takes_s)
        ahead = when_ahead(owned, monkeypatch)
        await says_all(house, owned)
        await wait_until(lambda: bool(ahead), "a step was made ahead")
        yield house, owned


async def last_stored(house: House, session: str) -> int:
    return int((await house.view(session))["last_seq"])


@pytest.mark.parametrize("fails", [0, 3])
async def test_steps_that_are_made_while_others_are_stored_are_shown_once_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    monkeypatch.setattr(spool, "AHEAD_BYTES", 200_000)  # five steps
    async with a_house(tmp_path, SAYS_MANY) as house:
        session = (await house.new())["id"]
        owned = await house.owned(session)
        viewer = await house.sessions.open_viewer(
            ADMIN, session, after=0, epoch=None, threads="all"
        )
        disk = SlowDisk(house, monkeypatch, fails=fails)
        ahead = when_ahead(owned, monkeypatch)
        commits = owned.instance.counts.commits
        with trio.fail_after(WAIT_S):
            while json.loads(await viewer.next_frame())["type"] != "live":
                pass
        await says_all(house, owned)
        came: list[str] = []
        with trio.fail_after(WAIT_S):
            while len(came) < 6000:
                frame = json.loads(await viewer.next_frame())
                if messages := frame.get("messages"):
                    stored = await last_stored(house, session)
                    assert messages[-1]["seq"] <= stored, "shown before it was stored"
                    came += numbers_of(messages)
        assert came == [f"#{n}" for n in range(6000)]
        assert owned.instance.counts.commits > commits
        assert ahead
        assert (disk.failed > 0) == (fails > 0)


async def test_a_step_that_was_made_ahead_is_lost_with_its_owner_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "ADOPT_S", 0.1)
    async with a_step_ahead(tmp_path, monkeypatch) as (house, owned):
        session = owned.id
        owned.lose()
        await wait_until(
            lambda: house.sessions._owned.get(session) not in (None, owned), "it is adopted"
        )
        viewer = await house.sessions.open_viewer(
            ADMIN, session, after=0, epoch=None, threads="all"
        )
        came: list[str] = []
        with trio.fail_after(WAIT_S):
            while len(came) < 6000:
                came += numbers_of(json.loads(await viewer.next_frame()).get("messages", ()))
        assert came == [f"#{n}" for n in range(6000)]


async def test_who_stops_does_not_store_first_all_that_an_agent_has_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "AHEAD_BYTES", 1)  # ten steps
    async with a_step_ahead(tmp_path, monkeypatch, takes_s=0.3) as (house, owned):
        house.nursery.cancel_scope.cancel()
    assert owned.hub.committed < 6000


async def test_nobody_waits_for_a_session_until_its_agent_has_said_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are made ahead only while nobody wants the session as it was shown."""
    monkeypatch.setattr(spool, "AHEAD_BYTES", 1)  # ten steps
    async with a_step_ahead(tmp_path, monkeypatch, takes_s=0.3) as (house, owned):
        session = owned.id
        await house.sessions.patch(ADMIN, session, {"title": "done in between"})
        assert owned.hub.committed < 6000
        viewer = await house.sessions.open_viewer(
            ADMIN, session, after=owned.hub.committed, epoch=owned.model.row.epoch, threads="all"
        )
        with trio.fail_after(WAIT_S):
            while json.loads(await viewer.next_frame())["type"] != "live":
                pass
        assert owned.hub.committed < 6000


def numbers_of(messages: Iterable[Any]) -> list[str]:
    return [
        message["body"]["message"]["content"][0]["text"].split()[0]
        for message in messages
        if message["kind"] == "assistant"
    ]


WORKS_UNTIL_TOLD = """
import json, os, sys, time
for line in sys.stdin:
    frame = json.loads(line)
    if frame["type"] == "user":
        print(json.dumps({**frame, "isReplay": True}), flush=True)
        while not os.path.exists("go"):
            time.sleep(0.01)
        print(json.dumps({"type": "result", "subtype": "success"}), flush=True)
    elif frame["request"]["subtype"] == "reload_skills":
        with open("reloads", "a") as file:
            file.write("once\\n")
"""


async def test_a_reload_that_is_owed_to_a_turn_outlives_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "ADOPT_S", 0.1)
    async with a_house(tmp_path, WORKS_UNTIL_TOLD) as house:
        session = (await house.new("work"))["id"]
        await wait_until(
            lambda: house.sessions._owned[session].model.row.state == "working", "it works"
        )
        first = await house.owned(session)
        for _ in range(2):
            await first.reload_skills()
        first.lose()
        (tmp_path / "go").touch()
        await wait_until((tmp_path / "reloads").exists, "the agent is told")
        assert await house.owned(session) is not first
        await wait_until(
            lambda: not house.sessions._owned[session].model.reload_due, "nothing is owed"
        )
        assert (tmp_path / "reloads").read_text() == "once\n"
