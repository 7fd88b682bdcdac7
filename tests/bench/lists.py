"""The web client's list beside react-virtuoso's and virtua's own, in one browser.

10,000 messages of 5 to 204 words, the same in each; 200 are there at first, and a page of 100 takes
20 ms to come. The rivals are set up as their documentation has it for a chat (`rivals/`), and show
each message as plain text; ours is the list of the web client as it is, which reads Markdown.
Each measurement has a page of its own; the arms take turns.

**Mounted**: from asking for the list to the frame after the last message stands there. **Shift at a
prepend**: up through 30 pages by steps of 600 pixels, one in four frames; the most that the first
visible row was off where the step had to bring it, while a page was put above. **Shift otherwise**:
the same while none came: rows above that turned out to be of another height than was thought.
**Drift**: three screens above the end, for 10 s, while the last message grows 30 times a second and
one more comes each second; the most that the first visible row moved. **Heap**: after a collection of
garbage, after those 30 pages.
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
PAGES = 30
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

# Both find the first visible row anew by its message, since a list may make its element anew.
_ROWS = """
  const view = list.view(), edge = view.getBoundingClientRect().top;
  const frame = () => new Promise(requestAnimationFrame);
  const visible = () => [...view.querySelectorAll('[data-row]')].filter((row) => /^\\d+$/.test(row.dataset.row))
    .find((row) => row.getBoundingClientRect().bottom > edge + 1);
  const topOf = (key) => view.querySelector(`[data-row="${key}"]`)?.getBoundingClientRect().top;
"""
CLIMB = f"""async (pages) => {{
  {_ROWS}
  const goal = list.first() - pages, found = {{prepend: 0, otherwise: 0, prepends: 0}};
  for (let at = 0; at < 30; at += 1) await frame();
  while (list.first() > goal) {{
    // Between two frames, as when a person scrolls: a list hears of it before it does anything else.
    await new Promise((done) => setTimeout(done));
    const row = visible();
    if (!row) {{ await frame(); continue; }}
    const key = row.dataset.row, before = list.first(), by = Math.min(600, view.scrollTop);
    const meant = row.getBoundingClientRect().top + by;
    view.scrollTop -= by;
    for (let at = 0; at < 4; at += 1) {{
      await frame();
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
  view.scrollTop -= 3 * view.clientHeight;
  for (let at = 0; at < 30; at += 1) await frame();
  const key = visible().dataset.row, top = topOf(key);
  const grown = setInterval(() => list.grow(), 1000 / 30), more = setInterval(() => list.append(), 1000);
  let drift = 0;
  const end = performance.now() + ms;
  while (performance.now() < end) {{
    await frame();
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
