"""What each kind of line is. The vectors T1 to T28 are those of the protocol's description.

Here: what classification has to say about T3, T4, T6 to T18, T21 to T24, T26 to T28. T1, T2 and
T5 are in test_lines, T8's snapshots in test_open_blocks. What a session makes of frames (T9 to
T12, T14, T15, T17 to T20, T25) is tested with sessions.
"""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from holdoverd.agents.stream_json import (
    MAX_DEPTH,
    STORED,
    ControlRequest,
    EndRecord,
    Frame,
    ToolUse,
    classify,
)
from holdoverd.agents.stream_json import _Envelope as Envelope

SID = "0f0e0d0c-0b0a-4908-8706-050403020100"


def frame(**fields: Any) -> Frame:
    line = json.dumps(fields, ensure_ascii=False).encode()
    found = classify(line)
    assert found.raw == line.decode()  # the agent's own text, unchanged, whatever else is read
    return found


def test_conversation_frames_are_stored_and_others_are_live_only() -> None:
    stored = [
        ({"type": "assistant"}, "assistant"),
        ({"type": "user"}, "user"),
        ({"type": "user", "isReplay": False}, "user"),
        ({"type": "result", "subtype": "success"}, "result"),
        ({"type": "conversation_reset", "new_conversation_id": "x"}, "system"),  # T18
        ({"type": "tool_use_summary", "summary": "x"}, "system"),
        ({"type": "system", "subtype": "compact_boundary"}, "system"),
        ({"type": "system", "subtype": "local_command_output", "content": "x"}, "system"),
        ({"type": "system", "subtype": "informational", "content": "x"}, "system"),
        ({"type": "system", "subtype": "permission_denied", "message": "no"}, "system"),
        ({"type": "system", "subtype": "model_refusal_fallback"}, "system"),
        ({"type": "system", "subtype": "model_refusal_no_fallback"}, "system"),
        ({"type": "system", "subtype": "memory_recall"}, "system"),
        ({"type": "system", "subtype": "files_persisted"}, "system"),
    ]
    for fields, kind in stored:
        found = frame(**fields)
        assert (found.kind, found.kind in STORED) == (kind, True)
        assert found.status_name is None
    live = [
        ({"type": "user", "isReplay": True}, "replay"),
        ({"type": "stream_event"}, "delta"),
        ({"type": "system", "subtype": "init"}, "status"),
        ({"type": "system", "subtype": "status"}, "status"),
        ({"type": "tool_progress", "tool_use_id": "t"}, "status"),
        ({"type": "keep_alive"}, "ignore"),  # T27
        ({"type": "transcript_mirror"}, "ignore"),
        ({"type": "control_cancel_request", "request_id": "r"}, "control_cancel"),
        ({"type": "holdover_end"}, "end"),
    ]
    for fields, kind in live:
        found = frame(**fields)
        assert (found.kind, found.kind in STORED) == (kind, False)


def test_unknown_types_subtypes_and_fields_are_passed_on_live() -> None:
    """T6: the sets are open."""
    assert frame(type="telepathy", uuid="u").status_name == "telepathy"
    assert frame(type="system", subtype="mood").status_name == "mood"
    assert frame(type="system").status_name == "system"
    assert frame(colour="blue").status_name == "unknown"
    assert frame(type=7).kind == "status"
    assert frame(type="assistant", aura=[1, {"x": None}]).kind == "assistant"


def test_status_names_tell_tasks_and_tool_uses_apart() -> None:
    assert frame(type="system", subtype="task_progress", task_id="a1").status_name == (
        "task_progress:a1"
    )
    assert frame(type="tool_progress", tool_use_id="toolu_1").status_name == "tool_progress:toolu_1"
    both = frame(type="system", subtype="task_started", task_id="a1", tool_use_id="toolu_1")
    assert both.status_name == "task_started:a1"
    long = frame(type="system", subtype="x" * 500, task_id="y" * 500).status_name
    assert long is not None
    assert len(long) == 512


@pytest.mark.parametrize("line", [b"", b" ", b"\r", b"\t \r"])
def test_blank_lines_are_ignored(line: bytes) -> None:
    assert classify(line).kind == "ignore"


@pytest.mark.parametrize(
    "line",
    [b"npm WARN deprecated", b"[1,2]", b'"{}"', b"null", b"\xff\xfe", b" {}", b"\xef\xbb\xbf{}"],
)
def test_lines_that_do_not_begin_an_object_are_noise(line: bytes) -> None:
    """T4: debug output between frames; its text is kept as far as it is text."""
    found = classify(line)
    assert found.kind == "noise"
    assert found.raw == line.decode("utf-8", "replace")


