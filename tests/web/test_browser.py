"""Sessions in a browser: what people do with them, with the demo agent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.live.up import Up, wait_until
from tests.needs import needs_browser
from tests.web.conftest import picture, visit
from tests.web.conversation import rows, send, words

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [needs_browser, pytest.mark.slow]

NewPage = Callable[..., "Page"]


def test_a_session_from_login_to_its_end_seen_by_two(up: Up, new_page: NewPage) -> None:
    page = new_page()
    picture(page, "sessions-light")
    page.get_by_role("link", name="New session").click()
    page.get_by_label("First prompt").fill("say # Hello\nthink let me see")
    page.get_by_role("button", name="Start").click()
    page.locator(".row.result").wait_for()
    assert page.get_by_role("heading", name="Hello", exact=True).is_visible()
    session = page.url.rpartition("/")[2]

    other = new_page(session, color_scheme="dark", viewport={"width": 360, "height": 700})
    other.locator(".row.result").wait_for()
    send(page, "ask 2")
    page.get_by_role("group", name="Allow Bash?").first.wait_for()
    other.get_by_role("group", name="Allow Bash?").first.wait_for()
    picture(page, "permissions-light")
    picture(other, "permissions-dark-360")
    page.get_by_role("button", name="Allow", exact=True).first.click()
    wait_until(lambda: other.locator(".asking").count() == 1, "the other sees one question less")
    other.get_by_label("Reason (optional)").fill("not today")
    other.get_by_role("button", name="Deny").click()
    page.get_by_text("answered: #1 allow, #2 deny (not today)").wait_for()

    send(page, "stream 400 rate 40")
    wait_until(lambda: words(page) > 10, "words appear")
    page.reload()
    wait_until(lambda: words(page) > 20, "they go on after a reload in mid-turn")
    assert page.get_by_role("heading", name="Hello", exact=True).is_visible()
    wait_until(lambda: words(other) > 20, "the other sees them too")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text(re.compile("^Interrupted")).wait_for()
    other.get_by_text(re.compile("^Interrupted")).wait_for()
    up.wait_state(session, "idle")

    page.get_by_role("button", name="Details").click()
    page.get_by_role("button", name="End", exact=True).click()
    sure = page.get_by_role("group", name="Are you sure?")
    sure.get_by_role("button", name="End").click()
    for one in (page, other):
        one.get_by_text("This session has ended.").wait_for()
    page.get_by_role("button", name="Details").click()
    assert rows(page) == rows(other)


def test_permissions_take_changed_input_suggestions_answers_and_plans(
    up: Up, new_page: NewPage
) -> None:
    session = up.new_session("ask 2")["id"]
    page = new_page(session)
    asking = page.get_by_role("group", name="Allow Bash?")
    asking.first.get_by_role("button", name="Change the input").click()
    box = asking.first.get_by_label("Changed input, as JSON")
    box.fill("{")
    asking.first.get_by_role("button", name="Allow", exact=True).click()
    page.get_by_role("alert").wait_for()
    box.fill('{"command": "other"}')
    asking.first.get_by_role("button", name="Allow", exact=True).click()
    wait_until(lambda: asking.count() == 1, "one question is left")
    asking.get_by_role("button", name="Allow, and from now on: accept edits").click()
    page.get_by_text("#1 allow (input changed), #2 allow (remembered setMode)").wait_for()

    send(page, "ask-question")
    page.get_by_label("Tea").check()
    picture(page, "question-light")
    page.get_by_role("button", name="Answer").click()
    page.get_by_text('{"What would you like to drink?": "Tea"}').wait_for()

    send(page, "plan")
    page.get_by_text("Remove its reference.").first.wait_for()
    page.get_by_role("button", name="Approve").click()
    page.get_by_text("plan: allow").wait_for()

    send(page, "withdraw 1 after 0.5")
    page.locator(".asking").wait_for()
    page.get_by_text("withdrawn: 1 of 1").wait_for()
    assert page.locator(".asking").count() == 0


def test_drafts_survive_a_reload_and_queued_prompts_can_be_seen(up: Up, new_page: NewPage) -> None:
    session = up.new_session("wait 60")["id"]
    page = new_page(session)
    up.wait_state(session, "working")
    box = page.get_by_label("Prompt", exact=True)
    box.fill("a thought that is not")
    page.reload()
    assert box.input_value() == "a thought that is not"
    send(page, "say later")
    page.get_by_text("Waits for its turn.").wait_for()
    assert box.input_value() == ""
    box.press("Escape")
    page.get_by_text(re.compile("^Interrupted")).wait_for()
    page.get_by_text("later", exact=True).wait_for()
    wait_until(lambda: page.get_by_text("Waits for its turn.").count() == 0, "it had its turn", 5)


def test_a_new_session_says_where_it_works_and_changes_read_as_changes(
    up: Up, new_page: NewPage
) -> None:
    page = new_page()
    page.get_by_role("link", name="New session").click()
    page.get_by_label("First prompt").fill(
        'tool Edit {"file_path": "/a.py", "old_string": "a\\nb\\nc\\nd", "new_string": "1\\nb\\nc\\n4"}\n'
        'tool TodoWrite {"todos": [{"content": "Read", "status": "completed"},'
        ' {"content": "Write", "status": "in_progress"}]}\nwait 60'
    )
    page.get_by_label("a repository, cloned").check()
    page.get_by_label("Address of the repository").fill("no address")
    page.get_by_role("button", name="Start").click()
    page.get_by_role("alert").wait_for()
    page.get_by_label("a new workspace").check()
    page.get_by_label("Permissions").select_option("plan")
    page.get_by_role("button", name="Start").click()
    page.get_by_role("button", name="Edit /a.py").click()
    lines = page.locator(".hunk > span").evaluate_all("all => all.map((line) => line.innerText)")
    assert [line.strip() for line in lines] == ["- a", "+ 1", "b", "c", "- d", "+ 4"]
    page.get_by_role("button", name="TodoWrite 1 of 2 done · Write").click()
    assert page.locator(".todos .done").inner_text() == "✓ Read"
    session = page.url.rpartition("/")[2]
    assert up.session(session)["permission_mode"] == "plan"

    for text in ("one", "two"):
        send(page, f"say {text}")
    queue = page.get_by_role("region", name="2 prompts wait for their turn")
    queue.get_by_role("button", name="Withdraw: say one").click()
    page.get_by_role("region", name="1 prompt waits for its turn").get_by_text("say two").wait_for()
    picture(page, "queue-light")
    page.evaluate("location.hash = '/'")
    page.get_by_label("State").select_option("working")
    page.locator(f'.sessions a[href$="{session}"]').wait_for()
    page.get_by_label("State").select_option("waiting")
    wait_until(lambda: page.locator(f'.sessions a[href$="{session}"]').count() == 0, "not listed")


def test_sharing_title_and_purge(up: Up, new_page: NewPage) -> None:
    session = up.new_session("say hello")["id"]
    page = new_page(session)
    page.get_by_role("button", name="Details").click()
    page.get_by_label("Title").fill("Renamed")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("heading", name="Renamed").wait_for()
    page.get_by_label("Shared").select_option("read")
    wait_until(lambda: up.session(session)["share"] == "read", "it is shared")
    page.get_by_label("Permissions").select_option("plan")
    wait_until(lambda: up.session(session)["permission_mode"] == "plan", "the mode is set")
    picture(page, "details-light")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("group", name="Are you sure?").get_by_role("button", name="Delete").click()
    page.get_by_role("heading", name="Sessions").wait_for()
    wait_until(lambda: up.request("GET", f"/v1/sessions/{session}")[0] == 404, "it is gone")


def test_logging_out_and_a_wrong_token(new_page: NewPage) -> None:
    page = new_page()
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Token", exact=True).fill("hold_wrong")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("alert").wait_for()
    picture(page, "login-light")


def test_a_phone_is_logged_in_by_a_code_shown_here(up: Up, new_page: NewPage) -> None:
    page = new_page()
    page.get_by_role("link", name="Phone").click()
    page.get_by_role("img", name="QR code").wait_for()
    picture(page, "phone-light")
    address = page.get_by_role("link", name="The same as a link").get_attribute("href")
    page.context.clear_cookies()
    page.goto("about:blank")
    page.goto(str(address))
    page.get_by_role("heading", name="Sessions").wait_for()


def test_sub_agents_are_nested_and_loaded_when_opened(up: Up, new_page: NewPage) -> None:
    session = up.new_session("agent 2 lines 150")["id"]
    up.wait_state(session, "idle")
    page = new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    visit(page, session)
    page.locator(".row.result").wait_for()
    assert not [url for url in asked if "thread=" in url]
    assert page.locator(".nested").count() == 0
    page.get_by_role("button", name="Agent Demo agent at depth 1").click()
    page.get_by_role("button", name="Sub-agent Demo agent at depth 1").click()
    page.locator(".nested .row").first.wait_for()
    page.get_by_role("button", name="Agent Demo agent at depth 2").click()
    page.get_by_role("button", name="Sub-agent Demo agent at depth 2").click()
    nested = page.locator(".nested .nested")
    nested.get_by_text("#150 ").wait_for()
    nested.get_by_role("button", name="Earlier").click()
    nested.get_by_text("#1 ", exact=False).first.wait_for()
    picture(page, "subagents-light")


def test_code_is_coloured_while_it_is_in_view_and_the_document_stays_as_it_is(
    up: Up, new_page: NewPage
) -> None:
    fence = "```python\ndef f(x):\n    return 1  # one\n```"
    frame = {
        "type": "assistant",
        "parent_tool_use_id": None,
        "uuid": "code-1",
        "message": {
            "id": "c1",
            "role": "assistant",
            "content": [{"type": "text", "text": fence}],
        },
    }
    coloured = up.new_session("raw " + json.dumps(frame))["id"]
    plain = up.new_session("say no code")["id"]
    for session in (coloured, plain):
        up.wait_state(session, "idle")
    page = new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    visit(page, plain)
    page.locator(".row.result").wait_for()
    assert not [url for url in asked if "highlight" in url]
    painted = "[...CSS.highlights].map(([name, ranges]) => `${name} ${[...ranges].join('|')}`)"
    visit(page, coloured)
    page.locator(".row.result").wait_for()
    wait_until(lambda: page.evaluate(painted), "it is coloured", 20)
    assert sorted(page.evaluate(painted)) == [
        "code-comment # one",
        "code-keyword def|return",
        "code-name f",
        "code-number 1",
    ]
    assert page.locator(".md pre code *").count() == 0
    assert len([url for url in asked if "highlight" in url]) == 1
    picture(page, "code-light")
    page.emulate_media(color_scheme="dark")
    picture(page, "code-dark")
    visit(page, plain)
    page.get_by_text("no code", exact=True).wait_for()
    gone = "[...CSS.highlights.values()].every((ranges) => ranges.size === 0)"
    wait_until(lambda: page.evaluate(gone), "nothing of it is kept", 20)
