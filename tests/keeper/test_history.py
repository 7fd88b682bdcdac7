"""What was said before: records of a transcript as the lines that the agent's stdout had."""

import json
from pathlib import Path
from typing import Any

import pytest

from holdoverd.agents.stream_json import classify
from holdoverd.errors import LaunchError
from holdoverd.keeper import history, prepare


def record(uuid: str, kind: str = "user", content: Any = "hi", **more: Any) -> dict[str, Any]:
    return {
        "type": kind, "uuid": uuid, "parentUuid": None, "sessionId": "c", "cwd": "/srv",
        "timestamp": "2026-01-02T03:04:05.678Z", "message": {"role": kind, "content": content},
        **more,
    }  # fmt: skip


def write(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(said.line) for said in history.read(str(path)).said]


def test_records_become_the_lines_that_the_agent_printed(tmp_path: Path) -> None:
    use = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "ok"}
    path = write(
        tmp_path / "c.jsonl",
        {"type": "summary", "summary": "Of what", "leafUuid": "a"},
        record("u1"),
        record("u1"),
        record("a1", "assistant", [use]),
        record("u2", "user", [result], toolUseResult={"stdout": "ok"}),
        record("m1", "user", "a caveat", isMeta=True),
        record("s1", "user", "elsewhere", isSidechain=True),
        {"type": "system", "subtype": "compact_boundary", "uuid": "b1",
         "compactMetadata": {"trigger": "auto"}},
        {"type": "system", "subtype": "turn_duration", "uuid": "d1"},
        {"type": "attachment", "uuid": "x1"},
        "not json",
        '{"type":"assistant","uuid":"cut',
    )  # fmt: skip
    said = read(path)
    assert [line["uuid"] for line in said] == ["u1", "a1", "u2", "b1"]
    assert said[0] == {
        "type": "user", "uuid": "u1", "session_id": "c", "parent_tool_use_id": None,
        "message": {"role": "user", "content": "hi"}, "timestamp": "2026-01-02T03:04:05.678Z",
    }  # fmt: skip
    assert said[2]["tool_use_result"] == {"stdout": "ok"}
    assert said[3]["compact_metadata"] == {"trigger": "auto"}
    found = history.read(str(path))
    assert found.said[0].at == 1767323045678
    assert found.said[3].at == 0
    kinds = [classify(one.line.encode()).kind for one in found.said]
    assert kinds == ["user", "assistant", "user", "system"]


def test_a_sub_agents_own_file_is_told_where_its_tool_use_is_answered(tmp_path: Path) -> None:
    def answered(uuid: str, tool: str, agent: str) -> dict[str, Any]:
        block = {"type": "tool_result", "tool_use_id": tool, "content": "done"}
        return record(uuid, "user", [block], toolUseResult={"agentId": agent})

    write(tmp_path / "c/subagents/agent-x1.jsonl", record("i1", isSidechain=True),
          answered("i2", "t2", "x2"), answered("i3", "t3", "x1"))  # fmt: skip
    write(tmp_path / "c/subagents/agent-x2.jsonl", record("j1", isSidechain=True))
    write(tmp_path / "agent-up.jsonl", record("k1"))
    path = write(tmp_path / "c.jsonl", record("u1"), answered("u2", "t1", "x1"),
                 answered("u3", "t4", "../../agent-up"), answered("u4", "t5", "none"))  # fmt: skip
    assert [(line["uuid"], line["parent_tool_use_id"]) for line in read(path)] == [
        ("u1", None), ("i1", "t1"), ("j1", "t2"), ("i2", "t1"), ("i3", "t1"), ("u2", None),
        ("u3", None), ("u4", None),
    ]  # fmt: skip


def test_of_a_long_conversation_the_latest_messages_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "c.jsonl", *(record(f"u{n}") for n in range(10)))
    monkeypatch.setattr(history, "MAX_MESSAGES", 4)
    found = history.read(str(path))
    assert ([json.loads(s.line)["uuid"] for s in found.said], found.left_out) == (
        ["u6", "u7", "u8", "u9"],
        6,
    )
    monkeypatch.setattr(history, "MAX_BYTES", 250)
    assert history.read(str(path)).left_out == 9


@pytest.mark.parametrize(
    "request_",
    [b"", b"[]", b"{}", b'{"op":"clone"}', b'{"op":"clone","workspace":"../x","url":"u"}',
     b'{"op":"clone","workspace":"x","url":3}', b'{"op":"recall","transcripts":["x"]}',
     b'{"op":"recall"}', b"{" * 100_000],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_refused(request_: bytes) -> None:
    with pytest.raises(LaunchError) as refused:
        prepare.parse_request(request_)
    assert refused.value.code == "bad_request"
