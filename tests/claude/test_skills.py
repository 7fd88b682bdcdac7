"""Skills and the real Claude Code: what Holdover shows is what it loads, and sessions hear of changes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from holdoverd.agents import host_frames
from holdoverd.skills import helper
from tests.agents.driver import AgentProcess, of
from tests.claude.conftest import LOOPBACK_ENV, Start
from tests.live.up import Up, running, wait_until
from tests.skills.make import skill
from tests.skills.test_plugins import index_of

pytestmark = [pytest.mark.claude, pytest.mark.slow]

PLACES = ("personal", "near", "far", "below", "first", "second")


def latest_skills(api: str) -> dict[str, str]:
    """{name: description} as the latest request that told of any has them."""
    with urllib.request.urlopen(f"{api}/_requests", timeout=30) as answer:
        recorded = json.load(answer)
    found: list[dict[str, str]] = [one["skills"] for one in recorded if one.get("skills")]
    return found[-1] if found else {}


def market(folder: Path, name: str) -> Path:
    """A marketplace in a folder, with the one plugin ``tools``."""
    plugin = folder / name / "plugins/tools"
    (plugin / ".claude-plugin").mkdir(parents=True)
    (folder / name / ".claude-plugin").mkdir()
    entry = {"name": "tools", "source": "./plugins/tools", "description": f"Of {name}"}
    index = {"name": name, "owner": {"name": "me"}, "plugins": [entry]}
    (folder / name / ".claude-plugin/marketplace.json").write_text(json.dumps(index))
    manifest = {"name": "tools", "version": "1.0.0", "description": "x"}
    (plugin / ".claude-plugin/plugin.json").write_text(json.dumps(manifest))
    return plugin / "skills"


def runs_by_itself(plugin: Path, command: str) -> None:
    """A hook, so that trust has to be asked for."""
    (plugin / "hooks").mkdir()
    hook = {"hooks": [{"type": "command", "command": command}]}
    (plugin / "hooks/hooks.json").write_text(json.dumps({"hooks": {"SessionStart": [hook]}}))


def test_of_all_collisions_the_one_that_is_loaded_is_the_one_that_is_shown(
    tmp_path: Path,
    start: Start,
    claude_binary: Path,
    claude_env: dict[str, str],
    scripted_api: str,
) -> None:
    """Every subset of the places has a skill of one name, and says where it lies."""
    home, work = Path(claude_env["HOME"]), tmp_path / "work"
    (tmp_path / ".git").mkdir()  # the repository that the session's folder lies in
    folders = {
        "personal": home / ".claude/skills",
        "near": work / ".claude/skills",
        "far": tmp_path / ".claude/skills",
        "below": work / "pkg/.claude/skills",
        "first": market(tmp_path / "markets", "first"),
        "second": market(tmp_path / "markets", "second"),
    }
    for size in range(1, len(PLACES) + 1):
        for chosen in itertools.combinations(PLACES, size):
            for place in chosen:
                skill(folders[place], "c-" + "-".join(p[:2] for p in chosen), f"FROM-{place}")
    env = {**claude_env, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    request = {"claude": [str(claude_binary)], "env": {}, "roots": [str(tmp_path)]}
    for name in ("first", "second"):
        source = str(tmp_path / "markets" / name)
        answer = helper.answer(
            {**request, "op": "add_marketplace", "source": source}, str(home), env
        )
        assert answer["ok"], answer
        assert answer["marketplace"]["name"] == name
        asked = {**request, "op": "add", "source": f"tools@{name}", "trust": True}
        answer = helper.answer(asked, str(home), env)
        assert answer["ok"], answer
    file = work / "pkg/file.txt"
    file.write_text("text\n")

    with start(str(uuid4())) as agent:
        agent.send(host_frames.initialize("init"))
        say(agent, f"READ\nThe file: {file}", 1)
        say(agent, "SAY thank you", 2)
    loaded = {
        name: said.split()[0]
        for name, said in latest_skills(scripted_api).items()
        if said.startswith("FROM-")
    }

    answer = helper.answer({**request, "op": "list", "cwd": str(work)}, str(home), env)
    shown = {item["called"]: item["description"] for item in answer["items"] if item["effective"]}
    assert shown == loaded
    assert len(shown) > 60


def say(agent: AgentProcess, text: str, count: int) -> None:
    agent.send(host_frames.user_prompt(str(uuid4()), text, agent_session=str(uuid4())))
    agent.wait_for(of("result"), count=count)


# --- sessions -----------------------------------------------------------------------------------


@pytest.fixture
def up(claude_binary: Path, scripted_api: str) -> Iterator[Up]:
    env = {**LOOPBACK_ENV, "ANTHROPIC_BASE_URL": scripted_api}
    pairs = ", ".join(f"{name} = {json.dumps(value)}" for name, value in env.items())
    with (
        tempfile.TemporaryDirectory(prefix="hk") as folder,
        running(
            Path(folder),
            HOLDOVER_AGENTS_CLAUDE_COMMAND=str(claude_binary),
            HOLDOVER_AGENTS_CLAUDE_ENV=f"{{ {pairs} }}",
        ) as up,
    ):
        yield up


def turn(up: Up, session: str, text: str) -> None:
    """A whole turn; whatever the agent asks for is allowed."""
    done = len([m for m in up.log(session) if m["kind"] == "result"])
    up.prompt(session, text)

    def over() -> bool:
        for asked in up.session(session)["pending"]:
            answer = {"request_id": asked["request_id"], "behavior": "allow"}
            up.request("POST", f"/v1/sessions/{session}/answers", answer)
        return len([m for m in up.log(session) if m["kind"] == "result"]) > done

    wait_until(over, "the turn is over", 90)
    up.wait_state(session, "idle")


def told_of(up: Up, api: str, session: str, name: str) -> bool:
    turn(up, session, "SAY next")
    return name in latest_skills(api)


def test_sessions_that_run_pick_up_what_is_added_and_what_the_agent_writes(
    up: Up, scripted_api: str, tmp_path: Path
) -> None:
    session = up.new_session(agent="claude")["id"]
    turn(up, session, "SAY hello")
    source = skill(tmp_path, "from-the-host", "Added by the command line").parent
    env = {**os.environ, "HOLDOVER_RUNTIME_DIR": str(up.runtime)}
    command = [sys.executable, "-m", "holdover", "skill", "add", str(source)]
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=60)
    # Told at once, being idle: the turn after the one that may have been under way has it.
    assert told_of(up, scripted_api, session, "from-the-host") or told_of(
        up, scripted_api, session, "from-the-host"
    )

    written = up.home / ".claude/skills/by-the-agent"
    front = "---\\nname: by-the-agent\\ndescription: Written in a session\\n---\\nx\\n"
    turn(up, session, f"BASH mkdir -p {written} && printf -- '{front}' > {written}/SKILL.md")
    listed = {item["name"]: item for item in up.call("GET", "/v1/skills")["items"]}
    assert listed["by-the-agent"]["effective"]
    assert listed["by-the-agent"]["problems"] == []
    assert listed["by-the-agent"]["source"] is None

    before = up.call("GET", "/v1/skills")
    up.wait_new_daemon(up.kill_daemon())
    assert up.call("GET", "/v1/skills") == before
    assert told_of(up, scripted_api, session, "from-the-host")
    other = up.new_session(agent="claude")["id"]
    assert told_of(up, scripted_api, other, "by-the-agent")


def test_a_session_that_is_busy_hears_of_a_change_after_its_turn(
    up: Up, scripted_api: str, tmp_path: Path
) -> None:
    session = up.new_session(agent="claude")["id"]
    turn(up, session, "SAY hello")
    up.prompt(session, "SLOW 80")
    up.wait_state(session, "working")
    source = skill(tmp_path, "while-it-worked").parent
    up.call("POST", "/v1/skills", {"source": str(source)})
    assert up.session(session)["state"] == "working"
    up.wait_state(session, "idle")
    assert told_of(up, scripted_api, session, "while-it-worked") or told_of(
        up, scripted_api, session, "while-it-worked"
    )


def test_a_plugin_is_installed_from_within_a_session_and_by_the_door(
    up: Up, claude_binary: Path, scripted_api: str, tmp_path: Path
) -> None:
    for name in ("inside", "outside"):
        skill(market(tmp_path, name), "greet", f"GREETS-{name}")
    runs_by_itself(tmp_path / "outside/plugins/tools", "echo hello")
    program = str(claude_binary)
    session = up.new_session(agent="claude")["id"]
    install = f"{program} plugin marketplace add {tmp_path}/inside && {program} plugin install"
    turn(up, session, f"BASH {install} tools@inside")
    listed = {item["called"]: item for item in up.call("GET", "/v1/skills")["items"]}
    assert listed["tools:greet"]["source"] == "tools@inside"
    assert listed["tools:greet"]["effective"]
    up.call("DELETE", "/v1/skills/tools@inside")
    assert up.call("GET", "/v1/skills")["items"] == []

    up.call("POST", "/v1/marketplaces", {"source": str(tmp_path / "outside")})
    (found,) = up.call("GET", "/v1/marketplaces/outside?q=tools")["items"]
    assert (found["plugin"], found["installed"]) == ("tools@outside", False)
    status, answer = up.request("POST", "/v1/skills", {"source": "tools@outside"})
    assert (status, answer["error"]["executables"]) == (409, ["hook at SessionStart: echo hello"])
    up.call("POST", "/v1/skills", {"source": "tools@outside", "trust": True})
    other = up.new_session(agent="claude")["id"]
    assert told_of(up, scripted_api, other, "tools:greet")
    assert latest_skills(scripted_api)["tools:greet"].startswith("GREETS-outside")


def test_claude_code_takes_a_marketplace_of_five_hundred_entries_some_of_them_broken(
    tmp_path: Path, claude_binary: Path, claude_env: dict[str, str]
) -> None:
    skill(market(tmp_path, "large"), "greet")
    place = tmp_path / "large/.claude-plugin/marketplace.json"
    listed = json.loads(place.read_text())
    listed["plugins"] += index_of(499)
    place.write_text(json.dumps(listed))
    request = {"claude": [str(claude_binary)]}
    home = claude_env["HOME"]
    asked = {**request, "op": "add_marketplace", "source": str(tmp_path / "large")}
    answer = helper.answer(asked, home, claude_env)
    assert answer["ok"], answer
    found = helper.answer({"op": "browse", "name": "large", "q": "tools"}, home, claude_env)
    assert "tools@large" in [item["plugin"] for item in found["items"]]
    asked = {**request, "op": "add", "source": "tools@large", "trust": True}
    assert helper.answer(asked, home, claude_env)["ok"]
    # What its index names and does not have is refused by name, and nothing else is lost.
    asked = {**request, "op": "add", "source": "p-000@large", "trust": True}
    error = helper.answer(asked, home, claude_env)["error"]
    assert "p-000" in error["message"]
    assert [
        item["called"] for item in helper.answer({"op": "list"}, home, claude_env)["items"]
    ] == ["tools:greet"]
