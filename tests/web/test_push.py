"""A browser that is told although its page is closed: asked for by a click, answered in the session.

Chromium reaches no push service from here. The subscription is one that the test made, so that our
loopback service gets what the daemon sends; what it gets is handed to the worker as Chromium would.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.live.up import Up, running, wait_until
from tests.needs import needs_browser
from tests.push.loopback import Browser, Service, push_service
from tests.web.conftest import picture

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Response, Route

pytestmark = [needs_browser, pytest.mark.slow]

NewPage = Callable[..., "Page"]


def _renewal(response: Response) -> bool:
    return response.request.method == "POST" and response.url.endswith("/v1/push")


_SUBSCRIBE = """
(() => {
  const made = %s;
  PushManager.prototype.getSubscription = async () => null;
  PushManager.prototype.subscribe = async (options) => {
    window.subscribedFor = options.applicationServerKey;
    return { toJSON: () => made, unsubscribe: async () => true };
  };
})();
"""


@pytest.fixture(scope="module")
def remote() -> Iterator[tuple[Service, Path]]:
    with tempfile.TemporaryDirectory(prefix="hp-", dir="/tmp") as name:
        folder = Path(name)
        with push_service(folder) as service:
            yield service, folder


@pytest.fixture(scope="module")
def up(remote: tuple[Service, Path]) -> Iterator[Up]:
    _, folder = remote
    trusted = {"SSL_CERT_FILE": str(folder / "ca.pem"), "HOLDOVER_PUSH_HOSTS": "127.0.0.1"}
    with running(folder / "up", **trusted) as up:
        yield up


def turned_on(page: Page, endpoint: str, browser: Browser) -> Locator:
    """The page's part on notifications, turned on with a subscription of ours at `endpoint`."""
    made = {"endpoint": endpoint, "keys": browser.keys()}
    # A new headless Chromium grants nothing by a click.
    page.context.grant_permissions(["notifications"])
    page.add_init_script(_SUBSCRIBE % json.dumps(made))
    page.reload()
    page.get_by_role("link", name="Phone").click()
    section = page.get_by_role("region", name="Notifications on this device")
    section.get_by_role("button", name="Notify me").click()
    section.get_by_text("This device is notified.").wait_for()
    return section


def test_a_closed_page_says_that_its_agent_waits_and_leads_to_the_question(
    up: Up, new_page: NewPage, remote: tuple[Service, Path]
) -> None:
    service, _ = remote
    browser = Browser()
    page = new_page()
    section = turned_on(page, service.endpoint("phone"), browser)
    key = up.call("GET", "/v1/push")["public_key"]
    assert page.evaluate("window.subscribedFor") == key
    picture(page, "notifications-light")

    session = up.new_session("ask 1", title="Mend the clock")["id"]
    path, _, body = service.wait(1)[0]
    assert path == "/phone"
    message = browser.open(body).decode()
    assert json.loads(message)["kind"] == "waiting"
    (asked,) = up.session(session)["pending"]

    # What the platform would show is kept instead: a headless browser has nowhere to show it.
    (worker,) = page.context.service_workers
    worker.evaluate(
        """() => {
          self.shown = [];
          self.registration.showNotification = async (title, { body, tag, data }) => {
            self.shown.push({ title, body, tag, data });
          };
        }"""
    )
    cdp = page.context.new_cdp_session(page)
    known: list[dict[str, str]] = []
    cdp.on("ServiceWorker.workerRegistrationUpdated", lambda e: known.extend(e["registrations"]))
    cdp.send("ServiceWorker.enable")
    wait_until(lambda: page.evaluate("1") and known, "the worker is known")
    cdp.send(
        "ServiceWorker.deliverPushMessage",
        {
            "origin": f"http://127.0.0.1:{up.port}",
            "registrationId": known[0]["registrationId"],
            "data": message,
        },
    )
    shown = wait_until(lambda: worker.evaluate("self.shown"), "it is shown")
    assert shown == [
        {
            "title": "Mend the clock",
            "body": "Allow Bash?",
            "tag": session,
            "data": {"session": session, "request": asked["request_id"]},
        }
    ]
    # What a tap makes the worker tell an open page.
    page.evaluate(
        "data => navigator.serviceWorker.onmessage(new MessageEvent('message', {data}))",
        {"go": session, "ask": asked["request_id"]},
    )
    question = page.get_by_role("group", name="Allow Bash?")
    question.wait_for()
    wait_until(
        lambda: question.evaluate("question => question === document.activeElement"),
        "a tap leads to the question",
    )
    question.get_by_role("button", name="Allow").first.click()
    up.wait_state(session, "idle")
    with page.expect_response(_renewal):
        page.reload()
    page.get_by_text("needs no answer any more").wait_for()
    _, _, body = service.wait(2)[1]
    assert json.loads(browser.open(body))["kind"] == "finished"

    page.evaluate("location.hash = '/phone'")
    section.get_by_role("button", name="Stop notifying me").click()
    section.get_by_text("This device is not notified.").wait_for()
    page.set_viewport_size({"width": 360, "height": 700})
    page.emulate_media(color_scheme="dark")
    section.scroll_into_view_if_needed()
    picture(page, "notifications-dark-360")
    up.prompt(session, "say nobody hears it")
    up.wait_state(session, "idle")
    assert len(service.came) == 2


def test_who_turns_it_off_while_it_is_being_renewed_has_the_last_word(
    up: Up, new_page: NewPage, remote: tuple[Service, Path]
) -> None:
    service, _ = remote
    page = new_page()
    section = turned_on(page, service.endpoint("tablet"), Browser())

    held: list[Route] = []
    page.route(
        "**/v1/push", lambda r: held.append(r) if r.request.method == "POST" else r.continue_()
    )
    page.reload()
    wait_until(lambda: page.evaluate("1") and held, "it is being renewed")
    section.get_by_role("button", name="Stop notifying me").click()
    section.get_by_text("This device is not notified.").wait_for()
    with page.expect_response(lambda r: r.request.method == "DELETE" and r.status == 204):
        held[0].continue_()
    came = len(service.came)
    session = up.new_session("say nobody hears it")["id"]
    up.wait_state(session, "idle")
    assert len(service.came) == came
