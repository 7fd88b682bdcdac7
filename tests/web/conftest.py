"""A real `holdover up` and a real browser. What the pages see is the contract, nothing else.

Each test has a browser context of its own, logged in by a code as a phone would be. What a page
throws, or the policy has to stop, fails the test that caused it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.live.up import Up, running
from tests.needs import needs_browser, needs_firefox, needs_webkit
from tests.web.browsers import (
    Tab,
    chromium,
    chromium_tab,
    firefox,
    firefox_tab,
    log_in,
    webkit,
    webkit_tab,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# Where screenshots are kept, to be looked at.
PICTURES = Path(__file__).parents[2] / ".build/pictures"

_WATCH_POLICY = """
window.violations = [];
document.addEventListener('securitypolicyviolation', (event) => {
  window.violations.push(`${event.effectiveDirective} ${event.blockedURI} ${event.sample}`);
});
"""


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    folder = Path(tempfile.mkdtemp(prefix="hw-"))
    with running(folder) as up:
        yield up
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


# For `@pytest.mark.parametrize("engine", …)`: what the list has to do in every one. Whole, the other two
# take minutes on a small machine.
ENGINES = [
    pytest.param("chromium", marks=needs_browser),
    pytest.param("firefox", marks=[needs_firefox, pytest.mark.soak]),
    pytest.param("webkit", marks=[needs_webkit, pytest.mark.soak]),
]
OTHERS = [
    pytest.param("firefox", marks=needs_firefox),
    pytest.param("webkit", marks=needs_webkit),
]


@pytest.fixture(scope="session")
def engines() -> Iterator[Callable[[str], Any]]:
    """The browser of that name, started when a test first asks for it."""
    started: dict[str, Any] = {}
    with ExitStack() as stack:

        def engine(name: str) -> Any:
            if name not in started:
                start = firefox if name == "firefox" else webkit
                started[name] = stack.enter_context(start())
            return started[name]

        yield engine


@pytest.fixture
def tab(engine: str, up: Up, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """A tab of the engine that the test is parametrised with, logged in."""
    with ExitStack() as stack:
        if engine == "chromium":
            one = stack.enter_context(chromium_tab(request.getfixturevalue("browser")))
        else:
            browser = request.getfixturevalue("engines")(engine)
            opened = firefox_tab(browser) if engine == "firefox" else webkit_tab(browser)
            one = stack.enter_context(opened)
        log_in(one, up)
        yield one


@pytest.fixture
def new_page(up: Up, browser: Browser) -> Iterator[Callable[..., Page]]:
    """Pages in contexts of their own: `new_page(session)` is at that session, logged in."""
    opened: list[tuple[Page, list[str]]] = []

    def new(session: str | None = None, **options: Any) -> Page:
        context = browser.new_context(
            **{"viewport": {"width": 1100, "height": 800}, "reduced_motion": "reduce", **options}
        )
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.add_init_script(_WATCH_POLICY)
        thrown: list[str] = []
        page.on("pageerror", lambda error: thrown.append(str(error)))
        opened.append((page, thrown))
        code = up.call("POST", "/v1/login-codes", {})["code"]
        page.goto(f"http://127.0.0.1:{up.port}/#login={code}")
        page.get_by_role("heading", name="Sessions").wait_for()
        assert "login=" not in page.url
        if session is not None:
            visit(page, session)
        return page

    yield new
    faults = []
    for page, thrown in opened:
        faults += thrown
        if not page.is_closed():
            faults += page.evaluate("window.violations")
        page.context.close()
    assert faults == []


def visit(page: Page, session: str) -> None:
    page.evaluate("id => { location.hash = `/session/${id}` }", session)
    page.locator(".session .badge").wait_for()


def picture(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png")
