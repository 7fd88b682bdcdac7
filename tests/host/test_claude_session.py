"""The real Claude Code in an installed Holdover, under a real systemd.

It speaks to a scripted Messages API inside the machine, whose network is its own; nothing here
leaves it. The test's clients come in by both doors from outside.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import trio

from holdoverd import settings
from tests.claude.install import FOLDER, InstallError, install
from tests.host.machine import CGROUPS, SOURCE_INSIDE, Machine
from tests.live.up import Api, wait_until
from tests.live.watcher import Watcher, shown
from tests.needs import needs_browser
from tests.web.browsers import chromium
from tests.web.conftest import picture
from tests.web.conversation import attach, rows, send, words

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.host, pytest.mark.claude, pytest.mark.slow]

UNIT = "holdoverd@1.service"
PROGRAM = "/usr/local/lib/test-claude/claude"
CONFIG = "/etc/holdover/holdover.d/test-claude.toml"
ADMIN = "/run/holdover/admin.sock"

WAIT_S = 120.0
"""A timeout, not a figure: Claude Code starts in one or two seconds and answers at once."""


@pytest.fixture(scope="module")
def api(host: Machine) -> Iterator[Api]:
    """The admin door of a daemon whose agent `claude` is the real one."""
    try:
        program = install(FOLDER)
    except InstallError as error:
        pytest.skip(f"no Claude Code: {error}")
    inside = host.path(PROGRAM)
    inside.parent.mkdir(mode=0o755)
    shutil.copy(program, inside)
    script = f"{SOURCE_INSIDE}/tests/claude/api.py"
    model = host.popen(["/usr/bin/python3", "-I", script], stdout=subprocess.PIPE, text=True)
    try:
        assert model.stdout is not None
        env = {
            "ANTHROPIC_BASE_URL": model.stdout.readline().split()[-1],
            "ANTHROPIC_API_KEY": "dummy",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_ERROR_REPORTING": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
        lines = ["[agents.claude]", f"command = {json.dumps([PROGRAM])}", "[agents.claude.env]"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in env.items()]
        host.write(CONFIG, "\n".join(lines) + "\n")
        host.systemctl("restart", UNIT)
        yield Api(host.path(ADMIN))
    finally:
        model.kill()
        model.wait()
        if model.stdout is not None:
            model.stdout.close()
        host.run(["rm", "-rf", CONFIG, str(Path(PROGRAM).parent)])
        host.systemctl("restart", UNIT)


@pytest.fixture
def session(api: Api) -> Iterator[str]:
    """A session with Claude Code that has been asked nothing yet; ended afterwards."""
    name = api.new_session(agent="claude")["id"]
    yield name
    api.call("DELETE", f"/v1/sessions/{name}")


@pytest.fixture
def colleague(host: Machine, api: Api, session: str) -> Iterator[Watcher]:
    """A viewer of another owner, with a token, by the public door."""
    api.call("PATCH", f"/v1/sessions/{session}", {"share": "write"})
    token = api.call(
        "POST",
        "/v1/tokens",
        {"name": "second client", "owner": "colleague", "scopes": ["read", "sessions"]},
    )
    yield Watcher(
        api.admin_socket, session, dial=lambda: host.connect_tcp(8780), token=token["token"]
    )
    api.call("DELETE", f"/v1/tokens/{token['id']}")


def agent_process(session: str) -> tuple[int, str, str]:
    """(pid, unit, when it was started) of the one agent of `session`, as this machine sees it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            program = (entry / "cmdline").read_bytes().split(b"\0")[0]
            if program != PROGRAM.encode():
                continue
            environ = (entry / "environ").read_bytes().split(b"\0")
            groups = (entry / "cgroup").read_text()
            started = (entry / "stat").read_text().rpartition(") ")[2].split()[19]
        except OSError:
            continue  # ended meanwhile
        unit = re.search(r"holdover-agent-[^/\n]+\.service", groups)
        if f"HOLDOVER_SESSION_ID={session}".encode() in environ and unit:
            found.append((int(entry.name), unit[0], started))
    (one,) = found
    return one


def memory_limit(pid: int) -> Path:
    """Where the kernel tells the limit of the group that a process is in."""
    group = ""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path(f"{CGROUPS}/memory{group}/memory.limit_in_bytes")
    return Path(f"{CGROUPS}{group}/memory.max")


async def say(watcher: Watcher, **frame: Any) -> None:
    await watcher.connection.send_message(json.dumps(frame))


async def prompt(watcher: Watcher, *lines: str) -> str:
    """Send `lines` as one prompt from this client; its id."""
    prompt_id = str(uuid4())
    await say(watcher, type="prompt", id=prompt_id, text="\n".join(lines))
    return prompt_id


