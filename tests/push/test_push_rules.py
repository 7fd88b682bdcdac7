"""What is worth a message, whom it may go to, and that only the browser can read it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from holdoverd.errors import Unprocessable
from holdoverd.push import rules, sealing
from tests.push.loopback import Browser, base64url, claims_of, from_base64url


def view(state: str, *pending: str, tool: str = "Bash", **more: Any) -> dict[str, Any]:
    asked = [{"request_id": one, "tool_name": tool, "title": None} for one in pending]
    return {"id": "s_1", "title": "T", "state": state, "pending": asked, "error": None, **more}


@pytest.mark.parametrize(
    ("before", "now", "asked", "kind"),
    [
        ("working", view("waiting", "p1"), (), "waiting"),
        ("waiting", view("waiting", "p1", "p2"), ("p1",), "waiting"),
        ("working", view("waiting", "p1", tool="AskUserQuestion"), (), "question"),
        ("waiting", view("waiting", "p1"), ("p1", "p2"), None),
        ("working", view("idle"), (), "finished"),
        ("waiting", view("idle"), ("p1",), "finished"),
        ("starting", view("idle"), (), None),
        ("dormant", view("idle"), (), None),
        ("idle", view("working"), (), None),
        ("idle", view("idle"), (), None),
        ("working", view("dormant"), (), None),
        ("idle", view("ended"), (), None),
        ("starting", view("failed", error={"message": "no such program"}), (), "failed"),
        ("failed", view("failed", error={"message": "again"}), (), None),
    ],
)
def test_what_is_worth_a_message(
    before: str, now: dict[str, Any], asked: tuple[str, ...], kind: str | None
) -> None:
    found = rules.word(before, now, frozenset(asked))
    assert (found and found["kind"]) == kind


def test_a_message_is_short_whatever_the_agent_says() -> None:
    now = view("waiting", "p1", tool="x" * 10_000) | {"title": "ä" * 10_000}
    message = rules.word("working", now, frozenset())
    assert message is not None
    browser = Browser()
    to = rules.Target("https://push.example/1", browser.p256dh, browser.auth)
    body = sealing.seal(to, message, ec.generate_private_key(sealing.CURVE), bytes(16))
    assert len(body) <= 4096
    assert json.loads(browser.open(body)) == message


def test_the_example_of_rfc_8291() -> None:
    """Section 5, with the values of its appendix A."""
    secret = ec.derive_private_key(
        int.from_bytes(from_base64url("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"), "big"),
        sealing.CURVE,
    )
    theirs = (
        "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
    )
    my_secret = ec.derive_private_key(
        int.from_bytes(from_base64url("q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94"), "big"),
        sealing.CURVE,
    )
    auth = from_base64url("BTBZMqHH6r4Tts7J_aSIgg")
    expected = (
        "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6Tlz"
        "AC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
    )
    to = rules.Target("https://push.example/1", from_base64url(theirs), auth)
    salt = from_base64url("DGv6ra1nlYgDCS1FRnbzlw")
    text = b"When I grow up, I want to be a watermelon"
    assert base64url(sealing.seal_text(to, text, secret, salt)) == expected
    assert Browser(my_secret, auth).open(from_base64url(expected)) == text


def test_who_sends_is_signed_for_one_service_and_for_some_hours() -> None:
    key = ec.generate_private_key(sealing.CURVE)
    to = rules.Target("https://push.example:8443/abc?d", b"", b"")
    claims = claims_of(sealing.authorization(to, key, "mailto:a@b", 1234))
    assert claims == {
        "aud": "https://push.example:8443",
        "exp": 1234,
        "sub": "mailto:a@b",
        "key": sealing.public_text(key),
    }


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://push.example/1",
        "ftp://push.example/1",
        "https:///1",
        "https://user@push.example/1",
        "https://push.example:0/1",
        "https://push.example:99999/1",
        "https://push.example/1#x",
        "https://pu\u0455h.example/1",
        "https://push.example/a b",
        "https://push.example/a\r\nHost: x",
        "",
    ],
)
def test_only_https_addresses_are_taken(endpoint: str) -> None:
    keys = Browser().keys()
    with pytest.raises(Unprocessable):
        rules.target(endpoint, keys["p256dh"], keys["auth"])
    assert rules.target("https://push.example/1", keys["p256dh"], keys["auth"]).port == 443


@pytest.mark.parametrize(
    ("p256dh", "auth"),
    [("", ""), ("x", "y"), (base64url(b"\4" + bytes(64)), "A" * 22), ("é", "A" * 22)],
)
def test_keys_that_are_none_are_refused(p256dh: str, auth: str) -> None:
    ours = sealing.Sealing(ec.generate_private_key(sealing.CURVE), "mailto:a@b")
    with pytest.raises(Unprocessable):
        ours.check_key(rules.target("https://push.example/1", p256dh, auth))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("192.168.0.1", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
    ],
)
def test_only_the_public_internet_may_be_sent_to(address: str, public: bool) -> None:
    assert rules.may_be_sent_to(address) is public
