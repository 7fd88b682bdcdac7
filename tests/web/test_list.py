"""Long conversations in a browser: what is mounted, what is asked for, and that nothing moves."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.live.up import Up, wait_until
from tests.needs import needs_browser
from tests.web.conftest import picture, visit

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [needs_browser, pytest.mark.slow]

NewPage = Callable[..., "Page"]

# Counts what stands in the document, after two frames.
COUNT = """async () => {
  for (let i = 0; i < 2; i += 1) await new Promise(requestAnimationFrame);
  return {
    rows: document.querySelectorAll('[data-row]').length,
    nodes: document.querySelectorAll('*').length,
  };
}"""

# Goes up to the first message. After each move the first visible row is watched until the page above
# has come: it may not shift by more than a pixel. Gives the worst shift and the highest counts.
CLIMB = """async () => {
  const view = document.querySelector('.view');
  const frame = () => new Promise(requestAnimationFrame);
  const first = () => Number(document.querySelector('[data-page]').dataset.page);
  const edge = view.getBoundingClientRect().top;
  const found = {shift: 0, rows: 0, nodes: 0, prepends: 0};
  while (first() > 0 || view.scrollTop > 1) {
    const above = edge - document.querySelector('[data-page]').getBoundingClientRect().top;
    view.scrollTop -= Math.max(300, above - view.clientHeight * 0.7);
    await frame();
    const row = [...document.querySelectorAll('[data-page] > [data-row]')]
      .find((row) => row.getBoundingClientRect().bottom > edge);
    const top = row.getBoundingClientRect().top, before = first();
    for (let i = 0; i < 60 && row.isConnected; i += 1) {
      await frame();
      found.shift = Math.max(found.shift, Math.abs(row.getBoundingClientRect().top - top));
      if (first() < before) found.prepends += 1;
      if (first() < before || first() === 0) { await frame(); break; }
    }
    if (row.isConnected) {
      found.shift = Math.max(found.shift, Math.abs(row.getBoundingClientRect().top - top));
    }
    found.rows = Math.max(found.rows, document.querySelectorAll('[data-row]').length);
    found.nodes = Math.max(found.nodes, document.querySelectorAll('*').length);
  }
  return found;
}"""

# Watches the first visible row for so many milliseconds; the most it has moved from where it was.
WATCH = """async (ms) => {
  const view = document.querySelector('.view');
  const edge = view.getBoundingClientRect().top;
  const row = [...document.querySelectorAll('[data-page] > [data-row]')]
    .find((row) => row.getBoundingClientRect().bottom > edge);
  const top = row.getBoundingClientRect().top;
  let drift = 0;
  const end = performance.now() + ms;
  while (performance.now() < end) {
    await new Promise(requestAnimationFrame);
    drift = Math.max(drift, Math.abs(row.getBoundingClientRect().top - top));
  }
  return drift;
}"""

# How far from the end the view was at the worst, over so many milliseconds.
PINNED = """async (ms) => {
  const view = document.querySelector('.view');
  let off = 0;
  const end = performance.now() + ms;
  while (performance.now() < end) {
    await new Promise(requestAnimationFrame);
    await new Promise((done) => { const c = new MessageChannel(); c.port1.onmessage = done; c.port2.postMessage(0); });
    off = Math.max(off, view.scrollHeight - view.scrollTop - view.clientHeight);
  }
  return off;
}"""


def pages_asked(page: Page) -> list[str]:
    """A list that grows by the address of each page that is asked for."""
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url) if "/messages?" in r.url else None)
    return asked


def test_ten_thousand_messages_are_few_in_the_document_and_stand_still(
    up: Up, new_page: NewPage
) -> None:
    """40 MB: opened by at most two pages; up through all of them each is asked for once, and the
    first visible row shifts by at most a pixel when one is put above it."""
    session = up.new_session("lines 10000 size 3900")["id"]
    up.wait_state(session, "idle", timeout_s=120)
    page = new_page()
    asked = pages_asked(page)
    visit(page, session)
    page.locator(".row.result").wait_for()
    counts = page.evaluate(COUNT)
    assert len(asked) <= 2
    assert counts["rows"] <= 400
    assert counts["nodes"] <= 5000
    found = page.evaluate(CLIMB)
    assert page.get_by_text("The beginning of this session.").is_visible()
    assert found["prepends"] >= 95
    assert found["shift"] <= 1
    assert found["rows"] <= 400
    assert found["nodes"] <= 5000
    assert len(asked) == len(set(asked))
    page.get_by_role("button", name="To the end").click()
    page.locator(".row.result").wait_for()
    assert page.evaluate(COUNT)["rows"] <= 400


def test_who_reads_above_is_not_moved_and_who_is_at_the_end_stays_there(
    up: Up, new_page: NewPage
) -> None:
    session = up.new_session("history 250")["id"]
    up.wait_state(session, "idle")
    page = new_page(session)
    page.locator(".row.result").wait_for()
    page.evaluate(
        "() => { const v = document.querySelector('.view'); v.scrollTop -= 3 * v.clientHeight }"
    )
    page.get_by_role("button", name="To the end").wait_for()
    known = up.session(session)["last_seq"]
    up.prompt(session, "stream 240 rate 30\nlines 12 rate 10\nthink hm\nsay done")
    assert page.evaluate(WATCH, 10_000) == 0
    up.wait_state(session, "idle")
    fresh = up.session(session)["last_seq"] - known
    page.get_by_role("button", name=f"{fresh} new").click()
    up.prompt(session, "stream 90 rate 30\nlines 12 rate 10\nthink hm\nsay done")
    assert page.evaluate(PINNED, 5000) <= 1
    picture(page, "end-light")


def test_a_toggled_header_stays_where_it_is(up: Up, new_page: NewPage) -> None:
    """200 times one of many blocks between 40 and 16,000 pixels is opened or folded."""
    rng = random.Random(7)
    steps = ["history 20"]
    for number in range(60):
        if rng.random() < 0.5:
            steps.append("think " + "word " * rng.randrange(10, 12_000 if number < 8 else 1500))
        else:
            command = json.dumps({"command": "line\n" * rng.randrange(1, 200)})
            steps.append(f"tool Bash {command}")
        steps.append(f"say number {number}")
    session = up.new_session("\n".join(steps))["id"]
    up.wait_state(session, "idle")
    page = new_page(session)
    page.locator(".row.result").wait_for()
    worst = page.evaluate(
        """async () => {
          const view = document.querySelector('.view');
          const frame = () => new Promise(requestAnimationFrame);
          let seed = 7, worst = 0;
          const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
          for (let i = 0; i < 200; i += 1) {
            const box = view.getBoundingClientRect();
            let visible = [];
            while (visible.length === 0) {
              view.scrollTop = random() * (view.scrollHeight - view.clientHeight);
              await frame(); await frame();
              visible = [...view.querySelectorAll('.summary')].filter((header) => {
                const { top, bottom } = header.getBoundingClientRect();
                return top >= box.top && bottom <= box.bottom;
              });
            }
            const header = visible[Math.floor(random() * visible.length)];
            const top = header.getBoundingClientRect().top;
            header.click();
            await frame(); await frame();
            worst = Math.max(worst, Math.abs(header.getBoundingClientRect().top - top));
          }
          return worst;
        }"""
    )
    assert worst <= 1


def test_nothing_of_sub_agents_is_sent_or_mounted_while_they_are_folded(
    up: Up, new_page: NewPage
) -> None:
    session = up.new_session("\n".join(["agent 1 lines 947"] * 19))["id"]
    view = up.wait_state(session, "idle", timeout_s=120)
    assert sum(t["n"] for t in view["threads"] if t["thread"] != "main") >= 18_000
    page = new_page()
    frames: list[str] = []
    page.on("websocket", lambda ws: ws.on("framereceived", lambda frame: frames.append(str(frame))))
    asked = pages_asked(page)
    visit(page, session)
    page.locator(".row.result").wait_for()
    assert page.evaluate("document.querySelectorAll('.subagent, .nested').length") == 0
    assert asked == []
    sent = [m for f in map(json.loads, frames) if f["type"] == "messages" for m in f["messages"]]
    assert {message["thread"] for message in sent} == {"main"}


def _touch(kind: str, y: int | None) -> dict[str, Any]:
    return {"type": kind, "touchPoints": [] if y is None else [{"x": 195, "y": y}]}


def test_nothing_is_written_to_the_scroll_position_under_a_finger(
    up: Up, new_page: NewPage
) -> None:
    session = up.new_session("history 3000")["id"]
    up.wait_state(session, "idle")
    page = new_page(session, has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800})
    page.locator(".row.result").wait_for()
    page.evaluate(
        """() => {
          const view = document.querySelector('.view');
          const own = Object.getOwnPropertyDescriptor(Element.prototype, 'scrollTop');
          window.touched = {moving: false, writes: [], scrolls: 0, swipes: 0};
          Object.defineProperty(view, 'scrollTop', {
            get() { return own.get.call(this); },
            set(value) { if (touched.moving) touched.writes.push(value); own.set.call(this, value); },
          });
          // First on the way down, so before the client hears of either.
          addEventListener('touchstart', () => { touched.moving = true; touched.swipes += 1; }, true);
          addEventListener('scroll', () => { touched.scrolls += 1; }, true);
          addEventListener('scrollend', () => { touched.moving = false; }, true);
        }"""
    )
    up.prompt(session, "stream 200 rate 40")
    cdp = page.context.new_cdp_session(page)
    for _ in range(12):
        cdp.send("Input.dispatchTouchEvent", _touch("touchStart", 200))
        for y in range(230, 530, 30):
            cdp.send("Input.dispatchTouchEvent", _touch("touchMove", y))
        cdp.send("Input.dispatchTouchEvent", _touch("touchEnd", None))
    touched = page.evaluate("window.touched")
    assert touched["swipes"] >= 12
    assert touched["scrolls"] > 12
    assert touched["writes"] == []
    wait_until(lambda: not page.evaluate("window.touched.moving"), "the list is still", 5)
    # What was put off is done then: the pages above have come.
    wait_until(
        lambda: page.evaluate("Number(document.querySelector('[data-page]').dataset.page)") < 29,
        "pages were put above",
        5,
    )


def test_a_search_leads_to_the_message_wherever_it_is(up: Up, new_page: NewPage) -> None:
    session = up.new_session("history 700\nsay the needle is here\nhistory 900")["id"]
    up.wait_state(session, "idle")
    page = new_page()
    page.get_by_role("link", name="Search").click()
    page.get_by_label("Words of any message").fill("needle")

    def found() -> bool:
        page.get_by_role("button", name="Search").click()
        page.wait_for_load_state("networkidle")
        # The prompt, which has the words too, and above it the answer.
        return page.locator(".sessions a", has_text="the needle is here").count() == 2

    wait_until(found, "the index has it", 20)
    picture(page, "search-light")
    page.locator(".sessions a", has_text="the needle is here").first.click()
    row = page.locator(".row.text", has_text="the needle is here")
    row.wait_for()
    assert row.bounding_box()["y"] < 700
    assert page.get_by_text("history 900 of 900").count() == 0