NOT_STRICT = [
    b"{",
    b'{"type":"user"',
    b'{"type":"user"} x',
    b'{"type":"user"}{}',
    b'{"type":"user",}',
    b'{"type":"user","x":[1,]}',
    b'{"type":"user","x":NaN}',
    b'{"type":"user","x":Infinity}',
    b'{"type":"user","x":-Infinity}',
    b'{"type":"user","x":01}',
    b'{"type":"user","x":1.}',
    b'{"type":"user","x":.5}',
    b'{"type":"user","x":+1}',
    b'{"type":"user","x":tru}',
    b'{"type":"user","x":"\x01"}',
    b'{"type":"user","x":"\t"}',
    b'{"type":"user","\x1f":1}',
    b'{"type":"user","x":"\\q"}',
    b'{"type":"user","x":"\\u12"}',
    b'{"type":"user","x":"\\u12G4"}',
    b'{"type":"user","x":"\xff"}',
    b'{"type":"user","x":"\xc3"}',
    b'{"type":"user","x":"\xed\xa0\x80"}',  # a surrogate in UTF-8
    b'{"type":"user","x":"\xc0\x80"}',  # an overlong NUL
    b'{"type":"user"}\x00',
    b"{'type':'user'}",
    b'{"type":"user"/**/}',
    b'{type:"user"}',
    b'{"type":5,"x":NaN}',  # a field of another type does not open the door for the rest
    b'{"type":"user","x":"\\ud800","y":NaN}',  # nor does a lone surrogate
]


@pytest.mark.parametrize("line", NOT_STRICT)
def test_what_is_not_strictly_json_is_invalid(line: bytes) -> None:
    found = classify(line)
    assert found.kind == "invalid"
    assert found.raw == line.decode("utf-8", "replace")


def test_unescaped_line_separators_are_legal_inside_strings() -> None:
    """T3."""
    found = frame(type="assistant", message={"content": "a\u2028b\u2029c\x85d\x7f"})
    assert found.kind == "assistant"


def test_lone_surrogates_are_json_and_kept_as_they_are() -> None:
    line = (
        rb'{"type":"assistant","uuid":"u1","message":{"id":"m","content":[{"type":"tool_use",'
        rb'"id":"t1","name":"Agent","input":{"description":"cut \ud83d here"}}]},'
        rb'"x":"\\ud800 \ud83d\ude00 \udfff"}'
    )
    found = classify(line)
    assert found.kind == "assistant"
    assert found.raw == line.decode()
    assert found.uuid == "u1"
    assert found.tool_uses == (ToolUse("t1", "Agent", "cut \ufffd here"),)


def test_a_permission_is_echoed_as_it_was_asked_even_with_half_a_character() -> None:
    line = (
        rb'{"type":"control_request","request_id":"r","request":{"subtype":"can_use_tool",'
        rb'"tool_name":"Write","input":{"text":"\ud83d","n":1e400},"tool_use_id":"t"}}'
    )
    found = classify(line)
    assert found.request is not None
    assert found.request.input == r'{"text":"\ud83d","n":1e400}'
    assert found.request.raw in found.raw


def nested(depth: int) -> bytes:
    return b'{"type":"user","x":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def test_nesting_is_allowed_up_to_a_fixed_depth() -> None:
    assert classify(nested(MAX_DEPTH)).kind == "user"
    assert classify(nested(MAX_DEPTH + 1)).kind == "invalid"
    assert classify(nested(5000)).kind == "invalid"
    assert classify(b'{"x":' * 5000).kind == "invalid"
    # Brackets that only stand side by side, or in a string, nest nothing.
    assert classify(b'{"type":"user","x":[' + b"[]," * 5000 + b"[]]}").kind == "user"
    assert classify(b'{"type":"user","x":"' + b'[{\\"' * 5000 + b'"}').kind == "user"


@pytest.mark.parametrize("lists", [0, 1, 200])
def test_the_tightest_objects_count_as_deep_as_they_are(lists: int) -> None:
    def tight(depth: int) -> bytes:
        """Five bytes a level, so that length alone says as little as possible."""
        inner = depth - lists
        return b'{"":' * (inner - 1) + b"[" * lists + b"{}" + b"]" * lists + b"}" * (inner - 1)

    assert classify(tight(MAX_DEPTH)).kind == "status"
    assert classify(tight(MAX_DEPTH + 1)).kind == "invalid"


