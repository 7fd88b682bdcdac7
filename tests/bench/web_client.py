"""What the web client costs who reads, in Debian's Chromium against a real `holdover up`.

**Readable**: a page that is new to the session, from the navigation to the last message standing
there, of 10,000 messages (40 MB) and of 1,000,000; each run's figure is the 95th percentile of its
visits, beside 500 ms.

**Up through 100 pages** at 12,000 pixels a second: the longest time for which the list could not
follow, since what was above had not come or did not stand there yet, beside 100 ms; the heap after
a collection of garbage, at the end, beside 150 MB; and how far it strayed from its median over the
last 50 pages, beside 10 %.

**Streaming**: 30 words a second for 20 s, read three screens above and then at the end; the longest
task of the page's thread. Browsers tell of those over 50 ms only; 0 is none.

**Killed**: from `kill -9` of the daemon to the next new word on the page, and to the quiet line
being gone (as soon, where it never came), beside 3 s. **Deployed**: the longest pause between two
words, beside the longest of as long a time left alone.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.bench.rows import Row
from tests.live.up import Up, holdover, running, wait_until
from tests.web import stored
from tests.web.browsers import Chromium, chromium, log_in, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RESULTS = Path(__file__).with_name("web_client.md")
RUNS = int(os.environ.get("BENCH_RUNS", "3"))
VISITS = 15
KILLS = 3
# {session: its messages, bytes more in each}
SESSIONS = {"s_tenthousand000000": (10_000, 3800), "s_million0000000000": (1_000_000, 0)}
PAGES = "s_pages000000000000"
MEASURED = 10_200  # two pages more than are gone up through: the first two stand there
READABLE_MS, BLANK_MS, HEAP_MB, FLAT, TASK_MS, BACK_MS = 500.0, 100.0, 150.0, 0.1, 50.0, 3000.0

# In a page that has not begun: when does its last message stand there, in ms since navigation?
UNTIL = """(() => {
  window.readable = new Promise((done) => {
    const look = () => {
      const there = document.querySelector('[data-row="%s"]');
      if (there && there.getBoundingClientRect().height > 0) done(performance.now());
      else requestAnimationFrame(look);
    };
    look();
  });
})()"""

# Goes up so many pages at a speed in pixels a second. A frame in which the top of the view is not
# covered by a page, although there are pages above, adds to `blank` (ms); the longest is given.
CLIMB = """async ({pages, speed}) => {
  const view = document.querySelector('.view');
  const first = () => document.querySelector('[data-page]');
  const goal = Math.max(0, Number(first().dataset.page) - pages);
  let then = performance.now(), blank = 0, longest = 0;
  while (Number(first().dataset.page) > goal) {
    const now = await new Promise(requestAnimationFrame);
    const passed = now - then;
    then = now;
    view.scrollTop -= speed * Math.min(passed, 50) / 1000;
    const short = first().getBoundingClientRect().top - view.getBoundingClientRect().top;
    blank = short >= 0 ? blank + passed : 0;
    longest = Math.max(longest, blank);
  }
  return longest;
}"""

TASKS = """() => {
  window.tasks = [];
  new PerformanceObserver((list) => tasks.push(...list.getEntries().map((e) => e.duration)))
    .observe({type: 'longtask', buffered: false});
}"""

SILENT = "document.querySelector('.quiet').textContent === ''"

# Notes when (ms since the epoch) a word came, and when the quiet line was there.
WORDS = """() => {
  window.words = [];
  window.quiet = [];
  let before = '';
  const look = () => {
    const now = [...document.querySelectorAll('.row.text')].map((row) => row.textContent).join('');
    if (now.length > before.length) words.push(Date.now());
    before = now;
    if (document.querySelector('.quiet').textContent) quiet.push(Date.now());
    requestAnimationFrame(look);
  };
  look();
}"""


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def beside(name: str, unit: str, ours: list[float], bound: float) -> Row:
    return Row(name, unit, ours, "its bound", [bound] * len(ours), at_most=1.0)


def new_page(browser: Browser, up: Up) -> Page:
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    context.set_default_timeout(120_000)
    page = context.new_page()
    log_in(Chromium(page), up)
    return page


def readable(browser: Browser, up: Up) -> Iterator[Row]:
    for session, (messages, _) in SESSIONS.items():
        slow = []
        for run in range(RUNS + 1):
            taken = []
            for _ in range(VISITS):
                page = new_page(browser, up)
                page.add_init_script(UNTIL % messages)
                page.goto("about:blank")
                page.goto(f"http://127.0.0.1:{up.port}/#/session/{session}")
                taken.append(page.evaluate("window.readable"))
                page.context.close()
            if run:  # the first warms
                slow.append(percentile(taken, 0.95))
        yield beside(f"readable, of {messages:,} messages, p95", "ms", slow, READABLE_MS)


def climbing(browser: Browser, up: Up) -> Iterator[Row]:
    blanks: list[float] = []
    heaps: list[list[float]] = []
    for _ in range(RUNS):
        page = new_page(browser, up)
        visit(Chromium(page), PAGES, end=f'[data-row="{MEASURED}"]')
        cdp = page.context.new_cdp_session(page)
        found: list[float] = []
        blank = 0.0
        for _ in range(20):
            blank = max(blank, page.evaluate(CLIMB, {"pages": 5, "speed": 12_000}))
            cdp.send("HeapProfiler.collectGarbage")
            found.append(cdp.send("Runtime.getHeapUsage")["usedSize"] / 1e6)
        blanks.append(blank)
        heaps.append(found)
        page.context.close()
    last = [found[10:] for found in heaps]
    strayed = [max(abs(heap / median(found) - 1) for heap in found) for found in last]
    yield beside("longest blank, up through 100 pages", "ms", blanks, BLANK_MS)
    yield Row(
        "heap after 100 pages", "MB", [found[-1] for found in heaps], "its bound",
        [HEAP_MB] * RUNS, at_most=1.0, details={"heap_mb_every_5_pages": heaps},
    )  # fmt: skip
    yield beside(
        "heap, over the last 50 pages off its median by",
        "%",
        [100 * s for s in strayed],
        100 * FLAT,
    )


def streaming(browser: Browser, up: Up) -> Iterator[Row]:
    tasks: dict[str, list[float]] = {"three screens above": [], "at the end": []}
    for _ in range(RUNS):
        for where, longest in tasks.items():
            session = up.new_session("history 250")["id"]
            up.wait_state(session, "idle")
            page = new_page(browser, up)
            visit(Chromium(page), session, end=".row.result")
            if where != "at the end":
                page.evaluate(
                    "() => { const v = document.querySelector('.view');"
                    " v.scrollTop -= 3 * v.clientHeight }"
                )
            page.evaluate(TASKS)
            up.prompt(session, "stream 600 rate 30")
            up.wait_state(session, "working", "starting")
            up.wait_state(session, "idle", timeout_s=120)
            page.wait_for_timeout(500)
            longest.append(max(page.evaluate("window.tasks"), default=0.0))
            page.context.close()
    for where, longest in tasks.items():
        yield beside(f"longest task while 30 words a second come, {where}", "ms", longest, TASK_MS)


def replaced(browser: Browser, up: Up) -> Iterator[Row]:
    session = up.new_session("\n".join(["stream 15 rate 20"] * 2000))["id"]
    page = new_page(browser, up)
    visit(Chromium(page), session, end=".row.text")
    page.evaluate(WORDS)

    def pauses(seconds: float | None) -> float:
        """The longest between two words (ms), over so many seconds, or over a deploy."""
        page.evaluate("() => { window.words = [] }")
        if seconds is None:
            assert holdover(up, "deploy").returncode == 0
        else:
            page.wait_for_timeout(seconds * 1000)
        came: list[float] = page.evaluate("window.words")
        return max(b - a for a, b in pairwise(came))

    deployed, alone = [], []
    for _ in range(RUNS):
        began = time.monotonic()
        deployed.append(pauses(None))
        alone.append(pauses(time.monotonic() - began))
    words: list[float] = []
    quiet: list[float] = []
    for _ in range(RUNS * KILLS):
        page.evaluate("() => { window.quiet = [] }")
        killed = time.time() * 1000
        old = up.kill_daemon()
        up.wait_new_daemon(old)
        after = f"window.words.filter((at) => at > {killed + 100})"
        wait_until(lambda: page.evaluate(f"{after}.length > 0"), "words come again")  # noqa: B023
        page.wait_for_timeout(1500)
        wait_until(lambda: page.evaluate(SILENT), "the quiet line is gone")
        back = page.evaluate(f"{after}[0]") - killed
        shown = page.evaluate("window.quiet")
        words.append(back)
        quiet.append(shown[-1] - killed if shown else back)
    page.context.close()
    yield beside("kill -9 to the next word", "ms", words, BACK_MS)
    yield beside("kill -9 to no quiet line", "ms", quiet, BACK_MS)
    yield Row("longest pause between words, a deploy", "ms", deployed, "left alone", alone)


def measure() -> Iterator[Row]:
    folder = Path(tempfile.mkdtemp(prefix="hb-"))
    try:
        path = stored.catalogue(folder / "state")
        for session, (messages, size) in SESSIONS.items():
            stored.store(path, session, messages, size)
        stored.store(path, PAGES, MEASURED)
        env = {"HOLDOVER_DEPLOY_BAKE_S": "1", "HOLDOVER_DRAIN_MODE": "migrate"}
        with running(folder, **env) as up, chromium() as browser:
            yield from readable(browser, up)
            yield from climbing(browser, up)
            yield from streaming(browser, up)
            yield from replaced(browser, up)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Measure, and keep the table and each single run beside this file."""
    from tests.bench.__main__ import table

    load = os.getloadavg()[0]
    rows: list[Row] = []
    for row in measure():
        print("\n".join(table([row])[2:]), file=sys.stderr, flush=True)
        rows.append(row)
    shown = "\n".join(table(rows))
    print(shown)
    machine = (
        f"{os.cpu_count()} cores; load average of the minute before, by others: {load:.1f}, "
        f"and of the last minute, by all: {os.getloadavg()[0]:.1f}"
    )
    assert __doc__ is not None
    RESULTS.write_text(
        "# The web client\n\nWritten by `python -m tests.bench.web_client`; every single run is in "
        f"web_client.json.\n\n{shown}\n\nMeasured on {machine}.\n\n## What is measured\n\n{__doc__}"
    )
    everything: dict[str, Any] = {"machine": machine, "rows": [row.as_json() for row in rows]}
    RESULTS.with_suffix(".json").write_text(
        json.dumps(everything, indent=1, ensure_ascii=False) + "\n"
    )
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
