"""The web client's list beside react-virtuoso's and virtua's own, in one browser.

10,000 messages of 5 to 204 words, the same in each; 200 are there at first, and a page of 100 takes
20 ms to come. Each rival is set up as its own author has it for a chat: `rivals/virtua.ts` and
`rivals/virtuoso.ts` say from where, and what was added. They show each message as plain text; ours
is the list of the web client as it is, which reads Markdown. All have 1,200 pixels beyond the view
at hand. Each measurement has a page of its own, and begins once the list stands still at its end;
the arms take turns. Positions are read after a frame was painted, as somebody sees them.

**Mounted**: from asking for the list to the frame after the last message is visible there. **Shift at
a prepend**: up through 20 pages by steps of 600 pixels, one in four frames; the most that the first
visible row was off where the step had to bring it, while a page was put above. **Shift otherwise**:
the same while none came: rows above that turned out to be of another height than was thought.
**Drift**: three screens above the end, for 10 s, while the last message grows 30 times a second and
one more comes each second; the most that the first visible row moved. **Heap**: after a collection of
garbage, after those 20 pages.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.needs import webclient
from tests.web.browsers import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RIVALS = Path(__file__).with_name("rivals")
RESULTS = Path(__file__).with_name("lists.md")
RUNS = int(os.environ.get("BENCH_RUNS", "3"))
PAGES = 20
ARMS = {
    "ours": "Holdover's",
    "virtuoso": "react-virtuoso",
    "virtua": "virtua",
}
FIGURES = {
    "mounted": ("mounted", "ms"),
    "prepend": ("shift at a prepend", "px"),
    "otherwise": ("shift otherwise", "px"),
    "drift": ("drift", "px"),
    "heap": ("heap", "MB"),
}

# Both find the first visible row anew by its message, since a list may make its element anew; and both
# look once the frame is painted: in an animation frame a list has not yet heard from its
# ResizeObserver, and what it mends there nobody sees.
_ROWS = """
  const view = list.view(), edge = view.getBoundingClientRect().top;
  const task = () => new Promise((done) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = done;
    channel.port2.postMessage(0);
  });
  const painted = async () => { await new Promise(requestAnimationFrame); await task(); };
  // Nothing has moved for half a second: until then a list may still be on its way to the end.
  const settled = async () => {
    for (let still = 0, before = ''; still < 30; ) {
      await painted();
      const now = `${view.scrollTop} ${view.scrollHeight}`;
      still = now === before ? still + 1 : 0;
      before = now;
    }
  };
  const left = () => view.scrollHeight - view.scrollTop - view.clientHeight;
  const visible = () => [...view.querySelectorAll('[data-row]')].filter((row) => /^\\d+$/.test(row.dataset.row))
    .find((row) => row.getBoundingClientRect().bottom > edge + 1);
  const topOf = (key) => view.querySelector(`[data-row="${key}"]`)?.getBoundingClientRect().top;
  await settled();
  if (left() > 2) throw new Error(`the list is ${left()} px above its end`);
"""
CLIMB = f"""async (pages) => {{
  {_ROWS}
  const goal = list.first() - pages, found = {{prepend: 0, otherwise: 0, prepends: 0}};
  while (list.first() > goal) {{
    // Between two frames, as when a person scrolls: a list hears of it before it does anything else.
    await new Promise((done) => setTimeout(done));
    const row = visible();
    if (!row) {{ await painted(); continue; }}
    const key = row.dataset.row, before = list.first(), by = Math.min(600, view.scrollTop);
    const meant = row.getBoundingClientRect().top + by;
    view.scrollTop -= by;
    for (let at = 0; at < 4; at += 1) {{
      await painted();
      const now = topOf(key);
      if (now === undefined) break;
      const which = list.first() < before ? 'prepend' : 'otherwise';
      found[which] = Math.max(found[which], Math.abs(now - meant));
    }}
    if (list.first() < before) found.prepends += 1;
  }}
  return found;
}}"""
DRIFT = f"""async (ms) => {{
  {_ROWS}
  for (let at = 0; at < 10; at += 1) {{
    await new Promise((done) => setTimeout(done));
    view.scrollTop -= 0.3 * view.clientHeight;
    await painted();
  }}
  await settled();
  if (left() < 2 * view.clientHeight) throw new Error(`the list went back to ${{left()}} px above its end`);
  const key = visible().dataset.row, top = topOf(key);
  const grown = setInterval(() => list.grow(), 1000 / 30), more = setInterval(() => list.append(), 1000);
  let drift = 0;
  const end = performance.now() + ms;
  while (performance.now() < end) {{
    await painted();
    drift = Math.max(drift, Math.abs((topOf(key) ?? 1e6) - top));
  }}
  clearInterval(grown); clearInterval(more);
  return drift;
}}"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002


