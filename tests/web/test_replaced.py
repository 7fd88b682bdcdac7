"""The daemon is replaced, by a deploy or by a death, while a page streams: who reads sees nothing of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.live.up import Up, holdover, running, wait_until
from tests.needs import needs_browser
from tests.web.conftest import visit

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [needs_browser, pytest.mark.slow]

NewPage = Callable[..., "Page"]

# One sentence after the other, for longer than any replacement takes; then it is stopped.
SENTENCES = "\n".join(["stream 15 rate 20"] * 400)
# A timeout: at most 3 s, says the bench.
BACK_S = 9.0

# Notes in each frame what stands there twice, and every form the sentence under way has had.
RECORD = """() => {
  window.seen = {doubled: [], live: new Set()};
  const look = () => {
    const keys = [...document.querySelectorAll('[data-page] > [data-row]')].map((r) => r.dataset.row);
    if (new Set(keys).size !== keys.length) seen.doubled.push(keys);
    const live = document.querySelectorAll('.live .row.text');
    if (live.length > 1) seen.doubled.push([...live].map((row) => row.innerText));
    for (const row of live) seen.live.add(row.innerText);
    requestAnimationFrame(look);
  };
  look();
}"""


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    folder = Path(tempfile.mkdtemp(prefix="hw-"))
    # "migrate": the session changes hands in the middle of its turn.
    with running(folder, HOLDOVER_DEPLOY_BAKE_S="1", HOLDOVER_DRAIN_MODE="migrate") as up:
        yield up
    shutil.rmtree(folder, ignore_errors=True)


def sentences(page: Page) -> int:
    """How many stand there, the one under way included."""
    return page.locator("[data-page] > .row.text").count()


def words(text: str) -> str:
    return " ".join(text.split())


def test_neither_a_deploy_nor_kills_cost_a_word_or_a_reload(up: Up, new_page: NewPage) -> None:
    session = up.new_session(SENTENCES)["id"]
    page = new_page()
    sockets: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    visit(page, session)
    wait_until(lambda: sentences(page) > 1, "sentences appear")
    page.evaluate(RECORD)

    done = holdover(up, "deploy")
    assert done.returncode == 0, done.stderr
    assert "is permanent" in done.stderr
    assert up.session(session)["generation"] == 2
    known = sentences(page)
    wait_until(lambda: sentences(page) > known + 1, "they go on after the deploy", BACK_S)
    assert len(sockets) == 1  # the connection has moved, too

    for _ in range(2):
        old = up.kill_daemon()
        up.wait_new_daemon(old)
        known = sentences(page)
        wait_until(lambda: sentences(page) > known + 1, "they go on after a kill", BACK_S)  # noqa: B023
        quiet = page.locator(".quiet")
        wait_until(lambda: quiet.inner_text() == "", "the quiet line is gone", BACK_S)  # noqa: B023

    page.get_by_role("button", name="Stop").click()
    page.locator(".row.result").wait_for()
    log = up.log(session)
    said = [m["body"]["message"]["content"][0]["text"] for m in log if m["kind"] == "assistant"]
    shown = page.locator("[data-page] > .row.text").all_inner_texts()
    assert [words(text) for text in shown] == [words(text) for text in said]
    # After a reload this would be gone.
    seen = page.evaluate("({doubled: seen.doubled, live: [...seen.live]})")
    assert seen["doubled"] == []
    whole = words(said[0])
    assert len(seen["live"]) > 10
    assert [text for text in seen["live"] if not whole.startswith(words(text))] == []
