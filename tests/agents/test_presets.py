"""How agents are started: nothing of a client's choosing becomes a flag of its own."""

import pytest

from holdoverd.agents.presets import AgentSettings, build_launch, check_model
from holdoverd.errors import BadRequest

SESSION = "0f0e0d0c-0b0a-4908-8706-050403020100"
CLAUDE = AgentSettings(name="claude", command=("claude",), env={"A": "b"}, preset="claude")
DEMO = AgentSettings(name="demo", command=("python", "-m", "demo"), preset="demo")


def test_claude_gets_the_flags_of_its_protocol() -> None:
    launch = build_launch(
        CLAUDE, agent_session=SESSION, resume=False, model="opus", permission_mode="plan"
    )
    assert launch.argv == (
        "claude",
        "-p",
        "--output-format=stream-json",
        "--input-format=stream-json",
        "--verbose",
        "--include-partial-messages",
        "--replay-user-messages",
        "--permission-prompt-tool=stdio",
        f"--session-id={SESSION}",
        "--permission-mode=plan",
        "--model=opus",
    )
    assert launch.env["A"] == "b"
    assert launch.env["CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS"] == "1"
    assert launch.transcripts == (f"~/.claude/projects/*/{SESSION}.jsonl",)


def test_claude_resumes_by_id_in_the_default_mode() -> None:
    argv = build_launch(CLAUDE, agent_session=SESSION, resume=True).argv
    assert argv[-2:] == (f"--resume={SESSION}", "--permission-mode=default")
    assert not any(flag.startswith("--session-id") for flag in argv)


def test_the_operators_environment_wins_and_moves_the_transcripts() -> None:
    env = {"CLAUDE_CODE_ENTRYPOINT": "mine", "CLAUDE_CONFIG_DIR": "/srv/claude/"}
    agent = AgentSettings(name="c", command=("claude",), env=env, preset="claude")
    launch = build_launch(agent, agent_session=SESSION, resume=False)
    assert launch.env["CLAUDE_CODE_ENTRYPOINT"] == "mine"
    assert launch.transcripts == (f"/srv/claude/projects/*/{SESSION}.jsonl",)


def test_the_demo_gets_its_own_flags() -> None:
    launch = build_launch(DEMO, agent_session=SESSION, resume=True, model="m")
    assert launch.argv == ("python", "-m", "demo", f"--resume={SESSION}", "--model=m")
    assert launch.transcripts == (f"~/.local/state/holdover-demo/{SESSION}.jsonl",)


def test_a_bare_command_gets_nothing_added_but_its_resume_arguments() -> None:
    agent = AgentSettings(
        name="x", command=("prog", "{agent_session}"), resume_args=("--go={agent_session}", "on")
    )
    fresh = build_launch(agent, agent_session=SESSION, resume=False, model="m")
    assert (fresh.argv, fresh.env, fresh.transcripts) == (("prog", "{agent_session}"), {}, ())
    again = build_launch(agent, agent_session=SESSION, resume=True)
    assert again.argv == ("prog", "{agent_session}", f"--go={SESSION}", "on")


@pytest.mark.parametrize(
    "session",
    ["", "x", "--help", "../../etc/passwd", SESSION + "\n", "{" + SESSION + "}", SESSION[:-1],
     SESSION.replace("-", ""), "urn:uuid:" + SESSION, SESSION + "; rm -rf /"],
)  # fmt: skip
@pytest.mark.parametrize("resume", [True, False])
def test_only_a_uuid_in_its_usual_form_becomes_a_flag(session: str, resume: bool) -> None:
    for agent in (CLAUDE, DEMO):
        with pytest.raises(BadRequest, match="is not a UUID"):
            build_launch(agent, agent_session=session, resume=resume)


@pytest.mark.parametrize(
    "model", ["", "-x", "--model", "a b", "a\n", "a,b", "(x)", "$(id)", "a" * 201, "é"]
)
def test_only_names_of_models_become_a_flag(model: str) -> None:
    with pytest.raises(BadRequest, match="is not a model's name"):
        build_launch(DEMO, agent_session=SESSION, resume=False, model=model)


@pytest.mark.parametrize(
    "model",
    ["opus", "claude-opus-4-5-20251101", "claude-sonnet-4-5[1m]", "us.anthropic.claude-x-v1:0",
     "arn:aws:bedrock:eu-1:1:inference-profile/x", "a" * 200],
)  # fmt: skip
def test_real_names_of_models_pass(model: str) -> None:
    assert check_model(model) == model


def test_an_unknown_permission_mode_is_refused() -> None:
    with pytest.raises(BadRequest, match="permission_mode"):
        build_launch(CLAUDE, agent_session=SESSION, resume=False, permission_mode="--x")
