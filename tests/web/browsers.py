"""Three engines behind one narrow door: a tab that goes somewhere and runs a function there.

Chromium is driven by Playwright, Firefox by WebDriver BiDi, which it speaks itself, and WebKitGTK by
its WebDriver, in a display that nobody sees. Each tab starts with no cookie.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from websockets.sync.client import ClientConnection, connect

from tests.live.up import Up, free_port, wait_until
from tests.needs import MINI_BROWSER

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTH, HEIGHT = 1100, 800
# Timeouts, not figures.
START_S = 60.0
ANSWER_S = 300.0


class Tab(Protocol):
    def goto(self, url: str) -> None: ...

    def run(self, script: str, argument: Any = None) -> Any:
        """What the function `script` (it may be async) gives for `argument`; both are JSON.

        Raises AssertionError with the page's own words when it throws.
        """

    def picture(self, path: Path) -> None: ...


class Chromium:
    def __init__(self, page: Page) -> None:
        self.page = page

    def goto(self, url: str) -> None:
        self.page.goto(url)

    def run(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def picture(self, path: Path) -> None:
        self.page.screenshot(path=path)


@contextlib.contextmanager
def chromium(arguments: tuple[str, ...] = ()) -> Iterator[Browser]:
    """The browser itself: who wants more of it than a tab has Playwright at hand."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, in a container, Chromium has no sandbox of its own.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=[*sandbox, *arguments]
        )
        yield browser
        browser.close()


@contextlib.contextmanager
def chromium_tab(browser: Browser) -> Iterator[Tab]:
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
    yield Chromium(context.new_page())
    context.close()


class Firefox:
    """A connection to Firefox, and its one tab at a time."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._asked = 0
        self._tab = ""
        self._user = ""

    def ask(self, method: str, **params: Any) -> Any:
        self._asked += 1
        self._connection.send(json.dumps({"id": self._asked, "method": method, "params": params}))
        while True:
            answer = json.loads(self._connection.recv(ANSWER_S))
            if answer.get("id") == self._asked:
                assert answer["type"] == "success", f"{method}: {answer}"
                return answer["result"]

    def open(self) -> None:
        # A user context has cookies of its own; only the tab in front is given frames.
        self._user = self.ask("browser.createUserContext")["userContext"]
        self._tab = self.ask("browsingContext.create", type="tab", userContext=self._user)[
            "context"
        ]
        self.ask("browsingContext.activate", context=self._tab)
        self.ask(
            "browsingContext.setViewport",
            context=self._tab,
            viewport={"width": WIDTH, "height": HEIGHT},
        )

    def close(self) -> None:
        self.ask("browser.removeUserContext", userContext=self._user)

    def goto(self, url: str) -> None:
        self.ask("browsingContext.navigate", context=self._tab, url=url, wait="complete")

    def run(self, script: str, argument: Any = None) -> Any:
        found = self.ask(
            "script.callFunction",
            functionDeclaration=f"async (given) => JSON.stringify(await ({script})(JSON.parse(given)))",
            awaitPromise=True,
            target={"context": self._tab},
            arguments=[{"type": "string", "value": json.dumps(argument)}],
        )
        assert found["type"] == "success", found["exceptionDetails"]["text"]
        text = found["result"].get("value")
        return None if text is None else json.loads(text)

    def picture(self, path: Path) -> None:
        found = self.ask("browsingContext.captureScreenshot", context=self._tab)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def firefox() -> Iterator[Firefox]:
    with tempfile.TemporaryDirectory(prefix="hf-") as profile:
        # Nothing but the tests may be asked for.
        (Path(profile) / "user.js").write_text(
            'user_pref("app.update.enabled", false);\n'
            'user_pref("network.captive-portal-service.enabled", false);\n'
            'user_pref("network.connectivity-service.enabled", false);\n'
            'user_pref("services.settings.server", "http://127.0.0.1:9/");\n'
            'user_pref("browser.safebrowsing.downloads.remote.enabled", false);\n'
        )
        said = Path(profile) / "said"
        with said.open("w") as output:
            process = subprocess.Popen(
                [
                    *("firefox-esr", "--headless", "--no-remote", "--profile", profile),
                    *("--remote-debugging-port=0", "about:blank"),
                ],
                env={**os.environ, "HOME": profile},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                start_new_session=True,
            )
        try:
            found = wait_until(
                lambda: re.search(r"BiDi listening on (ws://\S+)", said.read_text()),
                "Firefox listens",
                START_S,
            )
            with connect(f"{found[1]}/session", max_size=None) as connection:
                one = Firefox(connection)
                one.ask("session.new", capabilities={})
                yield one
        finally:
            _end(process)


@contextlib.contextmanager
def firefox_tab(browser: Firefox) -> Iterator[Tab]:
    browser.open()
    yield browser
    browser.close()


class WebKit:
    """A WebDriver session of WebKitGTK; it has one window."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._session = ""

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, self._session + path, data)
            response = connection.getresponse()
            value = json.loads(response.read())["value"]
            assert response.status == 200, f"{method} {path}: {value}"
            return value
        finally:
            connection.close()

    def open(self, mini_browser: Path) -> None:
        options = {"binary": str(mini_browser), "args": ["--automation"]}
        wanted = {"alwaysMatch": {"webkitgtk:browserOptions": options}}
        self._session = (
            f"/session/{self.ask('POST', '/session', {'capabilities': wanted})['sessionId']}"
        )
        self.ask("POST", "/timeouts", {"script": int(ANSWER_S * 1000)})
        self.ask("POST", "/window/rect", {"width": WIDTH, "height": HEIGHT})

    def goto(self, url: str) -> None:
        self.ask("POST", "/url", {"url": url})

    def run(self, script: str, argument: Any = None) -> Any:
        body = (
            "const done = arguments[1]; (async () => "
            f"JSON.stringify(await ({script})(JSON.parse(arguments[0]))))()"
            ".then((text) => done({text: text ?? null}), (error) => done({error: String(error)}))"
        )
        # An arrow function has no `arguments` of its own: those meant are WebDriver's.
        found = self.ask("POST", "/execute/async", {"script": body, "args": [json.dumps(argument)]})
        assert "error" not in found, found["error"]
        return None if found["text"] is None else json.loads(found["text"])

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("GET", "/screenshot")))

    def close(self) -> None:
        self.ask("DELETE", "")


