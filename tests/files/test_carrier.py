"""Files between storage and a workspace: by a keeper's process, beneath the workspace alone."""

import getpass
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from holdoverd.callers import Caller
from holdoverd.catalogue.records import SessionRow
from holdoverd.errors import Conflict, Forbidden, LaunchError, NotFound, Unavailable, Unprocessable
from holdoverd.files import rules
from holdoverd.files.carrier import Carrier
from holdoverd.keeper import carry
from tests.catalogue.examples import a_session
from tests.files.house import House, sha256

ADMIN = Caller("default", "holdover-agent", frozenset({"admin"}), None, admin=True)


class Place:
    """A workspace with whoever carries for it."""

    def __init__(self, house: House, carrier: Carrier, cwd: Path) -> None:
        self.house, self.carrier, self.cwd = house, carrier, cwd

    async def wait_for(self, file_id: str) -> Any:
        with trio.fail_after(60):
            while True:
                file = await self.house.call("GET", f"/v1/files/{file_id}")
                if file["state"] != "uploading":
                    return file
                await trio.sleep(0.05)


@asynccontextmanager
async def open_place(house: House, folder: Path, **session: object) -> AsyncIterator[Place]:
    """The account's agent socket is played as `holdover up` does: a keeper for each connection."""
    cwd = folder / "work"
    cwd.mkdir()
    agents = folder / "agents"
    agents.mkdir()
    account = getpass.getuser()
    row = a_session(cwd=str(cwd), account=account, host="here", owner="default", **session)
    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await listener.bind(str(agents / f"{account}.sock"))
    listener.listen(8)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(folder)}

    async def accept() -> None:
        while True:
            connection, _ = await listener.accept()
            os.set_blocking(connection.fileno(), True)
            with connection:
                process = await trio.lowlevel.open_process(
                    [sys.executable, "-m", "holdoverd.keeper"],
                    stdin=connection.fileno(),
                    env=environment,
                )
            nursery.start_soon(reap, process)

    async def reap(process: trio.Process) -> None:
        with trio.CancelScope(shield=True):  # hung up on, it is gone in no time
            await process.wait()

    async def find(_caller: Caller, session: str) -> SessionRow:
        if session != row.id:
            raise NotFound("none")
        return row

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        files, uploads = house.services.files, house.services.uploads
        carrier = Carrier(files, uploads, agents, [str(folder)], "here", nursery, find)
        house.doors.context.carrier = carrier
        yield Place(house, carrier, cwd)
        nursery.cancel_scope.cancel()
    listener.close()


@pytest.fixture
async def place(house: House, tmp_path: Path) -> AsyncIterator[Place]:
    async with open_place(house, tmp_path) as found:
        yield found


SESSION = a_session().id


@pytest.mark.slow
async def test_file_of_the_workspace_comes_out(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "PART_BYTES", 5 * 2**20)
    data = b"1" * (5 * 2**20) + b"2" * (5 * 2**20) + b"tail"
    (place.cwd / "out").mkdir()
    (place.cwd / "out" / "ä b.bin").write_bytes(data)
    path = f"/v1/sessions/{SESSION}/files"
    answer = await place.house.ask("POST", path, {"path": "out/ä b.bin"})
    assert answer.status == 202, answer.body
    file = answer.json()["file"]
    assert (file["name"], file["size"], file["state"]) == ("ä b.bin", len(data), "uploading")
    ready = await place.wait_for(file["id"])
    assert (ready["state"], ready["owner"]) == ("ready", "default")
    assert await place.house.download(file["id"]) == data


