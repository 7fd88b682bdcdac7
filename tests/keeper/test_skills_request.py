"""The request about skills: its bytes, and a real keeper that answers one instead of a launch."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from holdoverd.errors import LaunchError
from holdoverd.keeper import skills_request
from holdoverd.skills import changes
from holdoverd.skills.tree import Entry
from tests.keeper.bench import bench
from tests.skills.make import skill


def answer_of(connection: socket.socket) -> object:
    received = b""
    while data := connection.recv(65536):
        received += data
    return json.loads(received)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"SKILLS 2 2\n{}", "begin with 'SKILLS 1"),
        (b"SKILLS 1 9999999\n{}", "the most is 1048576"),
        (b"SKILLS 1 2\n[]", "not a JSON object"),
        (b"SKILLS 1 2\n{x", "not JSON"),
        (b"SKILLS 1 20\n{}", "cut off"),
        (b"SKILLS " + b"1" * 80, "no header line"),
    ],
)
def test_a_malformed_request_is_refused_by_what_is_wrong(data: bytes, named: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(LaunchError, match=named.replace("'", ".")):
            skills_request.receive(theirs, 5)


def test_a_keeper_answers_about_skills_and_goes(tmp_path: Path) -> None:
    home = tmp_path / "home"
    skill(home / ".claude/skills", "mine")
    with bench() as one:
        inherited = {**os.environ, "HOME": str(home)}
        with one.start(inherited=inherited) as connection:
            data = skills_request.encode_request({"op": "list"})
            for byte in range(0, len(data), 5):
                connection.sendall(data[byte : byte + 5])
            answer = answer_of(connection)
        assert isinstance(answer, dict)
        assert [item["name"] for item in answer["items"]] == ["mine"]


def test_no_agent_starts_between_the_old_skills_and_the_new(tmp_path: Path) -> None:
    home = tmp_path / "home"
    skill(home / ".claude/skills", "old")
    with pytest.raises(KeyboardInterrupt):
        cut_off(home)
    assert not (home / ".claude/skills/old").exists()
    with bench() as one:
        one.launched(("/bin/true",), inherited={"HOME": str(home)})
    assert (home / ".claude/skills/old/SKILL.md").read_bytes() == b"new"
    assert not (home / changes.PLACE / "journal.json").exists()


def stop(step: str) -> None:
    if step == "move_new":
        raise KeyboardInterrupt


def cut_off(home: Path) -> None:
    """A helper that ends with the old skill moved away and the new one not there yet."""
    store = changes.Store(str(home), stop)
    with store.locked():
        version = store.keep({"SKILL.md": Entry("file", b"new")})
        store.commit([changes.Put(home / ".claude/skills/old", version)])
