"""The files page in a browser: bytes go from the page to storage, and out again by a link."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.live.test_workspace_files import follow
from tests.live.up import Up, running
from tests.needs import needs_browser, needs_weed
from tests.web.conftest import picture
from tests.web.conversation import attach
from tests.web.looks import faults

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [needs_browser, needs_weed, pytest.mark.slow]

NewPage = Callable[..., "Page"]
MIB = 1 << 20


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with (
        tempfile.TemporaryDirectory(prefix="hf-", dir="/tmp") as name,
        running(Path(name), storage=True) as up,
    ):
        yield up


def test_files_are_uploaded_shared_revoked_downloaded_and_deleted(
    up: Up, new_page: NewPage, tmp_path: Path
) -> None:
    large = os.urandom(33 * MIB)
    (tmp_path / "plan ä.bin").write_bytes(large)
    (tmp_path / "empty.txt").write_bytes(b"")
    page = new_page()
    page.get_by_role("link", name="Files").click()
    page.get_by_text("There are no files yet.").wait_for()
    to_daemon: list[int] = []
    page.on(
        "request",
        lambda request: (
            to_daemon.append(len(request.post_data_buffer or b""))
            if request.url.startswith(f"http://127.0.0.1:{up.port}/")
            else None
        ),
    )
    upload = page.get_by_role("region", name="Upload", exact=True)
    upload.get_by_label("Folder").fill("/team/")
    upload.get_by_label("Files to upload").set_input_files(
        [tmp_path / "plan ä.bin", tmp_path / "empty.txt"]
    )
    row = page.locator(".files").get_by_role("listitem", name="plan ä.bin")
    row.get_by_text("team/plan ä.bin").wait_for()
    page.locator(".files").get_by_role("listitem", name="empty.txt").get_by_text(
        "SHA-256 proved"
    ).wait_for()
    assert sum(to_daemon) < 64 * 1024, "no byte of a file goes to the daemon"
    kept = {file["name"]: file for file in up.call("GET", "/v1/files")["items"]}
    assert (kept["plan ä.bin"]["size"], kept["plan ä.bin"]["path"]) == (len(large), "team")
    assert kept["empty.txt"]["verified"] == "sha256"

    with page.expect_download() as downloading:
        row.get_by_role("link", name="Download").click()
    assert downloading.value.suggested_filename == "plan ä.bin"
    assert Path(downloading.value.path()).read_bytes() == large

    row.get_by_role("button", name="Share").click()
    row.get_by_label("Downloads").fill("2")
    row.get_by_role("button", name="Make a link").click()
    url = row.get_by_label("Address of the link").input_value()
    row.get_by_text("link, 0 of 2 downloads").wait_for()
    size, digest, whence = follow(url)
    assert (size, digest) == (len(large), hashlib.sha256(large).hexdigest())
    assert whence != f"127.0.0.1:{up.port}"
    picture(page, "files-light")
    row.get_by_role("button", name="Revoke").click()
    page.get_by_text("The link was revoked.").wait_for()
    assert up.call("GET", "/v1/links")["items"][0]["revoked_at"] is not None

    row.get_by_role("button", name="Delete", exact=True).click()
    row.get_by_role("button", name="Delete for good").click()
    page.get_by_text("plan ä.bin was deleted.").wait_for()
    row.wait_for(state="detached")

    links = page.get_by_role("region", name="Upload links")
    links.get_by_label("Folder").fill("inbox")
    links.get_by_role("button", name="Make an upload link").click()
    guest = page.context.browser.new_page() if page.context.browser else page
    guest.goto(links.get_by_label("Address of the link").input_value())
    guest.get_by_label("Files").set_input_files(tmp_path / "plan ä.bin")
    guest.get_by_text("plan ä.bin: sent").wait_for()
    guest.close()
    (came,) = up.call("GET", "/v1/files?path=inbox")["items"]
    assert (came["size"], came["state"]) == (len(large), "ready")
    links.get_by_role("button", name="Revoke").click()
    page.get_by_text("The link was revoked.").last.wait_for()

    page.locator(".files").get_by_role("listitem", name="plan ä.bin").first.wait_for()
    assert faults(page, "files") == []


def test_a_file_dropped_on_a_session_goes_with_the_prompt_and_is_offered_back(
    up: Up, new_page: NewPage, tmp_path: Path
) -> None:
    session = up.new_session("say ready", title="With a file")["id"]
    up.wait_state(session, "idle")
    folder = Path(str(up.session(session)["cwd"]))
    page = new_page(session)
    content = os.urandom(100_000)
    (tmp_path / "notes ü.bin").write_bytes(content)
    attach(page, tmp_path / "notes ü.bin")
    attached = page.get_by_role("list", name="Files that go with the prompt")
    dropped = """([name, text]) => {
      const data = new DataTransfer();
      data.items.add(new File([text], name));
      const target = document.querySelector(".view");
      for (const type of ["dragover", "drop"])
        target.dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(dropped, ["second.txt", "two"])
    attached.get_by_text("second.txt").wait_for()
    page.evaluate(dropped, ["third.txt", "three"])
    attached.get_by_role("button", name="Leave out third.txt").click()
    box = page.get_by_label("Prompt", exact=True)
    box.fill('tool Write {"file_path": "made ü.bin"}\nsay seen')
    page.locator("button.primary:not(:disabled)").wait_for()
    picture(page, "attached-light")
    page.reload()
    attached.get_by_role("listitem").nth(1).wait_for()
    assert attached.get_by_role("listitem").count() == 2
    page.get_by_role("button", name="Send").click()
    page.get_by_text("Attached files, in the working folder:").first.wait_for()
    page.get_by_text("seen", exact=True).last.wait_for()
    assert attached.count() == 0
    carried = {file.name: file.read_bytes() for file in folder.glob("attachments/*/*")}
    assert carried == {"notes ü.bin": content, "second.txt": b"two"}

    (folder / "made ü.bin").write_bytes(content)
    page.get_by_role("button", name="Write made ü.bin").click()
    page.get_by_role("button", name="Keep this file").click()
    address = page.get_by_role("link", name="Download").get_attribute("href")
    picture(page, "offered-light")
    found = up.call("GET", f"{address}?redirect=false")
    assert follow(found["url"])[:2] == (len(content), hashlib.sha256(content).hexdigest())