@pytest.mark.parametrize(
    "rest",
    [
        b'"uuid":"u1","parent_tool_use_id":"t1","isReplay":true,"user_message_uuids":["p1"]',
        b'"message":{"id":"m","content":[{"type":"tool_use","id":"t2","name":"Bash"}]}',
        b'"message":{"id":7,"content":[{"type":"tool_result","tool_use_id":"t3"}]},"uuid":[]',
        b'"message":"text","status":{"wrong":1},"tasks":7,"type":"result","total_cost_usd":1',
        b'"message":{"content":"\\ud83d"}',
        b'"type":7',
        b'"x":1e999,"x":NaN',
        b'"x":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
    ],
)
@pytest.mark.parametrize("kind", [b"assistant", b"user"])
def test_a_conversation_line_means_the_same_however_its_fields_stand(
    kind: bytes, rest: bytes
) -> None:
    """Lines that begin as usual are read a shorter way; a space in front takes the longer one."""
    usual = classify(b'{"type":"' + kind + b'",' + rest + b"}")
    other = classify(b'{ "type":"' + kind + b'",' + rest + b"}")
    assert usual.raw != other.raw
    assert replace(usual, raw="") == replace(other, raw="")


def test_numbers_are_allowed_up_to_a_fixed_length() -> None:
    def number(digits: int, quote: bytes = b"") -> bytes:
        return b'{"type":"user","x":' + quote + b"7" * digits + quote + b"}"

    assert classify(number(4000)).kind == "user"
    assert classify(number(4001)).kind == "invalid"
    assert classify(number(100_000)).kind == "invalid"
    assert classify(number(100_000, b'"')).kind == "user"


def test_blocks_of_one_message_share_its_id() -> None:
    """T7: one frame for each completed block."""
    blocks = [
        {"type": "thinking", "thinking": "…"},
        {"type": "text", "text": "hi"},
        {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}},
    ]
    frames = [
        frame(type="assistant", uuid=f"u{i}", message={"id": "msg_1", "content": [block]})
        for i, block in enumerate(blocks)
    ]
    assert [one.message_id for one in frames] == ["msg_1"] * 3
    assert frames[2].tool_uses == (ToolUse("toolu_1", "Bash", None),)


def test_frames_of_sub_agents_name_their_thread() -> None:
    """T16: the tree follows from tool uses, of whatever depth."""
    main = frame(
        type="assistant",
        parent_tool_use_id=None,
        message={
            "content": [
                {"type": "tool_use", "id": "t1", "name": "Agent", "input": {"description": "Look"}},
                {"type": "tool_use", "id": "t2", "name": "Skill", "input": {"skill": "pdf"}},
            ]
        },
    )
    assert (main.thread, main.parent_tool_use_id) == ("main", None)
    assert [use.title for use in main.tool_uses] == ["Look", "pdf"]
    below = frame(
        type="assistant",
        parent_tool_use_id="t1",
        message={"content": [{"type": "tool_use", "id": "t3", "name": "Task", "input": {}}]},
    )
    assert (below.thread, below.tool_uses) == ("t1", (ToolUse("t3", "Task", None),))
    assert frame(type="user", parent_tool_use_id="t3").thread == "t3"


def test_titles_are_one_bounded_printable_line() -> None:
    def title(text: object) -> str | None:
        use = {"type": "tool_use", "id": "t", "name": "Agent", "input": {"description": text}}
        return frame(type="assistant", message={"content": [use]}).tool_uses[0].title

    assert title(" two\nlines\t\x1b[31m ") == "two lines \ufffd[31m"
    assert title("x" * 200) == "x" * 200
    assert title("x" * 201) == "x" * 199 + "…"
    assert title("x" * 100_000) == "x" * 199 + "…"
    assert title(7) is None
    assert title("") is None


@pytest.mark.parametrize(
    "result", ["Error: no", ["a"], None, {"stdout": "x"}, {"detachedToolCall": True}, 5]
)
def test_tool_results_are_found_whatever_their_details_are(result: object) -> None:
    """T21, T22."""
    found = frame(
        type="user",
        tool_use_result=result,
        message={"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1"}]},
    )
    assert (found.kind, found.tool_results) == ("user", ("t1",))


