"""Tokens and instances in a browser: for those who may do everything, and unseen by others."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.live.up import Up, wait_until
from tests.needs import needs_browser
from tests.web.conftest import picture
from tests.web.looks import faults

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [needs_browser, pytest.mark.slow]

NewPage = Callable[..., "Page"]


def status(up: Up, token: str) -> int:
    """What the public door says to the token."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{up.port}/v1/sessions", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_token_is_shown_once_and_worth_nothing_once_revoked(up: Up, new_page: NewPage) -> None:
    plain = up.call("POST", "/v1/tokens", {"name": "plain", "scopes": ["read"]})
    page = new_page()
    page.get_by_role("link", name="Tokens").click()
    form = page.get_by_role("form", name="Make a token")
    form.get_by_label("Name").fill("reader")
    form.get_by_label("Owner (left empty: default)").fill("bob")
    for scope in ("steer sessions", "change files"):
        form.get_by_label(scope).uncheck()
    form.get_by_role("button", name="Make a token").click()
    token = page.get_by_label("Token, to be copied").input_value()
    assert status(up, token) == 200
    picture(page, "tokens-light")
    page.reload()
    row = page.get_by_role("listitem", name="reader")
    row.get_by_text("of bob · read · ").wait_for()
    assert token not in page.content()
    assert page.get_by_label("Token, to be copied").count() == 0
    row.get_by_role("button", name="Revoke").click()
    row.get_by_role("button", name="Revoke it now").click()
    page.get_by_text("reader was revoked").wait_for()
    wait_until(lambda: row.count() == 0, "it is off the list")
    assert status(up, token) == 401

    page.get_by_role("link", name="Instances").click()
    page.get_by_role("listitem", name="Generation").get_by_text("serving").wait_for()
    assert page.get_by_role("button", name="Hand over now").count() == 0
    assert faults(page, "instances") == []
    page.get_by_role("link", name="Tokens").click()
    page.get_by_role("listitem", name="plain").wait_for()
    assert faults(page, "tokens") == []

    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Token", exact=True).fill(plain["token"])
    with page.expect_response(lambda response: "/v1/tokens" in response.url) as answer:
        page.get_by_role("button", name="Log in").click()
    assert answer.value.status == 403
    page.get_by_role("link", name="Skills").wait_for()
    assert page.get_by_role("link", name="Tokens").count() == 0