def of_kind(watcher: Watcher, kind: str) -> list[Any]:
    return [message for message in watcher.messages if message["kind"] == kind]


def count(kind: str, wanted: int = 1) -> Callable[[Watcher], bool]:
    return lambda watcher: len(of_kind(watcher, kind)) >= wanted


def open_request(watcher: Watcher) -> str:
    """The latest permission that is asked for."""
    request_id: str = of_kind(watcher, "permission")[-1]["request_id"]
    return request_id


def texts(messages: list[Any]) -> list[str]:
    """What the agent said."""
    return [
        block["text"]
        for message in messages
        if message["kind"] == "assistant"
        for block in message["body"]["message"]["content"]
        if block["type"] == "text"
    ]


def workspace(host: Machine, api: Api, session: str) -> Path:
    return host.path(api.session(session)["cwd"])


async def test_a_second_client_answers_for_the_first_and_everybody_has_the_same_log(
    host: Machine, api: Api, session: str, colleague: Watcher
) -> None:
    first = Watcher(api.admin_socket, session)
    async with trio.open_nursery() as nursery:
        for watcher in (first, colleague):
            nursery.start_soon(watcher.run)
            await watcher.wait(lambda w: w.live.is_set(), WAIT_S)
        command = "echo by the tool >made; id -un; cat made"
        prompt_id = await prompt(first, "SAY Let me look.", f"BASH {command}")
        for watcher in (first, colleague):
            await watcher.wait(count("permission"), WAIT_S)
        assert api.session(session)["state"] == "waiting"
        assert not (workspace(host, api, session) / "made").exists()
        await say(colleague, type="answer", request_id=open_request(colleague), behavior="allow")
        for watcher in (first, colleague):
            await watcher.wait(count("result"), WAIT_S)
        late = Watcher(api.admin_socket, session)
        nursery.start_soon(late.run)
        await late.wait(lambda w: w.live.is_set(), WAIT_S)
        nursery.cancel_scope.cancel()

    made = workspace(host, api, session) / "made"
    assert made.read_text() == "by the tool\n"
    assert made.stat().st_uid == host.account("holdover-agent")[0]

    # One log, in which everything is once, and which everybody was sent: live, or later.
    log = api.log(session)
    assert [message["seq"] for message in log] == list(range(1, len(log) + 1))
    assert first.messages == colleague.messages == late.messages == log
    uuids = [message["uuid"] for message in log if message["uuid"]]
    assert len(uuids) == len(set(uuids))

    story = [
        (message["kind"], block["type"])
        for message in log
        if message["kind"] in ("user", "assistant")
        for content in [message["body"]["message"]["content"]]
        for block in ([{"type": "prompt"}] if isinstance(content, str) else content)
    ]
    assert [kind for kind, _ in story] == ["user", "assistant", "assistant", "user", "assistant"]
    assert [block for _, block in story][1:] == ["text", "tool_use", "tool_result", "text"]
    assert [m["client_id"] for m in log if m["client_id"]] == [prompt_id]
    assert texts(log)[0] == "Let me look."
    assert texts(log)[1] == "done: holdover-agent"
    (asked,) = of_kind(first, "permission")
    (answer,) = of_kind(first, "answer")
    assert asked["request_id"] == answer["request_id"]
    assert (answer["body"]["outcome"], answer["body"]["answered_by"]) == ("allow", "colleague")
    (result,) = of_kind(first, "result")
    assert not result["body"]["is_error"]
    view = api.wait_state(session, "idle")  # said by the agent a moment after its result
    assert (view["pending"], view["queued"]) == ([], [])
    assert view["last_seq"] == len(log)


