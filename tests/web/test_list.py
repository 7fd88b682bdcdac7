"""Long conversations in a browser: what is mounted, what is asked for, and that nothing moves."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.live.up import Up, running, wait_until
from tests.needs import needs_browser
from tests.web import conftest, stored
from tests.web.browsers import Tab, pages_asked, visit
from tests.web.conftest import ENGINES, OTHERS, PICTURES, picture

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

NewPage = Callable[..., "Page"]

# Counts what stands in the document, after two frames.
COUNT = """async () => {
  for (let i = 0; i < 2; i += 1) await new Promise(requestAnimationFrame);
  return {
    rows: document.querySelectorAll('[data-row]').length,
    nodes: document.querySelectorAll('*').length,
  };
}"""

# Goes up so many pages, or to the first message. After each move the first visible row is watched until
# the page above has come: it may not shift by more than a pixel. Gives the worst shift and the
# highest counts.
CLIMB = """async (pages) => {
  const view = document.querySelector('.view');
  const frame = () => new Promise(requestAnimationFrame);
  const first = () => Number(document.querySelector('[data-page]').dataset.page);
  const edge = view.getBoundingClientRect().top;
  const found = {shift: 0, rows: 0, nodes: 0, prepends: 0};
  const goal = Math.max(0, first() - pages);
  while (first() > goal || (goal === 0 && view.scrollTop > 1)) {
    const above = edge - document.querySelector('[data-page]').getBoundingClientRect().top;
    view.scrollTop -= Math.max(300, above - view.clientHeight * 0.7);
    await frame();
    const row = [...document.querySelectorAll('[data-page] > [data-row]')]
      .find((row) => row.getBoundingClientRect().bottom > edge);
    const top = row.getBoundingClientRect().top, before = first();
    // A page comes a few rows in each frame: watched until all of it stands there.
    for (let i = 0, rows = -1, still = 0, came = false; i < 120 && row.isConnected; i += 1) {
      await frame();
      found.shift = Math.max(found.shift, Math.abs(row.getBoundingClientRect().top - top));
      if (first() < before && !came) found.prepends += 1;
      came = first() < before;
      const now = document.querySelectorAll('[data-row]').length;
      still = now === rows ? still + 1 : 0;
      rows = now;
      if ((came || first() === 0) && still >= 2) break;
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


# The sessions that are there before the daemon is.
TEN_THOUSAND = "s_tenthousand000000"
MESSAGES = 10_000
MILLION = "s_million0000000000"


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    folder = Path(tempfile.mkdtemp(prefix="hw-"))
    path = stored.catalogue(folder / "state")
    stored.store(path, TEN_THOUSAND, MESSAGES, size=3800)
    stored.store(path, MILLION, 1_000_000, spread=60)
    with running(folder) as up:
        yield up
    shutil.rmtree(folder, ignore_errors=True)


def climb(tab: Tab, pages: int) -> dict[str, Any]:
    """Up so many pages, or to the first message: what `CLIMB` finds.

    Some at a time, so that the time a browser has for an answer is that for a few pages.
    """
    found: dict[str, Any] = {"shift": 0, "rows": 0, "nodes": 0, "prepends": 0}
    for left in range(pages, 0, -10):
        part = tab.run(CLIMB, min(left, 10))
        for name in ("shift", "rows", "nodes"):
            found[name] = max(found[name], part[name])
        found["prepends"] += part["prepends"]
    return found


def is_small(counts: Any) -> bool:
    """Does little stand in the document, however much there is?"""
    return bool(counts["rows"] <= 400 and counts["nodes"] <= 5000)


# Opens and folds so many headers wherever they stand, at first the last one; the most that one has moved, and
# the most that a row became higher.
TOGGLE = """async (times) => {
  const view = document.querySelector('.view');
  const frame = () => new Promise(requestAnimationFrame);
  let seed = 7, worst = 0, grown = 0;
  const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
  for (let i = 0; i < times; i += 1) {
    const box = view.getBoundingClientRect();
    let visible = [];
    while (visible.length === 0) {
      view.scrollTop = (i === 0 ? 1 : random()) * (view.scrollHeight - view.clientHeight);
      await frame(); await frame();
      visible = [...view.querySelectorAll('.summary')].filter((header) => {
        const { top, bottom } = header.getBoundingClientRect();
        return top >= box.top && bottom <= box.bottom;
      });
    }
    const header = i === 0 ? visible.at(-1) : visible[Math.floor(random() * visible.length)];
    const row = header.closest('[data-page] > [data-row]');
    const top = header.getBoundingClientRect().top, height = row.getBoundingClientRect().height;
    header.click();
    await frame(); await frame();
    worst = Math.max(worst, Math.abs(header.getBoundingClientRect().top - top));
    grown = Math.max(grown, row.getBoundingClientRect().height - height);
  }
  return {worst, grown};
}"""

# [address, bytes that came over the net for it; 0 out of the browser's cache] of each page asked for.
FETCHED = """() => performance.getEntriesByType('resource')
  .filter(({name}) => name.includes('/messages?')).map(({name, transferSize}) => [name, transferSize])"""

# Is there something like this?
STANDS = "(selector) => document.querySelector(selector) !== null"


@pytest.mark.parametrize("engine", ENGINES)
def test_ten_thousand_messages_are_few_in_the_document_and_stand_still(
    engine: str, tab: Tab
) -> None:
    """40 MB: opened by at most two pages; up through all of them each is asked for once, and the
    first visible row shifts by at most a pixel when one is put above it."""
    last = f'[data-row="{MESSAGES}"]'
    visit(tab, TEN_THOUSAND, end=last)
    counts = tab.run(COUNT)
    assert len(pages_asked(tab)) <= 2
    assert is_small(counts), counts
    found = climb(tab, MESSAGES // 100)
    assert found["prepends"] >= MESSAGES // 100 - 5
    assert found["shift"] <= (2 if engine == "webkit" else 1)
    assert is_small(found), found
    asked = pages_asked(tab)
    assert len(asked) == len(set(asked))
    tab.run("() => document.querySelector('.to-end').click()")
    wait_until(lambda: tab.run(STANDS, last), "the end stands there")
    assert is_small(tab.run(COUNT))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_million_messages_are_as_few(engine: str, tab: Tab) -> None:
    """At the end, where it opens, in the middle and at the beginning, where a link leads; and a page
    that was let go comes back without being sent again."""
    last = '[data-row="1000000"]'
    visit(tab, MILLION, end=last)
    counts = tab.run(COUNT)
    assert len(pages_asked(tab)) <= 2
    assert is_small(counts), counts
    for up in (45, 12):
        assert climb(tab, up)["prepends"] >= up - 5
        tab.run("() => document.querySelector('.to-end').click()")
        wait_until(lambda: tab.run(STANDS, last), "the end stands there")
    pages = [name for name, _ in tab.run(FETCHED)]
    sent = [name for name, size in tab.run(FETCHED) if size > 0]
    assert len(pages) > len(set(pages)), "none was let go"
    # WebKitGTK keeps no cache while it is driven.
    if engine != "webkit":
        assert len(sent) == len(set(sent)) > 30
    for seq in (500_051, 1):
        target = {"session": MILLION, "page": (seq - 1) // 100, "seq": seq}
        tab.run("(to) => { location.hash = `/session/${to.session}/${to.page}/${to.seq}` }", target)
        wait_until(lambda: tab.run(STANDS, f'[data-row="{seq}"]'), f"{seq} stands there")  # noqa: B023
        counts = tab.run(COUNT)
        assert is_small(counts), counts


@pytest.mark.parametrize("engine", ENGINES)
def test_who_reads_above_is_not_moved_and_who_is_at_the_end_stays_there(
    engine: str, up: Up, tab: Tab
) -> None:
    """30 words a second: for 20 s in Chromium, for 4 s in the others."""
    seconds = 20 if engine == "chromium" else 4
    session = up.new_session("history 250")["id"]
    up.wait_state(session, "idle")
    visit(tab, session, end=".row.result")
    tab.run(
        "() => { const v = document.querySelector('.view'); v.scrollTop -= 3 * v.clientHeight }"
    )
    wait_until(lambda: tab.run(STANDS, ".to-end"), "the way to the end is offered")
    known = up.session(session)["last_seq"]
    up.prompt(session, f"stream {30 * seconds} rate 30\nlines 12 rate 10\nthink hm\nsay done")
    assert tab.run(WATCH, (seconds + 2) * 1000) == 0
    up.wait_state(session, "idle")
    fresh = up.session(session)["last_seq"] - known
    chip = "() => document.querySelector('.to-end').innerText"
    wait_until(lambda: f" {fresh} new" in tab.run(chip), f"the way says {fresh} new")
    tab.run("() => document.querySelector('.to-end').click()")
    up.prompt(session, "stream 60 rate 30\nlines 12 rate 10\nthink hm\nsay done")
    assert tab.run(PINNED, 4000) <= 1
    PICTURES.mkdir(parents=True, exist_ok=True)
    tab.picture(PICTURES / f"end-{engine}.png")


def _thought(number: int, paragraphs: int) -> str:
    """A step of the demo agent: a thought of so many paragraphs of a line each, 34 px."""
    text = "\n\n".join(["word " * 20] * paragraphs)
    content = [{"type": "thinking", "thinking": text, "signature": ""}]
    message = {"id": f"thought-{number}", "role": "assistant", "content": content}
    frame = {"type": "assistant", "parent_tool_use_id": None, "message": message}
    return "raw " + json.dumps(frame | {"uuid": f"thought-{number}"})


@pytest.mark.parametrize("engine", ENGINES)
def test_a_toggled_header_stays_where_it_is(engine: str, up: Up, tab: Tab) -> None:
    """200 blocks between 40 and 20,000 pixels; one of them is opened or folded, again and again."""
    rng = random.Random(7)
    steps = ["history 20"]
    for number in range(100):
        steps.append(_thought(number, rng.randrange(1, 580 if number % 10 == 0 else 60)))
        command = json.dumps({"command": "line\n" * rng.randrange(1, 200)})
        steps += [f"tool Bash {command}", f"say number {number}"]
    steps.append(_thought(100, 580))
    session = up.new_session("\n".join(steps))["id"]
    up.wait_state(session, "idle")
    visit(tab, session, end=".row.result")
    found = tab.run(TOGGLE, 120 if engine == "chromium" else 40)
    assert found["worst"] <= 1
    assert found["grown"] > 15_000, "none was as high as it was meant to be"


@pytest.mark.parametrize("engine", OTHERS)
def test_the_core_of_it_in_another_engine(engine: str, up: Up, tab: Tab) -> None:
    """What is shown above at length, and there is a soak in these, for as long as `make test` has."""
    visit(tab, TEN_THOUSAND, end=f'[data-row="{MESSAGES}"]')
    found = climb(tab, 8)
    assert found["prepends"] >= 5
    assert found["shift"] <= (2 if engine == "webkit" else 1)
    assert is_small(found), found
    asked = pages_asked(tab)
    assert len(asked) == len(set(asked))

    steps = ["history 40"]
    for number in range(20):
        steps.append("think " + "word " * (20 + 400 * (number % 5)))
        steps.append("tool Bash " + json.dumps({"command": "line\n" * (5 + 20 * (number % 7))}))
    session = up.new_session("\n".join(steps))["id"]
    up.wait_state(session, "idle")
    visit(tab, session, end=".row.result")
    assert tab.run(TOGGLE, 15)["worst"] <= 1

    tab.run("() => { document.querySelector('.view').scrollTop = 400 }")
    wait_until(lambda: tab.run(STANDS, ".to-end"), "the way to the end is offered")
    up.prompt(session, "stream 60 rate 30\nlines 12 rate 10")
    assert tab.run(WATCH, 3000) == 0
    up.wait_state(session, "idle")
    tab.run("() => document.querySelector('.to-end').click()")
    up.prompt(session, "stream 60 rate 30\nlines 12 rate 10")
    assert tab.run(PINNED, 3000) <= 1


@needs_browser
def test_nothing_of_sub_agents_is_sent_or_mounted_while_they_are_folded(
    up: Up, new_page: NewPage
) -> None:
    session = up.new_session("\n".join(["agent 1 lines 947"] * 19))["id"]
    view = up.wait_state(session, "idle", timeout_s=120)
    assert sum(t["n"] for t in view["threads"] if t["thread"] != "main") >= 18_000
    page = new_page()
    frames: list[str] = []
    page.on("websocket", lambda ws: ws.on("framereceived", lambda frame: frames.append(str(frame))))
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url) if "/messages?" in r.url else None)
    conftest.visit(page, session)
    page.locator(".row.result").wait_for()
    assert page.evaluate("document.querySelectorAll('.subagent, .nested').length") == 0
    assert asked == []
    said = [frame for frame in map(json.loads, frames) if frame["type"] not in ("hello", "session")]
    sent = [message for frame in said for message in frame.get("messages", [frame])]
    assert len(sent) > 19
    assert {message.get("thread", "main") for message in sent} == {"main"}
    # What a child says is "#1 …" to "#947 …"; not a byte of it came, in whatever frame.
    assert not [frame for frame in frames if "#947 " in frame]


# A thumb that flicks down: after so many ms it is at that y.
FLICK = [(0, 200), (16, 203), (33, 212), (50, 231), (66, 262), (83, 305), (100, 358), (116, 415)]
FLICK += [(133, 472), (150, 526)]


# The page's thread is taken for so many milliseconds.
BUSY = "(ms) => { for (const end = performance.now() + ms; performance.now() < end; ); }"


def _touch(kind: str, y: int | None) -> dict[str, Any]:
    return {"type": kind, "touchPoints": [] if y is None else [{"x": 195, "y": y}]}


@needs_browser
def test_nothing_is_written_to_the_scroll_position_under_a_finger(
    up: Up, new_page: NewPage
) -> None:
    session = up.new_session("history 3000")["id"]
    up.wait_state(session, "idle")
    page = new_page(session, has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800})
    page.locator(".row.result").wait_for()
    # What is above the end follows it, a few rows in each frame.
    rows = page.locator("[data-row]")
    wait_until(lambda: rows.count() > 100, "there is room to scroll")
    page.evaluate(
        """() => {
          const view = document.querySelector('.view');
          const own = Object.getOwnPropertyDescriptor(Element.prototype, 'scrollTop');
          window.touched = {moving: false, lifted: false, writes: [], scrolls: 0, momentum: 0, swipes: 0};
          Object.defineProperty(view, 'scrollTop', {
            get() { return own.get.call(this); },
            set(value) { if (touched.moving) touched.writes.push(value); own.set.call(this, value); },
          });
          // First on the way down, so before the client hears of either.
          addEventListener('touchstart', () => {
            touched.moving = true;
            touched.lifted = false;
            touched.swipes += 1;
          }, true);
          addEventListener('touchend', () => { touched.lifted = true; }, true);
          addEventListener('scroll', () => {
            touched.scrolls += 1;
            if (touched.moving && touched.lifted) touched.momentum += 1;
          }, true);
          addEventListener('scrollend', () => { touched.moving = false; }, true);
        }"""
    )
    up.prompt(session, "stream 200 rate 40")
    cdp = page.context.new_cdp_session(page)
    still = "!touched.moving && document.querySelector('.view').scrollTop > 3000"
    for swipe in range(12):
        if page.evaluate("document.querySelector('.view').scrollTop") < 800:
            # Nothing is above to flick to until the list is still, and pages are put there.
            wait_until(lambda: page.evaluate(still), "there is room again")
        # The time of each is given: however busy the machine, the finger was as fast.
        began = time.time()
        for ms, y in FLICK:
            touch = _touch("touchMove" if ms else "touchStart", y)
            cdp.send("Input.dispatchTouchEvent", touch | {"timestamp": began + ms / 1000})
        lifted = _touch("touchEnd", None) | {"timestamp": began + (FLICK[-1][0] + 8) / 1000}
        known = page.evaluate("touched.momentum")
        cdp.send("Input.dispatchTouchEvent", lifted)
        if swipe % 3 == 0:
            page.evaluate(BUSY, 300)  # it hears nothing of its momentum meanwhile
        # Momentum, cut short by the next touch; or none, and the list is still.
        page.wait_for_function("known => touched.momentum > known || !touched.moving", arg=known)
    touched = page.evaluate("window.touched")
    assert touched["momentum"] > 0
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


@needs_browser
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
