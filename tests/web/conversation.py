"""What people do at a session's page, and what stands there then."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


def send(page: Page, text: str) -> None:
    box = page.get_by_label("Prompt", exact=True)
    box.fill(text)
    # What goes with it may still be on its way to storage.
    page.locator(".composer button.primary:not(:disabled)").wait_for()
    box.press("Enter")


def attach(page: Page, path: Path) -> None:
    """By the paper clip; the file goes with the next prompt."""
    with page.expect_file_chooser() as chosen:
        page.get_by_label("Attach files").click()
    chosen.value.set_files(path)
    attached = page.get_by_role("list", name="Files that go with the prompt")
    attached.get_by_text(path.name).wait_for()


def words(page: Page) -> int:
    """How many words of what was said last stand on the page."""
    return len(page.locator(".row.text").last.inner_text().split())


def rows(page: Page) -> list[str]:
    """The text of every row, in order."""
    found: list[str] = page.locator("[data-page] > [data-row]").evaluate_all(
        "rows => rows.map((row) => row.innerText)"
    )
    return found