@contextlib.contextmanager
def webkit() -> Iterator[WebKit]:
    program = next(Path("/usr/lib").glob(MINI_BROWSER))
    with tempfile.TemporaryDirectory(prefix="hk-") as home, contextlib.ExitStack() as started:
        reading, writing = os.pipe()
        display = subprocess.Popen(
            ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1200x900x24", "-nolisten", "tcp"],
            pass_fds=(writing,),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        started.callback(_end, display)
        os.close(writing)
        with open(reading) as told:
            number = told.readline().strip()
        assert number, "Xvfb gave no display"
        port = free_port()
        driver = subprocess.Popen(
            ["WebKitWebDriver", "--host=127.0.0.1", f"--port={port}"],
            env={
                **os.environ,
                "DISPLAY": f":{number}",
                "GDK_BACKEND": "x11",
                "HOME": home,
                "XDG_RUNTIME_DIR": home,
                "WEBKIT_DISABLE_COMPOSITING_MODE": "1",
                "NO_AT_BRIDGE": "1",
            },
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        started.callback(_end, driver)
        one = WebKit(port)

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return bool(one.ask("GET", "/status")["ready"])
            return False

        wait_until(answers, "WebKitWebDriver answers", START_S)
        one.open(program)
        yield one
        one.close()


@contextlib.contextmanager
def webkit_tab(browser: WebKit) -> Iterator[Tab]:
    yield browser
    browser.goto("about:blank")


def _end(process: subprocess.Popen[Any]) -> None:
    """The process, and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


_IS_IN = "() => [...document.querySelectorAll('h1')].some((h) => h.textContent === 'Sessions')"


def log_in(tab: Tab, up: Up) -> None:
    code = up.call("POST", "/v1/login-codes", {})["code"]
    tab.goto(f"http://127.0.0.1:{up.port}/#login={code}")
    wait_until(lambda: tab.run(_IS_IN), "the code was used", START_S)
    # What is asked for is told by the page itself: not every door shows a browser's requests.
    tab.run("() => performance.setResourceTimingBufferSize(10_000)")


def visit(tab: Tab, session: str, *, end: str) -> None:
    """Open a session; it is there when its last row, `end` (a selector), is."""
    tab.run("(id) => { location.hash = `/session/${id}` }", session)
    wait_until(
        lambda: tab.run("(end) => document.querySelector(end) !== null", end),
        f"{end} stands there",
        START_S,
    )


def pages_asked(tab: Tab) -> list[str]:
    """The address of each page of messages that was asked for since the login."""
    found: list[str] = tab.run(
        "() => performance.getEntriesByType('resource').map((entry) => entry.name)"
        ".filter((name) => name.includes('/messages?'))"
    )
    return found
