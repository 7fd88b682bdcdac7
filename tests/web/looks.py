"""Each page in both themes, on a phone and on a desk: pictures to be looked at, and what axe finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.needs import AXE
from tests.web.conftest import picture

if TYPE_CHECKING:
    from playwright.sync_api import Page

SIZES = ((360, 740), (1440, 900))

# What is wider than its box, of all that may scroll up and down only.
_SIDEWAYS = """() => [document.documentElement, ...document.querySelectorAll('.page, .view, .details')]
  .filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.className || box.tagName)"""


def faults(page: Page, name: str) -> list[str]:
    """What is wrong with the page as it stands: serious faults, and what scrolls sideways.

    Keeps a picture of each size and theme, and leaves the page in light and as large as it was.
    """
    before = page.viewport_size
    found: list[str] = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width, height in SIZES:
            page.set_viewport_size({"width": width, "height": height})
            picture(page, f"{name}-{scheme}-{width}")
            found += [
                f"{name}, {width} px: {box} scrolls sideways" for box in page.evaluate(_SIDEWAYS)
            ]
            if not AXE.is_file():  # the client was built elsewhere: pages are looked at without
                continue
            page.evaluate(AXE.read_text() + "; undefined")
            for fault in page.evaluate("axe.run().then((result) => result.violations)"):
                if fault["impact"] in ("serious", "critical"):
                    where = [node["html"][:200] for node in fault["nodes"]]
                    found.append(f"{name}, {scheme}, {width} px: {fault['id']} {where}")
    page.emulate_media(color_scheme="light")
    if before is not None:
        page.set_viewport_size(before)
    return found
