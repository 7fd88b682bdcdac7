"""Jobs by the doors, and the daemon's part in having them run."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import trio

from holdoverd.catalogue import jobs as jobs_table
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import Conflict, NotFound, OwnedElsewhere
from holdoverd.ids import now_ms
from holdoverd.jobs import rules
from holdoverd.jobs.roll import WorkerLock
from holdoverd.jobs.service import Jobs
from holdoverd.settings import load
from tests.http.kit import Doors, open_doors
from tests.jobs.store import Folder
from tests.jobs.yard import new_job

pytestmark = pytest.mark.slow

ENV = {
    "HOLDOVER_PROCESSORS_OWN_COMMAND": "true",
    "HOLDOVER_PROCESSORS_OWN_INPUT": "file",
    "HOLDOVER_JOBS_MAX_WORKERS": "2",
}


@dataclass
class Told:
    """Sessions that are told of ends; `answers` are raised first, in order."""

    notices: list[tuple[str, str, str]] = field(default_factory=list)
    answers: list[Exception] = field(default_factory=list)

    async def job_ended(self, session: str, job: str, text: str, data: dict[str, Any]) -> None:
        if self.answers:
            raise self.answers.pop(0)
        assert data["id"] == job
        self.notices.append((session, job, text))


class Desk:
    """A catalogue, the service, and doors with it."""

    def __init__(
        self, folder: Path, catalogue: Catalogue, env: Mapping[str, str] = MappingProxyType(ENV)
    ) -> None:
        self.catalogue = catalogue
        self.store = Folder(folder / "store")
        self.runtime = folder / "run"
        for path in (self.store.folder, self.runtime / "workers"):
            path.mkdir(parents=True)
        self.told = Told()
        self.jobs = Jobs(
            catalogue=catalogue,
            settings=load([], env),
            files=self.store,
            sessions=self.told,  # type: ignore[arg-type]
            runtime=self.runtime,
            host="here",
            serving=lambda: True,
        )
        self.doors: Doors

    async def add(self, **fields: object) -> str:
        job = new_job(str(fields.pop("processor", "checksum")), **fields)
        await self.catalogue.write(lambda cx: jobs_table.create_job(cx, job))
        return job.id

    async def job(self, job_id: str) -> rules.Job:
        job = await self.catalogue.read(lambda cx: jobs_table.get_job(cx, job_id))
        assert job is not None
        return job


@asynccontextmanager
async def open_desk(folder: Path) -> AsyncIterator[Desk]:
    catalogue = Catalogue.open(f"sqlite:///{folder}/catalogue.db")
    try:
        desk = Desk(folder, catalogue)
        async with open_doors(catalogue, jobs=desk.jobs) as desk.doors:
            yield desk
    finally:
        catalogue.close()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path) as desk:
        yield desk


async def until(condition: Any) -> None:
    with trio.fail_after(10):
        while not await condition():
            await trio.sleep(0.02)


async def test_a_job_from_submission_to_its_end_over_http(desk: Desk) -> None:
    file = desk.store.put("f_1", b"abc", owner="default")
    spec = {"processor": "checksum", "files": [file], "params": {"algorithm": "md5"}}
    made = await desk.doors.admin("POST", "/v1/jobs", spec)
    assert made.status == 201
    job = made.json()
    assert job.pop("id").startswith("j_")
    assert isinstance(job.pop("created_at"), int)
    assert job == {
        "owner": "default",
        "processor": "checksum",
        "files": ["f_1"],
        "params": {"algorithm": "md5"},
        "state": "ready",
        "attempt": 0,
        "max_attempts": 3,
        "progress": None,
        "result": None,
        "error": None,
        "session": None,
        "started_at": None,
        "finished_at": None,
        "worker": None,
    }
    path = f"/v1/jobs/{made.json()['id']}"
    assert (await desk.doors.admin("GET", f"{path}/log")).json() == {
        "attempt": 0,
        "text": "",
        "size": 0,
    }
    assert (await desk.doors.admin("GET", f"{path}/log?attempt=1")).status == 404
    refused = await desk.doors.admin("POST", f"{path}/retry")
    assert (refused.status, refused.code) == (409, "conflict")
    assert (await desk.doors.admin("DELETE", path)).status == 204
    assert (await desk.doors.admin("DELETE", path)).status == 204
    assert (await desk.doors.admin("GET", path)).json()["state"] == "cancelled"
    again = await desk.doors.admin("POST", f"{path}/retry")
    assert (again.status, again.json()["state"]) == (202, "ready")
    listed = (await desk.doors.admin("GET", "/v1/jobs?state=ready&processor=checksum")).json()
    assert ([item["id"] for item in listed["items"]], listed["next"]) == ([path[9:]], None)


@pytest.mark.parametrize(
    ("spec", "status", "words"),
    [
        ({}, 400, "`processor` is missing"),
        ({"processor": "nosuch"}, 422, "known are analyze, checksum, extract-text, own"),
        ({"processor": "checksum"}, 422, "takes one file, not 0"),
        ({"processor": "checksum", "files": ["f_1", "f_1"]}, 422, "takes one file, not 2"),
        ({"processor": "own", "files": ["f_1"] * 17}, 422, "0 to 16 files"),
        ({"processor": "checksum", "files": ["f_none"]}, 422, "no file 'f_none'"),
        ({"processor": "checksum", "files": ["f_other"]}, 422, "no file 'f_other'"),
        ({"processor": "checksum", "files": ["f_1"], "params": []}, 400, "has to be an object"),
        (
            {"processor": "checksum", "files": ["f_1"], "params": {"algorithm": "rot13"}},
            422,
            "one of sha256",
        ),
        ({"processor": "checksum", "files": ["f_1"], "params": {"x": 1}}, 422, "no param 'x'"),
        ({"processor": "extract-text", "files": ["f_1"], "params": {"x": 1}}, 422, "takes none"),
        (
            {"processor": "analyze", "files": ["f_1"], "params": {"prompt": 5}},
            422,
            "has to be a string",
        ),
        (
            {"processor": "analyze", "files": ["f_1"], "params": {"agent": "demo"}},
            422,
            "cannot use the agent 'demo'",
        ),
        ({"processor": "own", "params": {"x": "y" * 70_000}}, 422, "put what is large in a file"),
        ({"processor": "own", "session": "s_none"}, 422, "no session 's_none'"),
    ],
)
async def test_what_does_not_fit_is_refused_by_name(
    desk: Desk, spec: dict[str, object], status: int, words: str
) -> None:
    desk.store.put("f_1", b"abc", owner="default")
    desk.store.put("f_other", b"abc", owner="bob")
    refused = await desk.doors.admin("POST", "/v1/jobs", spec)
    assert refused.status == status, refused.body
    assert words in refused.json()["error"]["message"]
    listed = (await desk.doors.admin("GET", "/v1/jobs")).json()
    assert listed["items"] == []


async def test_owners_see_their_own_and_scopes_hold(desk: Desk) -> None:
    desk.store.put("f_a", b"abc", owner="alice")
    alice, _ = await desk.doors.token("alice", ("read", "jobs"))
    reader, _ = await desk.doors.token("alice", ("read",))
    bob, _ = await desk.doors.token("bob", ("read", "jobs"))

    async def ask(token: str, method: str, path: str, body: object = None) -> Any:
        return await desk.doors.ask(method, path, body, Authorization=f"Bearer {token}")

    spec = {"processor": "checksum", "files": ["f_a"]}
    assert (await ask(reader, "POST", "/v1/jobs", spec)).status == 403
    made = await ask(alice, "POST", "/v1/jobs", spec)
    assert (made.status, made.json()["owner"]) == (201, "alice")
    assert (await ask(bob, "POST", "/v1/jobs", spec)).status == 422
    path = f"/v1/jobs/{made.json()['id']}"
    for method, below in (("GET", ""), ("GET", "/log"), ("POST", "/retry"), ("DELETE", "")):
        assert (await ask(bob, method, path + below)).status == 404
    assert (await ask(bob, "GET", "/v1/jobs")).json()["items"] == []
    assert (await ask(reader, "GET", path)).status == 200
    assert (await ask(reader, "DELETE", path)).status == 403
    assert len((await desk.doors.admin("GET", "/v1/jobs")).json()["items"]) == 1
    assert (await desk.doors.admin("GET", "/v1/jobs?owner=bob")).json()["items"] == []
    for_alice = await desk.doors.admin("POST", "/v1/jobs", {**spec, "owner": "alice"})
    assert (for_alice.status, for_alice.json()["owner"]) == (201, "alice")


async def test_workers_are_asked_for_as_there_is_work_within_the_limit(desk: Desk) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(desk.runtime / "workers.sock"))
        listener.listen()
        doorbell = trio.socket.from_stdlib_socket(listener)
        locks = []
        async with trio.open_nursery() as nursery:
            await nursery.start(desk.jobs.run)
            for _ in range(5):
                await desk.add()
            desk.jobs.wake()
            with trio.fail_after(5):
                for _ in range(2):
                    (await doorbell.accept())[0].close()
                    locks.append(WorkerLock.take(desk.runtime / "workers"))
            with trio.move_on_after(2.5) as rung:
                await doorbell.accept()
            assert rung.cancelled_caught, "two workers live, as many as may"
            nursery.cancel_scope.cancel()
        for lock in locks:
            lock.close(desk.runtime / "workers")


async def test_a_dead_workers_job_is_taken_from_it_at_once(desk: Desk) -> None:
    job = await desk.add()
    lock = WorkerLock.take(desk.runtime / "workers")
    await desk.catalogue.write(
        lambda cx: jobs_table.claim(
            cx, {"checksum": 0}, worker=lock.worker, host="here", now=now_ms()
        )
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(desk.jobs.run)
        await trio.sleep(0.7)
        assert (await desk.job(job)).state == "running"
        os.close(lock._fd)  # as the kernel does at its end

        async def taken() -> bool:
            return (await desk.job(job)).state == "ready"

        with trio.fail_after(2):
            await until(taken)
        nursery.cancel_scope.cancel()
    assert "ended without a word" in ((await desk.job(job)).error or "")


async def test_after_a_reboot_no_job_waits_for_a_worker_that_is_gone(desk: Desk) -> None:
    job = await desk.add(state="running", attempt=1, worker="w_old", host="here")
    elsewhere = await desk.add(state="running", attempt=1, worker="w_far", host="there")
    async with trio.open_nursery() as nursery:
        await nursery.start(desk.jobs.run)

        async def taken() -> bool:
            return (await desk.job(job)).state == "ready"

        await until(taken)
        nursery.cancel_scope.cancel()
    assert (await desk.job(elsewhere)).state == "running"


async def test_sessions_hear_of_the_end_until_they_have(desk: Desk) -> None:
    ended = {"state": "dead", "error": "no page", "finished_at": now_ms(), "told": 0}
    one = await desk.add(session="s_1", **ended)
    desk.told.answers = [OwnedElsewhere("another instance's"), OwnedElsewhere("still")]
    async with trio.open_nursery() as nursery:
        await nursery.start(desk.jobs.run)

        async def told() -> bool:
            return bool(desk.told.notices)

        await until(told)
        nursery.cancel_scope.cancel()
    assert desk.told.notices[0] == ("s_1", one, f"The job {one} (checksum) is dead: no page.")


@pytest.mark.parametrize("error", [NotFound("gone"), Conflict("ended")])
async def test_a_session_that_is_over_is_not_told_again_and_again(
    desk: Desk, error: Exception
) -> None:
    job = await desk.add(session="s_1", state="done", finished_at=now_ms(), told=0, result="{}")
    desk.told.answers = [error]
    async with trio.open_nursery() as nursery:
        await nursery.start(desk.jobs.run)

        async def over() -> bool:
            return (await desk.job(job)).told == 1

        await until(over)
        nursery.cancel_scope.cancel()
    assert desk.told.notices == []


def test_the_job_of_an_upload_is_prepared_for_the_same_transaction(tmp_path: Path) -> None:
    """As completing an upload does: the file becomes ready, and its job is stored, or neither."""

    async def run() -> None:
        async with open_desk(tmp_path) as desk:
            caller = desk.doors.context.admin()
            store = desk.jobs.prepare(caller, {"processor": "checksum", "files": ["f_1"]})

            def both(cx: Any) -> str:
                desk.store.put("f_1", b"x", owner="default")
                return store(cx).id

            job = await desk.catalogue.write(both)
            assert json.loads((await desk.job(job)).files) == ["f_1"]

    trio.run(run)


async def test_a_job_gives_its_agent_up_before_a_person_is_refused(tmp_path: Path) -> None:
    catalogue = Catalogue.open(f"sqlite:///{tmp_path}/catalogue.db")
    try:
        env = {**ENV, "HOLDOVER_SESSIONS_MAX_LIVE": "3"}
        desk = Desk(tmp_path, catalogue, env)
        running = {"state": "running", "attempt": 1, "host": "here", "worker": "w"}
        early, late = [await desk.add(processor="analyze", started_at=n, **running) for n in (1, 2)]
        other = await desk.add(processor="checksum", started_at=3, **running)
        await desk.jobs.make_room(1)
        assert (await desk.job(late)).state == "running"
        await desk.jobs.make_room(2)
        assert [(await desk.job(job)).state for job in (early, late, other)] == [
            "running",
            "ready",
            "running",
        ]
        assert (await desk.job(late)).counted == 0
        await desk.jobs.make_room(9)  # there is no more to be had from jobs
        assert (await desk.job(early)).state == "ready"
    finally:
        catalogue.close()