def test_one_strange_block_does_not_hide_its_neighbours() -> None:
    content: list[object] = [
        "text",
        None,
        {"type": "tool_use", "id": 5, "name": "Bash"},
        {"type": ["tool_use"], "id": "t0"},
        {"type": "tool_use", "id": "t1", "name": None, "input": "ls"},
        {"type": "tool_use", "id": "t2", "name": "Bash", "input": [1]},
        {"type": "tool_use", "id": "t3", "name": "Agent", "input": [1]},
    ]
    found = frame(type="assistant", uuid="u", message={"id": 7, "content": content})
    assert found.tool_uses == (ToolUse("t1", "?"), ToolUse("t2", "Bash"), ToolUse("t3", "Agent"))
    assert (found.uuid, found.message_id) == ("u", None)


@pytest.mark.parametrize("wrong", [5, -1.5, True, "", "text", [], [[1]], [{}], {}, {"a": {}}, None])
@pytest.mark.parametrize("name", [field for field in Envelope.__struct_fields__ if field != "type"])
@pytest.mark.parametrize("kind", ["assistant", "result", "system", "stream_event"])
def test_a_field_of_another_type_counts_as_absent(kind: str, name: str, wrong: object) -> None:
    fields = {"type": kind, "session_id": SID, "parent_tool_use_id": "t1", name: wrong}
    found = frame(**fields)
    assert found.type == kind
    if name != "session_id":
        assert found.session_id == SID
    if name != "parent_tool_use_id":
        assert found.thread == "t1"


def test_identifiers_that_cannot_be_keys_count_as_absent() -> None:
    for bad in ("x" * 513, "a\x00b", "a\nb", "", "\u202etxt"):
        found = frame(type="assistant", uuid=bad, parent_tool_use_id=bad)
        assert (found.uuid, found.thread) == (None, "main")
        asked = frame(type="control_request", request_id=bad, request={})
        assert (asked.kind, asked.request_id) == ("status", None)
    assert frame(type="assistant", uuid="x" * 512).uuid == "x" * 512


def test_replays_carry_the_prompts_uuid() -> None:
    found = frame(type="user", isReplay=True, uuid="p1", message={"role": "user", "content": "hi"})
    assert (found.kind, found.uuid) == ("replay", "p1")


def test_results_tell_cost_queue_and_outcome() -> None:
    """T13, T14: a success may be an error, and indexes are as sent."""
    found = frame(
        type="result",
        subtype="success",
        is_error=True,
        total_cost_usd=0.25,
        queued_turn_count=2,
        result_index=3,
        terminal_reason="api_error",
        user_message_uuid="p2",
        user_message_uuids=["p1", "p2"],
    )
    assert (found.subtype, found.is_error, found.total_cost_usd) == ("success", True, 0.25)
    assert (found.queued_turn_count, found.result_index) == (2, 3)
    assert found.terminal_reason == "api_error"
    assert found.user_message_uuids == ("p1", "p2")
    assert frame(type="result", total_cost_usd=0).total_cost_usd == 0.0
    assert frame(type="result", user_message_uuid="p1").user_message_uuids == ("p1",)
    assert (
        frame(type="result", user_message_uuid="p1", user_message_uuids=[]).user_message_uuids == ()
    )


def test_startup_failures_name_their_reason() -> None:
    """T28."""
    found = frame(
        type="result",
        subtype="error_during_execution",
        startup_failure_reason="session_held_by_background",
    )
    assert found.startup_failure_reason == "session_held_by_background"


def test_permission_requests_keep_the_agents_own_json() -> None:
    """T9, T10: whatever order they are answered in, each is known by its id."""
    line = (
        b'{"type":"control_request","request_id":"9b1c","request":{"subtype":"can_use_tool",'
        b'"tool_name":"Bash","input":{ "command" : "rm -rf build","n":1.0},'
        b'"permission_suggestions":[{"type":"setMode"}],"tool_use_id":"toolu_1","agent_id":"a1",'
        b'"display_name":"Shell"}}'
    )
    found = classify(line)
    assert (found.kind, found.request_id) == ("control_request", "9b1c")
    assert found.request == ControlRequest(
        raw=line.decode().partition('"request":')[2][:-1],
        subtype="can_use_tool",
        tool_name="Bash",
        tool_use_id="toolu_1",
        agent_id="a1",
        title="Shell",
        input='{ "command" : "rm -rf build","n":1.0}',
        suggestions='[{"type":"setMode"}]',
    )
    withdrawn = frame(type="control_cancel_request", request_id="9b1c")
    assert (withdrawn.kind, withdrawn.request_id) == ("control_cancel", "9b1c")


