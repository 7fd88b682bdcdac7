"""The jobs page in a browser: what runs and how far it is, logs and results, retry and cancel."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.live.test_jobs import put, storage_answers
from tests.live.up import Up, running, wait_until
from tests.needs import needs_browser, needs_weed
from tests.web.conftest import picture
from tests.web.looks import faults

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [needs_browser, needs_weed, pytest.mark.slow]

NewPage = Callable[..., "Page"]

# Says how far it is, waits to be let go on, and fails the first time round.
SCRIPT = """
import os, pathlib, sys, time
here = pathlib.Path(sys.argv[0]).parent
sys.stdin.buffer.read()
os.write(3, b'{"bytes": 500000, "total": 2000000}\\n')
print("halfway \\x1b[31mthere\\x1b[0m", file=sys.stderr, flush=True)
while not (here / "go").exists():
    time.sleep(0.05)
if not (here / "better").exists():
    print("no such page", file=sys.stderr)
    sys.exit(65)
print("it is <b>good</b>")
"""


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    folder = Path(tempfile.mkdtemp(prefix="hw-"))
    script = folder / "read.py"
    script.write_text(SCRIPT)
    env = {
        "HOLDOVER_PROCESSORS_READ_COMMAND": f"{sys.executable} -I {script}",
        "HOLDOVER_JOBS_LEASE_S": "2",  # heartbeats carry progress and log
    }
    with running(folder, storage=True, **env) as up:
        wait_until(lambda: storage_answers(up), "storage is there", 60)
        yield up
    shutil.rmtree(folder, ignore_errors=True)


def submit(up: Up, processor: str, file: str, **more: Any) -> str:
    body = {"processor": processor, "files": [file], **more}
    return str(up.call("POST", "/v1/jobs", body)["id"])


def test_jobs_are_watched_tried_again_and_cancelled(up: Up, new_page: NewPage) -> None:
    page = new_page()
    page.get_by_role("link", name="Jobs").click()
    page.get_by_text("There are no jobs yet.").wait_for()
    data = b"some words"
    file = put(up, data)["file"]["id"]
    session = up.new_session("hello")["id"]
    job = submit(up, "read", file, session=session)

    row = page.get_by_role("listitem", name=job)
    row.get_by_text("500 kB of 2.0 MB").wait_for(timeout=30_000)
    assert row.get_by_role("progressbar").get_attribute("value") == "0.25"
    row.get_by_role("button", name="Details").click()
    row.get_by_label("Log").get_by_text("halfway there").wait_for()
    row.get_by_role("link", name="a b.bin").wait_for()
    picture(page, "jobs-light")

    # It fails for good; a person tries it again, and it is well.
    folder = up.state.parent
    (folder / "go").touch()
    row.get_by_text("failed", exact=True).wait_for()
    row.locator("p.bad").get_by_text("no such page").wait_for()
    (folder / "better").touch()
    row.get_by_role("button", name="Try again").click()
    row.get_by_text("done", exact=True).wait_for()
    row.get_by_label("Result").get_by_text("it is <b>good</b>").wait_for()
    assert row.get_by_role("button", name="Try again").count() == 0
    row.get_by_role("link", name="for a session").wait_for()

    (folder / "go").unlink()
    other = submit(up, "read", file)
    large = b"word " * 40_000
    made = submit(up, "extract-text", put(up, large)["file"]["id"])
    row = page.get_by_role("listitem", name=other)
    row.get_by_text("running", exact=True).wait_for()
    row.get_by_role("button", name="Cancel").click()
    row.get_by_text("cancelled", exact=True).wait_for()
    assert up.call("GET", f"/v1/jobs/{other}")["state"] == "cancelled"

    # A result too large for text is a file to be fetched.
    row = page.get_by_role("listitem", name=made)
    row.get_by_text("done", exact=True).wait_for()
    row.get_by_role("button", name="Details").click()
    with page.expect_download() as fetched:
        row.get_by_role("link", name=f"extract-text-{made}").click()
    assert (
        hashlib.sha256(fetched.value.path().read_bytes()).digest() == hashlib.sha256(large).digest()
    )

    page.get_by_label("Show").select_option("cancelled")
    page.get_by_role("listitem", name=other).wait_for()
    page.get_by_role("listitem", name=job).wait_for(state="detached")

    page.get_by_label("Show").select_option("")
    page.get_by_role("listitem", name=job).get_by_role("button", name="Details").click()
    page.get_by_label("Log").wait_for()
    assert faults(page, "jobs") == []
