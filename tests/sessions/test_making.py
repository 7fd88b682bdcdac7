"""New sessions that need something first: a clone in their workspace, their messages from before."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection

from holdoverd.errors import Conflict, Unprocessable
from tests.keeper.test_history import record, write
from tests.sessions.house import ADMIN, STAYS, House, a_house, wait_until
from tests.skills.test_hostile import git, git_server

pytestmark = pytest.mark.slow

TELLS_ARGUMENTS = """
import json, sys
print(json.dumps({"type": "assistant", "uuid": "a0000000-0000-4000-8000-000000000000",
                  "message": {"content": [{"type": "text", "text": " ".join(sys.argv)}]}}), flush=True)
for _ in sys.stdin: pass
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The account's; keepers take it from their environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    work = tmp_path / "served" / "r"
    work.mkdir(parents=True)
    git(work, "init", "-q", "-b", "trunk")
    (work / "a.txt").write_text("one")
    git(work, "add", ".")
    git(work, "commit", "-qm", "1")
    with git_server(tmp_path / "served") as url:
        yield f"{url}/r/.git"


async def log(house: House, session: str) -> list[Any]:
    found: list[Any] = json.loads(await house.sessions.log(ADMIN, session, 0, 500))["messages"]
    return found


async def none_stored(house: House) -> bool:
    def read(cx: Connection) -> str:
        return house.sessions.list_sessions(cx, ADMIN)

    return json.loads(await house.catalogue.read(read))["items"] == []


async def test_a_repository_is_in_the_workspace_before_the_agent_is(
    tmp_path: Path, served: str
) -> None:
    async with a_house(tmp_path, STAYS) as house:
        made = json.loads(
            await house.sessions.create(ADMIN, {"repo": {"url": served, "ref": "trunk"}})
        )
        assert made["cwd"] == f"{tmp_path}/workspaces/{made['id']}"
        assert (Path(made["cwd"]) / "a.txt").read_text() == "one"


async def test_a_session_whose_repository_cannot_be_had_is_not_stored(
    tmp_path: Path, served: str
) -> None:
    async with a_house(tmp_path, STAYS) as house:
        for repo in (
            {"url": "file:///etc"},
            {"url": served.replace("/r/", "/none/")},
            {"url": served, "ref": "nowhere"},
        ):
            with pytest.raises(Unprocessable) as refused:
                await house.sessions.create(ADMIN, {"repo": repo})
            assert refused.value.extra["reason"] == "repo_refused"
        assert await none_stored(house)
        assert not any((tmp_path / "workspaces").iterdir())


async def test_an_adopted_conversation_brings_what_was_said(tmp_path: Path) -> None:
    conversation = str(uuid4())
    use = {"type": "tool_use", "id": "t1", "name": "Agent", "input": {"description": "Look"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "seen"}
    path = write(
        tmp_path / f"claude/projects/-srv/{conversation}.jsonl",
        record("u1", content="what is here?"),
        record("a1", "assistant", [use]),
        record("u2", content=[result], toolUseResult={"agentId": "x1"}),
        record("a2", "assistant", [{"type": "text", "text": "a file"}]),
    )
    write(path.with_suffix("") / "subagents/agent-x1.jsonl", record("i1", isSidechain=True))
    env = {"CLAUDE_CONFIG_DIR": str(tmp_path / "claude")}
    async with a_house(tmp_path, TELLS_ARGUMENTS, preset="claude", env=env) as house:
        spec = {"agent_session": conversation, "cwd": str(tmp_path)}
        made = json.loads(await house.sessions.create(ADMIN, spec))
        session = made["id"]
        owned = await house.owned(session)
        await wait_until(lambda: owned.hub.committed >= 7, "the agent has spoken")
        said = await log(house, session)
        assert [(m["kind"], m["thread"], m["uuid"], m["n"]) for m in said[:6]] == [
            ("user", "main", "u1", 1),
            ("assistant", "main", "a1", 2),
            ("user", "t1", "i1", 1),
            ("user", "main", "u2", 3),
            ("assistant", "main", "a2", 4),
            ("notice", "main", None, 5),
        ]
        assert said[0]["at"] == 1767323045678
        assert said[0]["body"]["message"]["content"] == "what is here?"
        assert said[5]["body"]["code"] == "adopted"
        assert "stands above" in said[5]["body"]["text"]
        assert f"--resume={conversation}" in said[6]["body"]["message"]["content"][0]["text"]
        (thread,) = (await house.view(session))["threads"][1:]
        assert (thread["thread"], thread["title"], thread["state"]) == ("t1", "Look", "done")
        with pytest.raises(Conflict, match=session):
            await house.sessions.create(ADMIN, spec)


async def test_what_no_transcript_holds_is_not_adopted(tmp_path: Path) -> None:
    env = {"CLAUDE_CONFIG_DIR": str(tmp_path / "claude")}
    async with a_house(tmp_path, STAYS, preset="claude", env=env) as house:
        with pytest.raises(Unprocessable) as refused:
            await house.new(agent_session=str(uuid4()))
        assert refused.value.extra["reason"] == "no_conversation"
        assert await none_stored(house)


async def test_an_agent_of_ones_own_is_told_which_conversation_to_go_on_with(
    tmp_path: Path,
) -> None:
    conversation = str(uuid4())
    args = ["--go-on={agent_session}"]
    async with a_house(tmp_path, TELLS_ARGUMENTS, resume_args=args) as house:
        session = (await house.new(agent_session=conversation))["id"]
        owned = await house.owned(session)
        await wait_until(lambda: owned.hub.committed >= 2, "the agent has spoken")
        notice, said = await log(house, session)
        assert notice["body"]["code"] == "adopted"
        assert f"--go-on={conversation}" in said["body"]["message"]["content"][0]["text"]
    (tmp_path / "other").mkdir()
    async with a_house(tmp_path / "other", STAYS) as house:
        with pytest.raises(Unprocessable, match="resume_args"):
            await house.new(agent_session=str(uuid4()))
