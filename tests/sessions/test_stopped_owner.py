"""An owner that stands still is taken for dead, and then goes on.

At every step of a launch and of an adoption: owner 1 stops itself there; owner 2, told that 1 is
dead, adopts the session and gives it a prompt of its own; then 1 goes on, or is killed. In the
end the session is 2's and idle, every accepted prompt was acted on once, and never did two agents
live at one time. How the agents are watched stands in `counting_agent`.
"""

import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import holdoverd.sessions
from tests.live.up import wait_until
from tests.sessions.stage import OwnerProcess, Stage, new_prompt

pytestmark = pytest.mark.slow

LAUNCH = (
    "take_lock", "record_launch", "make_spool", "bind_listener", "connect_agent_socket",
    "send_request", "await_answer", "record_live", "greet_keeper", "send_command",
)  # fmt: skip
LOCK_KEPT = {
    "record_launch", "make_spool", "bind_listener", "connect_agent_socket", "send_request",
    "settle_launch",
}  # fmt: skip
"""Stopped there, an owner still has the lock: nobody else can launch until it goes on or dies."""


@dataclass
class Scene:
    """A session and what it was asked so far; `do` is what owner 1 is to do now."""

    stage: Stage
    session: str | None = None
    asked: list[tuple[OwnerProcess, int, str]] = field(default_factory=list)
    """(owner, its command, the prompt in it)"""
    do: Callable[[OwnerProcess], int] = lambda _owner: 0
    bystanders: list[OwnerProcess] = field(default_factory=list)
    """Owners before 1 that stand still as well, and go on with it."""

    @property
    def first(self) -> OwnerProcess:
        return self.stage.owner(1, {1, 2})

    @property
    def second(self) -> OwnerProcess:
        return self.stage.owner(2, {2})

    @property
    def earlier(self) -> OwnerProcess:
        """An owner that both take for dead."""
        return self.stage.owner(3, {1, 2, 3})

    def begin_prompt(self, owner: OwnerProcess) -> int:
        prompt = new_prompt()
        command = owner.begin("prompt", session=self.session, prompt=prompt)
        self.asked.append((owner, command, prompt["id"]))
        return command

    def prompt(self, owner: OwnerProcess) -> str | None:
        """None, or why it was refused."""
        return owner.refusal(self.begin_prompt(owner))

    def begin_create(self, owner: OwnerProcess) -> int:
        prompt = new_prompt()
        command = owner.begin("create", prompt=prompt)
        self.asked.append((owner, command, prompt["id"]))
        return command

    def create(self, owner: OwnerProcess) -> None:
        self.session = owner.answer(self.begin_create(owner))["id"]
        self.wait_state(owner, "idle")

    def outcomes(self) -> dict[str, set[str]]:
        """Prompts by how they were answered.

        Left out: those of killed owners, and of a creation whose session was taken over by
        another owner before it could be told of; both may have happened or not.
        """
        found: dict[str, set[str]] = {"acknowledged": set(), "refused": set()}
        for owner, command, prompt in self.asked:
            if owner.answered(command):
                refused = owner.refusal(command)
                if refused is None:
                    found["acknowledged"].add(prompt)
                elif "taken over while its agent was started" not in refused:
                    found["refused"].add(prompt)
        return found

    def wait_state(self, owner: OwnerProcess, *states: str) -> None:
        def reached() -> bool:
            view = owner.call("view", session=self.session)
            return view["state"] in states and not view["queued"]

        wait_until(reached, f"{self.session} is {' or '.join(states)}")

    def wait_agents(self, count: int) -> list[int]:
        session = self.session or ""
        wait_until(lambda: len(self.stage.agents(session)) == count, f"{count} agents live")
        return self.stage.agents(session)


def creating(scene: Scene) -> None:
    """A new session, with its first prompt."""
    scene.do = scene.begin_create


def resuming(scene: Scene) -> None:
    """A prompt for a session whose agent has left."""
    scene.create(scene.first)
    (agent,) = scene.wait_agents(1)
    os.kill(agent, signal.SIGTERM)
    scene.wait_state(scene.first, "dormant")
    scene.do = scene.begin_prompt