@pytest.mark.slow
async def test_only_files_beneath_the_workspace_come_out(place: Place, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not yours")
    (place.cwd / "link").symlink_to(tmp_path / "secret")
    (place.cwd / "up").symlink_to("..")
    os.mkfifo(place.cwd / "fifo")
    for path in ("link", "up/secret", "fifo", "."):
        with pytest.raises(Unprocessable):
            await place.carrier.take_out(ADMIN, SESSION, path)
    for path in ("../secret", str(tmp_path / "secret"), "a/../../secret", "/"):
        with pytest.raises(Unprocessable):
            await place.carrier.take_out(ADMIN, SESSION, path)
    with pytest.raises(NotFound, match="no none in the workspace"):
        await place.carrier.take_out(ADMIN, SESSION, "none")
    with pytest.raises(NotFound):
        await place.carrier.take_out(ADMIN, "s_other", "none")
    assert await place.house.states() == {}


@pytest.mark.slow
async def test_file_that_shrinks_meanwhile_leaves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = place.cwd / "a"
    file.write_bytes(b"12345")
    urls = place.house.services.uploads.urls

    async def cut(*arguments: Any, **options: Any) -> Any:
        file.write_bytes(b"1")
        return await urls(*arguments, **options)

    monkeypatch.setattr(place.house.services.uploads, "urls", cut)
    made = await place.carrier.take_out(ADMIN, SESSION, "a")
    assert (await place.wait_for(str(made["id"])))["state"] == "deleted"
    assert await place.house.keys() == []


@pytest.mark.slow
async def test_attachments_are_in_the_workspace_before_the_prompt(place: Place) -> None:
    house = place.house
    data = os.urandom(100_000)
    one = await house.put_file(data, 'a "b"\n.txt', sha256=sha256(data))
    two = await house.put_file(b"", "empty")
    prompt = {"id": "p", "text": "look", "attachments": [one["id"], two["id"]]}
    said = await place.carrier.attach(ADMIN, SESSION, prompt)
    assert said["id"] == "p"
    assert "attachments" not in said
    found = place.cwd / "attachments" / one["id"] / one["name"]
    assert found.read_bytes() == data
    assert (place.cwd / "attachments" / two["id"] / "empty").read_bytes() == b""
    assert str(said["text"]).startswith("look\n\nAttached files")
    assert f'"attachments/{one["id"]}/a \\"b\\"\\n.txt"' in str(said["text"])
    inode = found.stat().st_ino
    assert await place.carrier.attach(ADMIN, SESSION, prompt) == said
    assert found.stat().st_ino == inode  # what is there is not carried again
    found.write_bytes(b"x" * 100_000)
    await place.carrier.attach(ADMIN, SESSION, prompt)
    assert found.read_bytes() == data
    blocks = {"id": "p", "content": [{"type": "text", "text": "x"}], "attachments": [two["id"]]}
    content = (await place.carrier.attach(ADMIN, SESSION, blocks))["content"]
    assert isinstance(content, list)
    assert len(content) == 2
    left = [path for path in place.cwd.rglob("*") if path.name.endswith(".part")]
    assert left == []


@pytest.mark.slow
async def test_attachment_goes_nowhere_else(place: Place, tmp_path: Path) -> None:
    file = await place.house.put_file(b"hello")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (place.cwd / "attachments").symlink_to(elsewhere)
    prompt = {"text": "x", "attachments": [file["id"]]}
    with pytest.raises(Unprocessable):
        await place.carrier.attach(ADMIN, SESSION, prompt)
    assert list(elsewhere.iterdir()) == []
    writer = Caller("default", "a", frozenset({"sessions"}), "t_1", admin=False)
    with pytest.raises(Forbidden):
        await place.carrier.attach(writer, SESSION, prompt)
    stranger = Caller("bob", "a", frozenset({"sessions", "read"}), "t_2", admin=False)
    with pytest.raises(NotFound):
        await place.carrier.attach(stranger, SESSION, prompt)
    uploading = await place.house.new(b"x")
    with pytest.raises(Conflict):
        await place.carrier.attach(
            ADMIN, SESSION, {"text": "x", "attachments": [uploading["file"]["id"]]}
        )


@pytest.mark.slow
async def test_nobody_there_is_a_clear_error(place: Place) -> None:
    (socket,) = place.carrier._agents.iterdir()
    socket.unlink()
    with pytest.raises(Unavailable, match="agent socket"):
        await place.carrier.take_out(ADMIN, SESSION, "a")


@pytest.mark.parametrize("path", ["", ".", "/", "/a", "..", "a/../b", "../a"])
def test_what_is_no_path_beneath_a_workspace(path: str) -> None:
    with pytest.raises(LaunchError):
        carry.check_path(path)


def test_request_is_read_whole_or_refused() -> None:
    data = carry.carry_request(way="out", cwd="/srv/x", roots=["/srv"], path="a/b")
    for cut in range(len(data)):
        assert carry.parse_request(data[:cut]) is None
    request = carry.parse_request(data)
    assert request is not None
    assert (request.way, request.path, request.roots) == ("out", "a/b", ("/srv",))
    for bad in (
        data + b"x",
        b"CARRY 2 2\n{}",
        b"CARRY 1 2\n{}",
        b"CARRY 1 9999999\n",
        b"CARRY 1 x\n",
        b"x" * 70,
        carry.carry_request(way="up", cwd="/srv", path="a"),
        carry.carry_request(way="in", cwd="/srv", path="a\0"),
        carry.carry_request(way="in", cwd="/srv", path="a", size=-1),
    ):
        with pytest.raises(LaunchError):
            carry.parse_request(bad)