async def test_a_turn_outlives_the_daemon_at_every_stage(
    host: Machine, api: Api, session: str, colleague: Watcher
) -> None:
    """Killed in mid-sentence, restarted with an open permission, killed under a running tool."""
    first = Watcher(api.admin_socket, session)
    watchers = (first, colleague)
    words = " ".join(f"word{n}" for n in range(1, 101))

    async def end_daemon(*how: str) -> None:
        before = host.show(UNIT, "MainPID")
        connects = [watcher.connects for watcher in watchers]
        host.systemctl(*how, UNIT)
        for watcher, had in zip(watchers, connects, strict=True):
            await watcher.wait(
                lambda w, had=had: w.connects > had and w.live.is_set(),  # type: ignore[misc]
                WAIT_S,
            )
        assert host.show(UNIT, "MainPID") not in ("0", before)
        assert agent_process(session) == agent

    async with trio.open_nursery() as nursery:
        for watcher in watchers:
            nursery.start_soon(watcher.run)
            await watcher.wait(lambda w: w.live.is_set(), WAIT_S)
        await prompt(first, "SLOW 100", "BASH touch begun; until [ -e go ]; do sleep 0.1; done")
        await first.wait(lambda w: "word10" in shown(w.frames), WAIT_S)
        agent = agent_process(session)
        await end_daemon("kill", "--signal=KILL")
        for watcher in watchers:
            await watcher.wait(lambda w: words in texts(w.messages), WAIT_S)
            # What was on the screens when the daemon died went on where it was.
            assert shown(watcher.frames).startswith(words)

        for watcher in watchers:
            await watcher.wait(count("permission"), WAIT_S)
        await end_daemon("restart")
        assert api.session(session)["state"] == "waiting"
        await say(colleague, type="answer", request_id=open_request(colleague), behavior="allow")

        folder = workspace(host, api, session)
        await trio.to_thread.run_sync(wait_until, (folder / "begun").exists, "the tool runs")
        await end_daemon("kill", "--signal=KILL")
        host.run(["touch", f"{api.session(session)['cwd']}/go"])
        for watcher in watchers:
            await watcher.wait(count("result"), WAIT_S)
        # A prompt that the dead never saw: the session works on as ever.
        await prompt(colleague, "SAY and after that")
        for watcher in watchers:
            await watcher.wait(count("result", 2), WAIT_S)
        nursery.cancel_scope.cancel()

    assert agent_process(session) == agent
    log = api.log(session)
    assert [message["seq"] for message in log] == list(range(1, len(log) + 1))
    for watcher in watchers:
        assert watcher.messages == log
    assert texts(log) == [words, texts(log)[1], "and after that"]
    assert len(of_kind(first, "permission")) == len(of_kind(first, "answer")) == 1
    assert not [message for message in log if message["kind"] == "notice"]


async def test_a_sub_agent_has_a_thread_with_pages_of_its_own(api: Api, session: str) -> None:
    watcher = Watcher(api.admin_socket, session)

    def told(messages: list[Any]) -> list[Any]:
        return [m for m in messages if "from below" in texts([m]) and m["thread"] != "main"]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        await watcher.wait(lambda w: w.live.is_set(), WAIT_S)
        await prompt(watcher, "AGENT SAY from below")
        await watcher.wait(lambda w: told(w.messages), WAIT_S)
        await watcher.wait(lambda w: w.view["state"] == "idle", WAIT_S)
        nursery.cancel_scope.cancel()
    thread = told(watcher.messages)[0]["thread"]
    (listed,) = (t for t in api.session(session)["threads"] if t["thread"] == thread)
    assert listed["parent_thread"] == "main"
    page = api.call("GET", f"/v1/sessions/{session}/messages?thread={thread}&page=0")
    assert page["messages"] == [m for m in api.log(session) if m["thread"] == thread]
    assert [m["n"] for m in page["messages"]] == list(range(1, listed["n"] + 1))
    assert texts(page["messages"]) == ["from below"]
    # The tool call that it hangs on stands in the thread above.
    uses = [
        block["id"]
        for message in of_kind(watcher, "assistant")
        if message["thread"] == "main"
        for block in message["body"]["message"]["content"]
        if block["type"] == "tool_use"
    ]
    assert uses == [thread]


async def test_walls_and_limits_hold_for_what_the_agent_runs(
    host: Machine, api: Api, session: str
) -> None:
    watcher = Watcher(api.admin_socket, session)
    run: list[str] = []

    async def bash(command: str) -> str:
        """Have the agent run `command`; what it printed."""
        name = f"out{len(run)}"
        run.append(name)
        await prompt(watcher, f"BASH ({command}) >{name} 2>&1")
        await watcher.wait(count("permission", len(run)), WAIT_S)
        await say(watcher, type="answer", request_id=open_request(watcher), behavior="allow")
        await watcher.wait(count("result", len(run)), WAIT_S)
        return (workspace(host, api, session) / name).read_text()

    door = "import socket; socket.socket(socket.AF_UNIX).connect({!r})"
    eat = "x = b'x' * (3 << 30); print('it was all there')"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        await watcher.wait(lambda w: w.live.is_set(), WAIT_S)

        assert await bash("id -un") == "holdover-agent\n"
        agent = agent_process(session)
        for hidden in ("/var/lib/holdover", "/run/holdover/sessions", "/run/holdover/instances"):
            assert "Permission denied" in await bash(f"ls {hidden}"), hidden
        for closed in (ADMIN, "/run/holdover/agents/holdover-agent.sock"):
            refused = await bash(f'/usr/bin/python3 -I -c "{door.format(closed)}"')
            assert "PermissionError" in refused, closed

        # The limit of the unit file is the kernel's. To reach it, it has to be a small one.
        unit = agent[1]
        limit = memory_limit(agent[0])
        assert limit.read_text().strip() == host.show(unit, "MemoryMax")
        assert host.show(unit, "TasksMax") == "4096"
        host.systemctl("set-property", "--runtime", unit, "MemoryMax=1536M")
        assert limit.read_text() == f"{1536 << 20}\n"
        eaten = await bash(f'/usr/bin/python3 -I -c "{eat}"; echo status $?')
        assert eaten.splitlines()[-1] == "status 137"
        # The one that ate too much is dead; the agent is not.
        assert await bash("echo still here") == "still here\n"
        assert agent_process(session) == agent
        nursery.cancel_scope.cancel()