def adopting(scene: Scene) -> None:
    """A prompt for a session whose agent lives, and whose owner lives too but is taken for dead."""
    scene.create(scene.earlier)
    scene.do = scene.begin_prompt


def adopting_a_launch(scene: Scene) -> None:
    """The owner before stands still while it awaits the keeper's answer; the agent runs."""
    scene.create(scene.earlier)
    (agent,) = scene.wait_agents(1)
    os.kill(agent, signal.SIGTERM)
    scene.wait_state(scene.earlier, "dormant")
    scene.earlier.stop_at("await_answer")
    scene.begin_prompt(scene.earlier)
    scene.earlier.wait_stopped("await_answer")
    scene.wait_agents(1)
    scene.bystanders.append(scene.earlier)
    scene.do = scene.begin_prompt


def adopting_a_dead_launch(scene: Scene) -> None:
    """The owner before was killed between its record of a launch and the request for it."""
    scene.create(scene.earlier)
    (agent,) = scene.wait_agents(1)
    os.kill(agent, signal.SIGTERM)
    scene.wait_state(scene.earlier, "dormant")
    scene.earlier.stop_at("bind_listener")
    scene.begin_prompt(scene.earlier)
    scene.earlier.wait_stopped("bind_listener")
    scene.stage.kill(scene.earlier)
    scene.do = scene.begin_prompt


def adopting_a_dead_agent(scene: Scene) -> None:
    """The owner before stands still; its agent and keeper were killed with a prompt unread."""
    scene.create(scene.earlier)
    (agent,) = scene.wait_agents(1)
    os.kill(agent, signal.SIGSTOP)  # it does not read what it is sent
    sent = scene.earlier.steps.count("send_command")
    assert scene.prompt(scene.earlier) is None
    scene.earlier.wait(
        lambda: scene.earlier.steps.count("send_command") > sent, "the prompt was not sent"
    )
    scene.earlier.stop()
    scene.stage.kill_keeper(agent)
    scene.wait_agents(0)
    scene.bystanders.append(scene.earlier)
    scene.do = lambda owner: owner.begin("adopt", session=scene.session)


