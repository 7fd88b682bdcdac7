"""The shapes of requests: what is let through, what is refused, and whose name is in the refusal."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdoverd.errors import BadRequest, RequestError, TooLarge, Unprocessable
from holdoverd.http import frames, shapes

UUID = "0e3c6d3a-2e0f-4a3e-9f10-6a6f3c1d2b4e"
MIB = 1024 * 1024


def small_prompt(data: dict[str, object]) -> shapes.Json:
    return shapes.prompt(data, MIB)


@pytest.mark.parametrize(
    ("shape", "data", "result"),
    [
        (shapes.new_session, {}, {}),
        (
            shapes.new_session,
            {"agent": "demo", "cwd": "/srv/x", "title": "A é", "model": "m", "future": 1}
            | {"permission_mode": "plan", "share": "read"},
            {"agent": "demo", "cwd": "/srv/x", "title": "A é", "model": "m"}
            | {"permission_mode": "plan", "share": "read"},
        ),
        (shapes.new_session, {"title": None, "model": None, "share": None}, {}),
        (
            shapes.new_session,
            {"prompt": {"id": UUID, "text": "hi"}},
            {"prompt": {"id": UUID, "text": "hi"}},
        ),
        (
            shapes.new_session,
            {"repo": {"url": "u", "ref": "r"}},
            {"repo": {"url": "u", "ref": "r"}},
        ),
        (shapes.session_changes, {}, {}),
        (shapes.session_changes, {"title": None, "x": 1}, {"title": None}),
        (shapes.session_changes, {"permission_mode": "auto"}, {"permission_mode": "auto"}),
        (small_prompt, {"id": UUID.upper(), "text": "a\n\0"}, {"id": UUID, "text": "a\n\0"}),
        (
            small_prompt,
            {"id": UUID, "content": [{"type": "text", "text": ""}], "attachments": ["f_1"]},
            {"id": UUID, "content": [{"type": "text", "text": ""}], "attachments": ["f_1"]},
        ),
        (
            shapes.answer,
            {"request_id": "p", "behavior": "allow", "updated_input": {}, "remember": {"a": 1}},
            {"request_id": "p", "behavior": "allow", "updated_input": {}, "remember": {"a": 1}},
        ),
        (
            shapes.answer,
            {"request_id": "p", "behavior": "deny", "message": ""},
            {"request_id": "p", "behavior": "deny", "message": ""},
        ),
        (shapes.cancel_queued, {}, False),
        (shapes.cancel_queued, {"cancel_queued": True}, True),
        (
            shapes.new_token,
            {"name": "n", "scopes": ["read", "read", "admin"], "owner": "a.b@c", "expires_in_s": 1},
            {"name": "n", "scopes": ["admin", "read"], "owner": "a.b@c", "expires_in_s": 1},
        ),
    ],
)
def test_what_is_let_through(
    shape: Callable[[dict[str, Any]], object], data: dict[str, Any], result: object
) -> None:
    assert shape(data) == result


@pytest.mark.parametrize(
    ("shape", "data", "error", "named"),
    [
        (shapes.new_session, {"cwd": None}, Unprocessable, "cwd"),
        (shapes.new_session, {"cwd": ""}, Unprocessable, "cwd"),
        (shapes.new_session, {"cwd": 7}, BadRequest, "cwd"),
        (shapes.new_session, {"cwd": "/a\0b"}, Unprocessable, "cwd"),
        (shapes.new_session, {"cwd": "/" + "x" * 4096}, Unprocessable, "cwd"),
        (shapes.new_session, {"agent": ["x"]}, BadRequest, "agent"),
        (shapes.new_session, {"title": "x" * 501}, Unprocessable, "title"),
        (shapes.new_session, {"title": "a\x1b[2J"}, Unprocessable, "title"),
        (shapes.new_session, {"model": "a\nb"}, Unprocessable, "model"),
        (shapes.new_session, {"permission_mode": "yolo"}, Unprocessable, "permission_mode"),
        (shapes.new_session, {"permission_mode": None}, BadRequest, "permission_mode"),
        (shapes.new_session, {"share": "all"}, Unprocessable, "share"),
        (shapes.new_session, {"prompt": "hi"}, BadRequest, "prompt"),
        (shapes.new_session, {"prompt": {"id": UUID}}, BadRequest, r"prompt\.text"),
        (shapes.new_session, {"prompt": {"text": "x"}}, BadRequest, r"prompt\.id"),
        (shapes.new_session, {"repo": {}}, BadRequest, r"repo\.url"),
        (shapes.new_session, {"repo": {"url": "u"}, "cwd": "/x"}, Unprocessable, "repo"),
        (small_prompt, {"id": "7", "text": "x"}, Unprocessable, "id"),
        (small_prompt, {"id": UUID + "\n", "text": "x"}, Unprocessable, "id"),
        (small_prompt, {"id": UUID, "text": ""}, Unprocessable, "text"),
        (small_prompt, {"id": UUID, "text": None}, BadRequest, "text"),
        (small_prompt, {"id": UUID, "text": "x", "content": []}, BadRequest, "one of"),
        (small_prompt, {"id": UUID, "content": []}, Unprocessable, "content"),
        (small_prompt, {"id": UUID, "content": "x"}, BadRequest, "content"),
        (small_prompt, {"id": UUID, "content": ["x"]}, BadRequest, "content"),
        (small_prompt, {"id": UUID, "content": [{"type": 1}]}, BadRequest, "content"),
        (small_prompt, {"id": UUID, "text": "x", "attachments": [1]}, BadRequest, "attachments"),
        (
            small_prompt,
            {"id": UUID, "text": "x", "attachments": ["x"] * 101},
            Unprocessable,
            "attachments",
        ),
        (shapes.answer, {"behavior": "allow"}, BadRequest, "request_id"),
        (shapes.answer, {"request_id": "p"}, BadRequest, "behavior"),
        (shapes.answer, {"request_id": "p", "behavior": "ask"}, Unprocessable, "behavior"),
        (
            shapes.answer,
            {"request_id": "p", "behavior": "allow", "updated_input": "x"},
            BadRequest,
            "updated_input",
        ),
        (
            shapes.answer,
            {"request_id": "p", "behavior": "deny", "updated_input": {}},
            Unprocessable,
            "updated_input",
        ),
        (shapes.cancel_queued, {"cancel_queued": 1}, BadRequest, "cancel_queued"),
        (shapes.cancel_queued, {"cancel_queued": None}, BadRequest, "null"),
        (shapes.new_token, {"scopes": ["read"]}, BadRequest, "name"),
        (shapes.new_token, {"name": "n"}, BadRequest, "scopes"),
        (shapes.new_token, {"name": "n", "scopes": []}, Unprocessable, "empty"),
        (shapes.new_token, {"name": "n", "scopes": ["root"]}, Unprocessable, "root"),
        (shapes.new_token, {"name": "n", "scopes": "read"}, BadRequest, "scopes"),
        (
            shapes.new_token,
            {"name": "n", "scopes": ["read"], "expires_in_s": 0},
            Unprocessable,
            "expires_in_s",
        ),
        (
            shapes.new_token,
            {"name": "n", "scopes": ["read"], "expires_in_s": True},
            BadRequest,
            "expires_in_s",
        ),
        (
            shapes.new_token,
            {"name": "n", "scopes": ["read"], "expires_in_s": 10**10},
            Unprocessable,
            "at most 3162240000",
        ),
        (shapes.owner, {"owner": "../x"}, Unprocessable, "owner"),
        (shapes.owner, {"owner": "a b"}, Unprocessable, "owner"),
    ],
)
def test_what_is_refused(
    shape: Callable[[dict[str, Any]], object],
    data: dict[str, Any],
    error: type[RequestError],
    named: str,
) -> None:
    with pytest.raises(error, match=named) as raised:
        shape(data)
    assert type(raised.value) is error


@pytest.mark.parametrize("limit", [shapes.MAX_HTTP_PROMPT_BYTES, shapes.MAX_STREAM_PROMPT_BYTES])
@pytest.mark.parametrize("character", ["x", "é", "😀"])
def test_a_prompt_is_bounded_in_bytes(limit: int, character: str) -> None:
    text = character * (limit // len(character.encode()))
    assert shapes.prompt({"id": UUID, "text": text}, limit)["text"] == text
    with pytest.raises(TooLarge):
        shapes.prompt({"id": UUID, "text": text + "x"}, limit)


@pytest.mark.parametrize("text", ["0", "1", "9007199254740991"])
def test_integers_of_a_query(text: str) -> None:
    assert shapes.query_integer({"a": text}, "a") == int(text)


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1.0", "1e3", " 1", "0x1", "²", "9007199254740992"]
)
def test_integers_a_query_may_not_hold(text: str) -> None:
    with pytest.raises(BadRequest, match="`a`"):
        shapes.query_integer({"a": text}, "a")


def test_limits_of_lists() -> None:
    assert shapes.query_limit({}) == 50
    assert shapes.query_limit({"limit": "500"}) == 500
    for text in ("0", "501"):
        with pytest.raises(BadRequest, match="limit"):
            shapes.query_limit({"limit": text})


def test_flags_choices_and_texts_of_a_query() -> None:
    assert shapes.query_flag({"purge": "true"}, "purge") is True
    assert shapes.query_flag({}, "purge") is False
    with pytest.raises(BadRequest, match="purge"):
        shapes.query_flag({"purge": "yes"}, "purge")
    assert shapes.query_choice({}, "state", shapes.STATES) is None
    with pytest.raises(BadRequest, match="state"):
        shapes.query_choice({"state": "odd"}, "state", shapes.STATES)
    assert shapes.query_text({"q": ""}, "q") is None
    assert shapes.query_text({"q": "x" * 500}, "q") == "x" * 500
    for text in ("x" * 501, "a\0"):
        with pytest.raises(BadRequest, match="`q`"):
            shapes.query_text({"q": text}, "q")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)
field_names = st.sampled_from(
    [
        "type",
        "ref",
        "id",
        "text",
        "content",
        "prompt",
        "cwd",
        "title",
        "share",
        "repo",
        "scopes",
        "name",
        "owner",
        "request_id",
        "behavior",
        "thread",
        "page",
        "after_n",
        "cancel_queued",
    ]
)


# A machine that others keep busy makes slow data: no fault of the test's.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(field_names, json_values))
def test_any_object_is_let_through_or_refused(data: dict[str, Any]) -> None:
    for shape in (
        shapes.new_session,
        shapes.session_changes,
        small_prompt,
        shapes.answer,
        shapes.cancel_queued,
        shapes.new_token,
        shapes.owner,
    ):
        with suppress(BadRequest, Unprocessable, TooLarge):
            shape(data)


# --- frames ----------------------------------------------------------------------------------


@given(st.dictionaries(field_names, json_values))
def test_any_frame_is_answered_with_valid_json_and_its_ref(data: dict[str, Any]) -> None:
    try:
        frame = frames.parse_frame(json.dumps(data))
    except frames.FrameError as error:
        answer = json.loads(frames.error_reply(error.error, error.ref))
        assert answer["type"] == "error"
        assert "ref" not in answer or json.dumps(answer["ref"]) == json.dumps(data["ref"])
        return
    assert frame.type in frames.FRAME_SCOPES
    for fields in ("{}", '{"a":1}', ' { "a" : 1 } ', "{ }"):
        answer = json.loads(frames.reply("ok", frame.ref, fields))
        assert answer["type"] == "ok"
        assert ("ref" in answer) == ("ref" in data)
        assert ("a" in answer) == ('"a"' in fields)


def test_a_close_reason_fits_its_frame_and_stays_text() -> None:
    assert frames.close_reason("short") == "short"
    assert frames.close_reason("x" * 200) == "x" * 123
    assert frames.close_reason("é" * 100) == "é" * 61
