"""A conversation begun with Claude Code alone: gone on with here, and handed back."""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.claude.conftest import LOOPBACK_ENV
from tests.live.up import Up, running, wait_until

pytestmark = [pytest.mark.claude, pytest.mark.slow]


@pytest.fixture
def up(claude_binary: Path, scripted_api: str) -> Iterator[Up]:
    with (
        tempfile.TemporaryDirectory(prefix="ha") as folder,
        running(
            Path(folder),
            HOLDOVER_AGENTS_CLAUDE_COMMAND=str(claude_binary),
            HOLDOVER_AGENTS_CLAUDE_ENV="{ "
            + ", ".join(
                f"{name} = {json.dumps(value)}"
                for name, value in {**LOOPBACK_ENV, "ANTHROPIC_BASE_URL": scripted_api}.items()
            )
            + " }",
        ) as up,
    ):
        yield up


def alone(up: Up, program: Path, api: str, *arguments: str) -> str:
    """Claude Code as a person runs it, in the folder of the conversation."""
    return subprocess.run(
        [program, "-p", *arguments],
        cwd=up.home / "work",
        env={
            **LOOPBACK_ENV,
            "ANTHROPIC_BASE_URL": api,
            "HOME": str(up.home),
            "PATH": "/usr/bin:/bin",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout


def said(up: Up, session: str) -> str:
    return json.dumps([m for m in up.log(session) if m["kind"] == "assistant"])


def test_a_conversation_is_gone_on_with_and_handed_back(
    up: Up, claude_binary: Path, scripted_api: str
) -> None:
    (up.home / "work").mkdir()
    conversation = str(uuid4())
    alone(up, claude_binary, scripted_api, f"--session-id={conversation}", "SAY at first")
    spec = {"agent_session": conversation, "cwd": str(up.home / "work"), "agent": "claude"}
    made = up.call("POST", "/v1/sessions/adopt", spec)
    assert made["agent_session"] == conversation
    session = made["id"]
    # What was said before stands in the log, as if it had been said here.
    *before, notice = up.log(session)
    assert (notice["kind"], notice["body"]["code"]) == ("notice", "adopted")
    assert [m["kind"] for m in before if m["kind"] in ("user", "assistant")][:2] == [
        "user",
        "assistant",
    ]
    assert "SAY at first" in json.dumps(before[0]["body"]["message"]["content"])
    assert "at first" in said(up, session)
    # Twice at once would be two agents with one memory.
    status, answer = up.request("POST", "/v1/sessions/adopt", spec)
    assert (status, answer["error"]["code"]) == (409, "conflict")
    assert session in answer["error"]["message"]

    up.prompt(session, "SAY here as well")
    wait_until(lambda: "here as well" in said(up, session), "the agent answers")
    up.wait_state(session, "idle")
    up.call("DELETE", f"/v1/sessions/{session}")
    up.wait_state(session, "ended")
    wait_until(lambda: not up.session(session)["error"], "it has ended well")

    # Handed back: the terminal's agent knows what was said before and here.
    alone(up, claude_binary, scripted_api, f"--resume={conversation}", "SAY and back again")
    (file,) = up.home.glob(f".claude/projects/*/{conversation}.jsonl")
    words = file.read_text()
    assert all(text in words for text in ("at first", "here as well", "and back again"))
    # And once more, since the session here has ended.
    assert up.call("POST", "/v1/sessions/adopt", spec)["id"] != session


def test_what_is_no_conversation_of_the_account_is_refused_and_leaves_nothing(up: Up) -> None:
    (up.home / "work").mkdir()
    before = up.call("GET", "/v1/sessions")["items"]
    spec = {"agent_session": str(uuid4()), "cwd": str(up.home / "work"), "agent": "claude"}
    status, answer = up.request("POST", "/v1/sessions/adopt", spec)
    assert (status, answer["error"]["code"]) == (422, "unprocessable")
    assert "no conversation of that id" in answer["error"]["message"]
    for wrong in ({**spec, "agent_session": "../x"}, {**spec, "agent": "demo"}):
        assert up.request("POST", "/v1/sessions/adopt", wrong)[0] == 422
    assert up.request("POST", "/v1/sessions/adopt", {"cwd": "/"})[0] == 400
    assert up.call("GET", "/v1/sessions")["items"] == before