@pytest.mark.parametrize("request_", [None, 5, "x", [], {}, {"subtype": 5, "input": "text"}])
def test_strange_control_requests_can_still_be_refused(request_: object) -> None:
    found = frame(type="control_request", request_id="r", request=request_)
    assert (found.kind, found.request_id) == ("control_request", "r")
    assert found.request is not None
    assert found.request.subtype is None


def test_open_permissions_are_listed_in_the_answer_to_initialize() -> None:
    """T11: the same request may come here and live."""
    request = {"subtype": "can_use_tool", "tool_name": "Bash", "input": {}, "tool_use_id": "t"}
    pending = [{"type": "control_request", "request_id": "r1", "request": request}, {"odd": 1}, 5]
    response = {"subtype": "success", "request_id": "i1", "response": {"commands": []}}
    found = frame(
        type="control_response", response={**response, "pending_permission_requests": pending}
    )
    assert (found.kind, found.request_id) == ("control_response", "i1")
    assert found.response is not None
    assert found.response.ok
    assert found.response.pending is not None
    [open_one] = found.response.pending
    assert (open_one.request_id, open_one.request.tool_name) == ("r1", "Bash")
    # An older agent does not say, which is not the same as nothing.
    older = frame(type="control_response", response=response)
    assert older.response is not None
    assert older.response.pending is None


def test_receipts_of_interrupts_list_what_still_runs() -> None:
    """T12."""

    def receipt(answer: object) -> tuple[object, object]:
        response = {"subtype": "success", "request_id": "i", "response": answer}
        found = frame(type="control_response", response=response).response
        assert found is not None
        return found.still_queued, found.cancelled

    assert receipt({"still_queued": ["u2"]}) == (("u2",), None)
    assert receipt({"still_queued": [], "cancelled": ["u2"]}) == ((), ("u2",))
    assert receipt({}) == (None, None)
    assert receipt({"still_queued": "u2"}) == (None, None)
    assert receipt([]) == (None, None)


def test_refused_requests_say_why() -> None:
    response = {"subtype": "error", "request_id": "i", "error": "unsupported"}
    found = frame(type="control_response", response=response)
    assert found.response is not None
    assert (found.response.ok, found.response.error) == (False, "unsupported")


def test_status_frames_tell_levels() -> None:
    """T15, T23, T24, T26: what a session's level is computed from."""
    assert frame(type="system", subtype="session_state_changed", state="idle").state == "idle"
    init = frame(
        type="system",
        subtype="init",
        session_id=SID,
        model="m",
        permissionMode="plan",
        claude_code_version="2.1.330",
    )
    assert (init.session_id, init.model) == (SID, "m")
    assert (init.permission_mode, init.version) == ("plan", "2.1.330")
    tasks = frame(
        type="system", subtype="background_tasks_changed", tasks=[{"task_id": "a"}, {"id": "b"}, 5]
    )
    assert tasks.background_tasks == ("a", "b")
    assert frame(type="system", subtype="background_tasks_changed").background_tasks is None
    task = frame(
        type="system",
        subtype="task_updated",
        task_id="a",
        patch={"status": "completed"},
    )
    assert (task.task_id, task.task_status) == ("a", "completed")
    over = frame(
        type="system", subtype="task_notification", task_id="a", tool_use_id="t", status="failed"
    )
    assert (over.tool_use_id, over.task_status) == ("t", "failed")
    cycle = frame(type="command_lifecycle", command_uuid="p1", state="queued")
    assert (cycle.command_uuid, cycle.state) == ("p1", "queued")
    lost = frame(type="system", subtype="session_writes_lost", error_code="ENOSPC")
    assert (lost.kind, lost.status_name) == ("status", "session_writes_lost")


def test_end_records_are_read_in_full() -> None:
    found = frame(
        type="holdover_end", nonce="ab" * 16, status=None, signal=9, oom=True, cut=True, at=17
    )
    assert found.end == EndRecord("ab" * 16, None, 9, True, True, 17)
    forged = frame(type="holdover_end", nonce=5, status="0", signal=[], oom="yes")
    assert forged.end == EndRecord(None, None, None, False, False, None)


def test_twice_the_same_key_is_read_as_browsers_read_it() -> None:
    assert classify(b'{"type":"user","type":"result"}').kind == "result"
    assert classify(b'{"type":5,"type":"user","uuid":[],"uuid":"u"}').uuid == "u"