SCENES: dict[Callable[[Scene], None], list[tuple[str, int]]] = {
    creating: [*[(step, 1) for step in LAUNCH], ("send_command", 2)],
    resuming: [*[(step, 1) for step in LAUNCH], ("send_command", 2)],
    adopting: [
        (step, 1)
        for step in ("adopt", "take_ownership", "load_session", "greet_keeper", "send_command")
    ],
    adopting_a_launch: [
        (step, 1)
        for step in (
            "take_ownership", "load_session", "probe_keeper", "record_live", "greet_keeper",
            "send_command",
        )
    ],
    adopting_a_dead_launch: [
        (step, 1)
        for step in ("load_session", "probe_keeper", "probe_lock", "take_lock", "await_answer")
    ],
    adopting_a_dead_agent: [
        (step, 1)
        for step in (
            "load_session", "greet_keeper", "settle_launch", "record_launch", "await_answer",
            "record_live",
        )
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("o"))
    try:
        yield stage
    finally:
        stage.close()


def knocked(steps: list[str]) -> bool:
    """Whether an owner's steps show it waiting for a lock; a greeting in vain tries it as well."""
    return bool({"take_lock", "probe_lock"} & set(steps)) or steps.count("greet_keeper") > 2


def test_every_step_that_the_code_names_is_stopped_at() -> None:
    folder = Path(holdoverd.sessions.__file__).parent
    named = {
        name
        for file in folder.glob("*.py")
        for name in re.findall(r"\bobserve\(\s*\"(\w+)\"", file.read_text())
    }
    calls = sum(len(re.findall(r"\bobserve\(", file.read_text())) for file in folder.glob("*.py"))
    assert calls == sum(
        len(re.findall(r"\bobserve\(\s*\"\w+\"", file.read_text())) for file in folder.glob("*.py")
    ), "a step's name is written out where it is taken"
    assert named == {step for steps in SCENES.values() for step, _ in steps}


@pytest.mark.parametrize("killed", [False, True], ids=["goes_on", "killed"])
@pytest.mark.parametrize(
    ("set_up", "step", "nth"),
    [(set_up, *step) for set_up, steps in SCENES.items() for step in steps],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_an_owner_that_stands_still_loses_the_session_and_nothing_else(
    stage: Stage, set_up: Callable[[Scene], None], step: str, nth: int, killed: bool
) -> None:
    scene = Scene(stage)
    first, second = scene.first, scene.second
    set_up(scene)
    known = stage.sessions()
    first.stop_at(step, nth)
    command = scene.do(first)
    first.wait_stopped(step)

    if scene.session is None:
        scene.session = next(iter(stage.sessions() - known), None)
    if scene.session is None:
        # Stopped before anything was stored: nothing is there to adopt, or to be left behind.
        assert step in ("take_lock", "record_launch")
        if killed:
            stage.kill(first)
            assert stage.sessions() == known
            return
        first.go_on()
        scene.session = first.answer(command)["id"]
        scene.wait_state(first, "idle")
        command = 0
    heard_off = len(second.steps)
    refused = second.refusal(second.begin("adopt", session=scene.session))
    if refused is not None:
        # The first stands still with its turn to write the catalogue: everybody waits for it.
        assert "written by another instance" in refused
    else:
        assert scene.prompt(second) is None
        if step in LOCK_KEPT and command:
            # It knocks, again and again, and does not get in.
            second.wait(lambda: knocked(second.steps[heard_off:]), "the lock was never tried")
        else:
            scene.wait_state(second, "idle")

    if killed:
        stage.kill(first)
    else:
        first.go_on()
    for bystander in scene.bystanders:
        bystander.go_on()
    if refused is not None:
        second.call("adopt", session=scene.session)
        assert scene.prompt(second) is None
    if not killed and command:
        first.refusal(command)  # obeyed or refused, but answered, and never by a defect
    scene.wait_state(second, "idle")

    for stale in ([] if killed else [first]) + scene.bystanders:
        refused = scene.prompt(stale)
        assert refused is not None, "a stale owner took a prompt"
        assert refused.startswith("unavailable: ")
        assert not stale.call("owns", session=scene.session)
    assert second.call("owns", session=scene.session)
    second.call("tidy")
    stage.check(scene.session, **scene.outcomes())
    assert stage.complaints() == ""
    second.call("end", session=scene.session)
    scene.wait_agents(0)


@pytest.mark.parametrize("killed", [False, True], ids=["goes_on", "killed"])
def test_a_lock_held_for_longer_than_people_wait_is_told_and_still_waited_for(
    stage: Stage, killed: bool
) -> None:
    scene = Scene(stage)
    first, second = scene.first, scene.second
    resuming(scene)
    first.stop_at("record_launch")
    scene.do(first)
    first.wait_stopped("record_launch")
    assert scene.prompt(second) is None

    def told() -> bool:
        view = second.call("view", session=scene.session)
        return bool(view["state"] == "failed" and view["error"]["code"] == "lock_held")

    wait_until(told, "the session says what it waits for")
    if killed:
        stage.kill(first)
    else:
        first.go_on()
    scene.wait_state(second, "idle")
    assert second.call("view", session=scene.session)["error"] is None
    second.call("tidy")
    stage.check(scene.session or "", **scene.outcomes())
    second.call("end", session=scene.session)
    scene.wait_agents(0)


@pytest.mark.parametrize(
    ("step", "lives"), [("make_spool", False), ("send_request", False), ("await_answer", True)]
)
def test_a_session_whose_creator_died_untold_goes_unless_its_agent_lives(
    stage: Stage, step: str, lives: bool
) -> None:
    scene = Scene(stage)
    first, second = scene.first, scene.second
    known = stage.sessions()
    first.stop_at(step)
    scene.begin_create(first)
    first.wait_stopped(step)
    (session,) = stage.sessions() - known
    scene.session = session
    second.call("adopt", session=session)
    stage.kill(first)
    if lives:
        scene.wait_state(second, "idle")
        stage.check(session, **scene.outcomes())
        second.call("end", session=session)
    else:
        wait_until(lambda: stage.sessions() == known, "the session is gone")
        assert stage.heard(session) == []
    scene.wait_agents(0)
    assert stage.complaints() == ""
