"""Idempotency-Key: once, the same answer, no secret kept; the catalogue is real."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import func, select

from holdoverd.catalogue import answered, schema
from holdoverd.catalogue.answered import KEPT_MS, Asked
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError, Conflict
from holdoverd.http import once
from holdoverd.http.app import ROUTES
from holdoverd.http.context import Context
from holdoverd.http.once import Once, kept_body, without
from holdoverd.http.wire import Head, Request, Response, Upgrade, json_response, no_content
from holdoverd.ids import now_ms
from tests.http.kit import PROMPT_ID, Doors, FakeSessions, open_catalogue, open_doors

PROMPT = {"id": PROMPT_ID, "text": "Hello"}
PROMPTS = "/v1/sessions/s_0/prompts"


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    """On a catalogue of their own, since keys stay."""
    catalogue = open_catalogue(tmp_path)
    async with open_doors(catalogue, host="alpha") as doors:
        doors.sessions.sessions["s_0"] = {"id": "s_0", "owner": "alice"}
        yield doors
    catalogue.close()


def created(doors: Doors) -> int:
    return len([call for call in doors.sessions.calls if call[0] == "create"])


async def rows(catalogue: Catalogue) -> int:
    count = select(func.count()).select_from(schema.answered)
    return int(await catalogue.read(lambda cx: cx.execute(count).scalar_one()))


# --- over the doors ---------------------------------------------------------------------------


async def test_a_request_sent_again_is_done_once_and_answered_the_same(doors: Doors) -> None:
    answers = [
        await doors.admin("POST", "/v1/sessions", {"title": "One"}, Idempotency_Key="a")
        for _ in range(3)
    ]
    assert [answer.status for answer in answers] == [201] * 3
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].headers["content-type"] == answers[2].headers["content-type"]
    assert created(doors) == 1


async def test_without_a_key_every_request_is_done(doors: Doors) -> None:
    for _ in range(2):
        await doors.admin("POST", "/v1/sessions", {"title": "One"})
    assert created(doors) == 2
    assert await rows(doors.context.catalogue) == 0


async def test_another_request_with_the_same_key_is_422_and_not_done(doors: Doors) -> None:
    await doors.admin("POST", "/v1/sessions", {"title": "One"}, Idempotency_Key="a")
    for path, body in (("/v1/sessions", {"title": "Two"}), ("/v1/sessions?owner=default", {})):
        answer = await doors.admin("POST", path, body, Idempotency_Key="a")
        assert (answer.status, answer.code) == (422, "unprocessable")
    assert created(doors) == 1


async def test_a_key_counts_for_one_token_and_one_path(doors: Doors) -> None:
    for owner in ("alice", "bob"):
        token, _ = await doors.token(owner)
        answer = await doors.ask(
            "POST", "/v1/sessions", {}, Authorization=f"Bearer {token}", Idempotency_Key="a"
        )
        assert answer.json()["owner"] == owner
    assert (await doors.admin("POST", PROMPTS, PROMPT, Idempotency_Key="a")).status == 202
    assert created(doors) == 2


async def test_what_is_being_answered_is_409_and_then_the_answer(doors: Doors) -> None:
    doors.sessions.gate = trio.Event()
    first: list[int] = []

    async def ask() -> None:
        first.append((await doors.admin("POST", PROMPTS, PROMPT, Idempotency_Key="a")).status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        while not any(call[0] == "prompt" for call in doors.sessions.calls):
            await trio.sleep(0.01)
        answer = await doors.admin("POST", PROMPTS, PROMPT, Idempotency_Key="a")
        assert (answer.status, answer.code) == (409, "conflict")
        assert "being answered" in answer.json()["error"]["message"]
        doors.sessions.gate.set()
    assert first == [202]
    again = await doors.admin("POST", PROMPTS, PROMPT, Idempotency_Key="a")
    assert (again.status, again.json()) == (202, {"id": PROMPT_ID, "seq": 7})


async def test_a_refusal_is_an_answer_and_a_not_now_is_none(doors: Doors) -> None:
    body = {"request_id": "p", "behavior": "allow"}
    for _ in range(2):
        answer = await doors.admin("POST", "/v1/sessions/s_0/answers", body, Idempotency_Key="a")
        assert (answer.status, answer.json()["error"]["answered_by"]) == (409, "bob")
    assert len([call for call in doors.sessions.calls if call[0] == "answer"]) == 1
    doors.sessions.fail = CatalogueError("The disk is full.")
    assert (await doors.admin("POST", PROMPTS, PROMPT, Idempotency_Key="b")).status == 503
    doors.sessions.fail = None
    assert (await doors.admin("POST", PROMPTS, PROMPT, Idempotency_Key="b")).status == 202


async def test_a_defect_leaves_open_whether_it_was_done(doors: Doors) -> None:
    doors.sessions.fail = RuntimeError("a defect")
    assert (await doors.admin("POST", PROMPTS, PROMPT, Idempotency_Key="a")).status == 500
    doors.sessions.fail = None
    answer = await doors.admin("POST", PROMPTS, PROMPT, Idempotency_Key="a")
    assert (answer.status, answer.code) == (409, "conflict")
    assert "may have been carried out or not" in answer.json()["error"]["message"]


async def test_a_token_is_made_once_and_shown_once(doors: Doors) -> None:
    spec = {"name": "t", "scopes": ["read"]}
    first, again = [
        (await doors.admin("POST", "/v1/tokens", spec, Idempotency_Key="a")).json()
        for _ in range(2)
    ]
    assert first.pop("token").startswith("hold_")
    assert again == first
    code = [
        (await doors.admin("POST", "/v1/login-codes", {}, Idempotency_Key="b")).json()
        for _ in range(2)
    ]
    assert code[1] == {"expires_at": code[0]["expires_at"]}


@pytest.mark.parametrize("key", ["", "x" * 201, "with space", "caf\xe9"])
async def test_a_key_that_is_none_is_400(doors: Doors, key: str) -> None:
    answer = await doors.admin("POST", "/v1/sessions", {}, Idempotency_Key=key)
    assert (answer.status, answer.code) == (400, "bad_request")
    assert created(doors) == 0


async def test_other_methods_and_open_doors_take_no_notice(doors: Doors) -> None:
    await doors.admin("PATCH", "/v1/sessions/s_0", {"title": "x"}, Idempotency_Key="a")
    token, _ = await doors.token()
    for _ in range(2):
        answer = await doors.ask("POST", "/login", {"token": token}, Idempotency_Key="a")
        assert answer.status == 204
        assert "set-cookie" in answer.headers
    assert await rows(doors.context.catalogue) == 0


# --- the layer --------------------------------------------------------------------------------


class Living:
    """The other instances, as the layer asks for them."""

    def __init__(self, *generations: int) -> None:
        self.generations = generations

    def instances(self) -> list[dict[str, Any]]:
        return [{"generation": generation} for generation in self.generations]


def a_request(context: Context, body: bytes = b"{}", key: str = "a") -> Request:
    head = Head(
        "POST",
        None,
        ("v1", "things"),
        {},
        [(b"idempotency-key", key.encode())],
        "admin",
        "",
    )
    return Request(head, {}, context.admin(), body=body)


async def ask(layer: Once, request: Request, response: Response, **route: Any) -> Response:
    async def handle() -> Response | Upgrade:
        return response

    settings: dict[str, Any] = {"secrets": (), "renew": None, **route}
    found = await layer.answer(request, handle, **settings)
    assert isinstance(found, Response)
    return found


@pytest.mark.parametrize(
    ("host", "generation", "living", "said"),
    [
        ("alpha", 2, (2, 3), "being answered"),  # a sibling that lives
        ("alpha", 2, (3,), "cut off"),
        ("alpha", 3, (3,), "cut off"),  # this one, before it was restarted
        ("beta", 3, (3,), "being answered"),  # another host, of which nothing is known here
    ],
)
async def test_a_request_of_another_process_runs_as_long_as_that_lives(
    doors: Doors, host: str, generation: int, living: tuple[int, ...], said: str
) -> None:
    context = replace(doors.context, router=Living(*living))  # type: ignore[arg-type]
    request = a_request(context)
    key = once.key_of(request)
    assert key is not None
    asked = Asked(key, once.request_digest(request), "", host, generation)
    await context.catalogue.write(lambda cx: answered.begin(cx, asked, now_ms()))
    with pytest.raises(Conflict, match=said):
        await ask(Once(context), request, no_content())


async def test_fresh_secrets_are_made_for_an_answer_given_again(doors: Doors) -> None:
    layer = Once(doors.context)
    request = a_request(doors.context)
    made: list[Any] = []

    async def renew(_context: Context, _request: Request, kept: Any) -> Any:
        made.append(kept)
        return {**kept, "upload": {**kept["upload"], "parts": ["signed anew"]}}

    first = json_response({"file": "f_1", "upload": {"id": "u_1", "parts": ["signed"]}}, 201)
    route = {"secrets": ("upload.parts",), "renew": renew}
    assert await ask(layer, request, first, **route) == first
    again = await ask(layer, request, first, **route)
    assert made == [{"file": "f_1", "upload": {"id": "u_1"}}]
    assert again.status == 201
    assert b"signed anew" in again.body


async def test_an_answer_that_cannot_be_kept_is_not_done_again(
    doors: Doors, caplog: pytest.LogCaptureFixture
) -> None:
    layer = Once(doors.context)
    signed = json_response({"url": "https://s3/x?X-Amz-Signature=abc"})
    large = json_response({"text": "x" * once.MAX_KEPT_BYTES})
    for key, response in (("a", signed), ("b", large)):
        request = a_request(doors.context, key=key)
        assert await ask(layer, request, response) == response
        with pytest.raises(Conflict, match="answered with status 200; that answer is"):
            await ask(layer, request, response)
    assert "holds a secret that its route does not name" in caplog.text
    assert "abc" not in caplog.text


async def test_an_empty_answer_stays_empty(doors: Doors) -> None:
    layer = Once(doors.context)
    for _ in range(2):
        found = await ask(layer, a_request(doors.context), no_content())
        assert (found.status, found.body) == (204, b"")


# --- the rules --------------------------------------------------------------------------------


def test_named_fields_are_left_out_and_nothing_else() -> None:
    fields: dict[str, object] = {"a": 1, "b": {"c": 2, "d": 3}, "e": [1]}
    assert without(fields, ("a", "b.c", "e.x", "none.at.all")) == {"b": {"d": 3}, "e": [1]}
    assert fields == {"a": 1, "b": {"c": 2, "d": 3}, "e": [1]}


def test_an_error_is_kept_whole_whatever_the_route_names() -> None:
    error = Response(409, b'{"error":{"token":"x"}}')
    assert kept_body(error, ("error.token",)) == error.body


def test_every_route_that_shows_a_secret_names_it() -> None:
    named = {route.pattern: route.secrets for route in ROUTES if route.secrets}
    assert named["/v1/tokens"] == ("token",)
    assert named["/v1/login-codes"] == ("code", "url")
    assert all(route.method == "POST" for route in ROUTES if route.secrets)


# --- the table --------------------------------------------------------------------------------


def an_asked(key: str, **changed: Any) -> Asked:
    return replace(Asked(key, "digest", "t_1", "alpha", 3), **changed)


async def test_a_day_later_the_key_is_new_and_what_is_over_goes(doors: Doors) -> None:
    catalogue = doors.context.catalogue
    for number in range(50):
        asked = an_asked(f"k{number}")
        assert await catalogue.write(lambda cx, a=asked: answered.begin(cx, a, 1_000)) is None
    late = an_asked("k49", request="another")
    kept = await catalogue.write(lambda cx: answered.begin(cx, late, 999 + KEPT_MS))
    assert kept is not None
    for _ in range(3):
        await catalogue.write(lambda cx: answered.forget(cx, "k49"))
        assert await catalogue.write(lambda cx: answered.begin(cx, late, 1_000 + KEPT_MS)) is None
    assert await rows(catalogue) == 1


async def test_a_token_has_a_bounded_number_of_keys(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answered, "MAX_KEPT", 2)
    statuses = [
        (await doors.admin("POST", "/v1/sessions", {}, Idempotency_Key=key)).status
        for key in ("a", "b", "c", "a")
    ]
    assert statuses == [201, 201, 429, 201]
    assert isinstance(doors.sessions, FakeSessions)
    assert created(doors) == 2
