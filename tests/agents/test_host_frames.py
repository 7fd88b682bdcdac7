"""Lines that a host writes: one line of JSON each, with the agent's own JSON embedded unchanged."""

import json
from typing import Any

import pytest

from holdoverd.agents import host_frames
from holdoverd.errors import BadRequest


def read(line: str) -> Any:
    assert "\n" not in line
    assert "\r" not in line
    return json.loads(line)


def test_initialize_declares_no_dialogs_and_spares_background_tasks() -> None:
    line = read(host_frames.initialize("r1", title="A title"))
    assert (line["type"], line["request_id"]) == ("control_request", "r1")
    request = line["request"]
    assert request["subtype"] == "initialize"
    assert request["supportedDialogKinds"] == []
    assert request["perTaskStopAffordance"] is True
    assert request["forwardSubagentText"] is True
    assert request["title"] == "A title"
    assert "title" not in read(host_frames.initialize("r1"))["request"]


def test_a_prompt_carries_its_uuid_and_its_origin() -> None:
    line = read(host_frames.user_prompt("p1", "one\ntwo \u2028 é", agent_session="s1"))
    assert line == {
        "type": "user",
        "uuid": "p1",
        "session_id": "s1",
        "parent_tool_use_id": None,
        "message": {"role": "user", "content": [{"type": "text", "text": "one\ntwo \u2028 é"}]},
        "origin": {"kind": "human"},
    }
    blocks = [{"type": "image", "source": {"type": "base64", "data": "AA=="}}]
    line = read(host_frames.user_prompt("p1", blocks, agent_session="s1", human=False))
    assert line["message"]["content"] == blocks
    assert "origin" not in line


def test_allowing_echoes_the_input_byte_for_byte() -> None:
    given = r'{ "command":"ls","n":1.0,"half":"\ud83d"}'
    line = host_frames.allow(
        "q1", updated_input=given, tool_use_id="t1", updated_permissions=['{"type":"setMode"}']
    )
    assert f'"updatedInput":{given}' in line
    response = read(line)["response"]
    assert (response["subtype"], response["request_id"]) == ("success", "q1")
    assert response["response"]["behavior"] == "allow"
    assert response["response"]["updatedPermissions"] == [{"type": "setMode"}]
    assert response["response"]["toolUseID"] == "t1"
    bare = read(host_frames.allow("q1", updated_input="{}"))["response"]["response"]
    assert bare == {"behavior": "allow", "updatedInput": {}}


def test_an_input_over_several_lines_stays_one_line() -> None:
    line = host_frames.allow("q1", updated_input='{\r\n  "a": "b\\nc"\n}')
    assert read(line)["response"]["response"]["updatedInput"] == {"a": "b\nc"}


def test_denying_says_why() -> None:
    line = read(host_frames.deny("q1", "use make clean", interrupt=True))
    assert line["response"]["response"] == {
        "behavior": "deny",
        "message": "use make clean",
        "interrupt": True,
    }


def test_what_we_do_not_know_is_refused_so_that_nobody_waits() -> None:
    line = read(host_frames.unsupported("q1", "elicitation"))
    assert line["type"] == "control_response"
    assert line["response"]["subtype"] == "error"
    assert line["response"]["request_id"] == "q1"
    assert "elicitation" in line["response"]["error"]
    assert "(none)" in read(host_frames.unsupported("q1", None))["response"]["error"]


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (host_frames.interrupt("r"), {"subtype": "interrupt"}),
        (
            host_frames.interrupt("r", cancel_queued=True),
            {"subtype": "interrupt", "cancel_queued": True},
        ),
        (host_frames.set_model("r", "m"), {"subtype": "set_model", "model": "m"}),
        (host_frames.set_model("r", None), {"subtype": "set_model", "model": None}),
        (
            host_frames.set_permission_mode("r", "plan"),
            {"subtype": "set_permission_mode", "mode": "plan"},
        ),
        (
            host_frames.cancel_async_message("r", "p1"),
            {"subtype": "cancel_async_message", "message_uuid": "p1"},
        ),
    ],
)
def test_requests_have_the_protocols_form(line: str, request_: dict[str, object]) -> None:
    assert read(line) == {"type": "control_request", "request_id": "r", "request": request_}


def test_unknown_permission_modes_are_refused_with_the_list_of_known_ones() -> None:
    with pytest.raises(BadRequest, match=r"'yolo' is not known; use one of default, acceptEdits"):
        host_frames.set_permission_mode("r", "yolo")