def log_in(browser: Browser, api: Api, address: str) -> Page:
    page = browser.new_context().new_page()
    page.set_default_timeout(WAIT_S * 1000)
    code = api.call("POST", "/v1/login-codes", {})["code"]
    page.goto(f"{address}/#login={code}")
    page.get_by_role("heading", name="Sessions").wait_for()
    return page


@needs_browser
def test_a_session_in_a_browser_from_login_to_its_end_and_a_second_sees_the_same(
    host: Machine, api: Api, tmp_path: Path
) -> None:
    # Storage is where its URLs say, as far as the browser can see: their host is signed.
    storage = urlsplit(settings.load([], {}).storage.endpoint)
    with contextlib.ExitStack() as stack:
        port, bytes_port = (
            stack.enter_context(host.forwarded(inside)) for inside in (8780, storage.port or 80)
        )
        rules = f"MAP {storage.netloc} 127.0.0.1:{bytes_port}"
        browser = stack.enter_context(chromium((f"--host-resolver-rules={rules}",)))
        address = f"http://127.0.0.1:{port}"
        page = log_in(browser, api, address)
        page.get_by_role("link", name="New session").click()
        page.get_by_label("First prompt").fill("SAY # Hello\nBASH echo by the tool >made; cat made")
        page.get_by_label("Agent (left empty").fill("claude")
        page.get_by_role("button", name="Start").click()
        page.locator(".asking").wait_for()
        assert page.get_by_role("heading", name="Hello", exact=True).is_visible()
        session = page.url.rpartition("/")[2]
        made = host.path(api.session(session)["cwd"]) / "made"
        assert not made.exists()

        other = log_in(browser, api, address)
        other.evaluate("(id) => { location.hash = `/session/${id}` }", session)
        other.locator(".asking").get_by_role("button", name="Allow", exact=True).click(trial=True)
        picture(page, "claude-asks")
        other.locator(".asking").get_by_role("button", name="Allow", exact=True).click()
        for one in (page, other):
            one.get_by_text("done: by the tool").wait_for()
            one.locator(".asking").wait_for(state="detached")
        assert made.read_text() == "by the tool\n"

        send(page, "SLOW 600")
        wait_until(lambda: words(page) > 10, "words appear")
        page.reload()
        wait_until(lambda: words(page) > 30, "they go on after a reload in mid-turn")
        wait_until(lambda: words(other) > 30, "the other sees them too")
        page.get_by_role("button", name="Stop").click()
        for one in (page, other):
            one.get_by_text(re.compile("^Interrupted")).wait_for()
        api.wait_state(session, "idle")
        send(other, "SAY and after that")
        page.get_by_text("and after that", exact=True).wait_for()
        api.wait_state(session, "idle")

        (tmp_path / "notes ü.txt").write_text("from the browser\n")
        attach(page, tmp_path / "notes ü.txt")
        send(page, "BASH cat attachments/*/* >seen; cat seen")
        other.locator(".asking").get_by_role("button", name="Allow", exact=True).click()
        for one in (page, other):
            one.get_by_text("Attached files, in the working folder:").wait_for()
            one.get_by_text("done: from the browser").wait_for()
        picture(page, "claude-attached")
        api.wait_state(session, "idle")

        page.get_by_role("button", name="Details").click()
        page.get_by_role("button", name="End", exact=True).click()
        sure = page.get_by_role("group", name="Are you sure?")
        sure.get_by_role("button", name="End").click()
        for one in (page, other):
            one.get_by_text("This session has ended.").wait_for()
            # The state comes in an event of its own: the last row may be a frame behind it.
            one.get_by_text("The agent exited with status 0.").wait_for()
        page.get_by_role("button", name="Details").click()
        assert rows(page) == rows(other)
        picture(page, "claude-ended")