@contextmanager
def built() -> Iterator[str]:
    """The address where the three lists are served, as `vite build` makes them."""
    node = webclient.install_packages(RIVALS)
    webclient.install_packages(webclient.SOURCE / webclient.CLIENT)
    with tempfile.TemporaryDirectory(prefix="hl-") as folder:
        vite = RIVALS / "node_modules/vite/bin/vite.js"
        webclient.run(
            [node, str(vite), "build", "--logLevel=error", f"--outDir={folder}"],
            RIVALS, node, "building the lists",
        )  # fmt: skip
        handler = functools.partial(_Quiet, directory=folder)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()


@contextmanager
def opened(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    context.set_default_timeout(300_000)
    page = context.new_page()
    page.goto(address)
    yield page
    context.close()


def measured(browser: Browser, address: str) -> dict[str, float]:
    with opened(browser, address) as page:
        figures: dict[str, float] = {"mounted": page.evaluate("window.mounted")}
        found = page.evaluate(CLIMB, PAGES)
        assert found["prepends"] > PAGES / 2, found
        figures |= {"prepend": found["prepend"], "otherwise": found["otherwise"]}
        cdp = page.context.new_cdp_session(page)
        cdp.send("HeapProfiler.collectGarbage")
        figures["heap"] = cdp.send("Runtime.getHeapUsage")["usedSize"] / 1e6
    with opened(browser, address) as page:
        page.evaluate("window.mounted")
        figures["drift"] = page.evaluate(DRIFT, 10_000)
    return figures


def table(runs: dict[str, list[dict[str, float]]]) -> str:
    lines = [
        "| list | " + " | ".join(f"{name} ({unit})" for name, unit in FIGURES.values()) + " |",
        "|---|" + "---:|" * len(FIGURES),
    ]
    for arm, name in ARMS.items():
        cells = (f"{median(run[figure] for run in runs[arm]):.1f}" for figure in FIGURES)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    load = os.getloadavg()[0]
    runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    with built() as address, chromium() as browser:
        version = browser.version
        for _ in range(RUNS):
            for arm in ARMS:
                runs[arm].append(measured(browser, f"{address}/{arm}.html"))
                print(arm, runs[arm][-1], file=sys.stderr, flush=True)
    shown = table(runs)
    print(shown)
    packages = json.loads((RIVALS / "package.json").read_text())["dependencies"]
    machine = (
        f"{os.cpu_count()} cores, Chromium {version}, "
        + ", ".join(f"{name} {number}" for name, number in packages.items())
        + f"; medians of {RUNS} runs; load average of the minute before, by others: {load:.1f}"
    )
    assert __doc__ is not None
    RESULTS.write_text(
        "# Lists in a browser\n\nWritten by `python -m tests.bench.lists`; every single run is in "
        f"lists.json.\n\n{shown}\n\nMeasured on {machine}.\n\n## What is measured\n\n{__doc__}"
    )
    RESULTS.with_suffix(".json").write_text(
        json.dumps({"machine": machine, "runs": runs}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
