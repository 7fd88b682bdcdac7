"""The launch request and its answer: framing cut anywhere, every field checked by name."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.errors import KeeperError, LaunchError
from holdoverd.keeper import launch, protocol

REQUEST: dict[str, Any] = {
    "session": "s_0123456789abcdef",
    "launch": "l_0123456789abcdef",
    "nonce": "0f" * 16,
    "owner_epoch": 7,
    "argv": ["/usr/bin/agent", "--flag=ü \u2028", ""],
    "env": {"A": "1", "EMPTY": ""},
    "cwd": None,
    "workspace": "s_0123456789abcdef",
    "roots": ["/srv", "~/projects"],
    "lookup": {"transcripts": ["~/.claude/projects/*/U.jsonl"], "uuids": ["u-1", "u-2"]},
    "something_newer": True,
}


def parse(**changes: Any) -> launch.LaunchRequest:
    return launch.parse_request(json.dumps(REQUEST | changes).encode())


@given(st.lists(st.integers(0, 10_000)))
def test_a_request_is_read_however_it_is_cut(cuts: list[int]) -> None:
    data = protocol.launch_request(REQUEST)
    reader = launch.RequestReader()
    request = None
    edges = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    for start, stop in itertools.pairwise(edges):
        assert request is None
        request = reader.receive(data[start:stop])
    assert request is not None
    assert request.argv == tuple(REQUEST["argv"])
    assert request.env == REQUEST["env"]
    assert request.uuids == ("u-1", "u-2")
    assert (request.cwd, request.workspace) == (None, REQUEST["workspace"])


def test_a_request_cut_off_at_any_byte_is_refused() -> None:
    data = protocol.launch_request(REQUEST)
    for stop in range(len(data)):
        reader = launch.RequestReader()
        if stop:
            assert reader.receive(data[:stop]) is None
        with pytest.raises(LaunchError, match="cut off") as refused:
            reader.receive(b"")
        assert refused.value.code == "bad_request"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"GET / HTTP/1.1\r\n", "is not 'LAUNCH 1 <length>'"),
        (b"LAUNCH 2 2\n{}", "version 2; this keeper takes 1"),
        (b"LAUNCH 1 1048577\n", "1048577 bytes; the most is 1048576"),
        (b"LAUNCH 1 -2\n", "is not 'LAUNCH 1 <length>'"),
        (b"LAUNCH 1 2\n{}x", "one request a connection"),
        (b"LAUNCH 1 2\n[]", "not a JSON object"),
        (b"LAUNCH 1 2\n{x", "not JSON"),
        (b"LAUNCH 1 2\n\xff\xfe", "not JSON"),
        (b"LAUNCH 1 100000\n" + b"[" * 100_000, "not JSON"),
        (b"LAUNCH 1 0\n", "not JSON"),
        (b"x" * 64, "no header line"),
    ],
)
def test_what_is_no_request_is_refused_by_name(data: bytes, complaint: str) -> None:
    with pytest.raises(LaunchError, match=complaint) as refused:
        launch.RequestReader().receive(data)
    assert refused.value.code == "bad_request"


def test_a_header_of_64_bytes_without_end_is_refused_and_one_of_63_waited_for() -> None:
    reader = launch.RequestReader()
    assert reader.receive(b"x" * 63) is None
    with pytest.raises(LaunchError, match="no header line"):
        reader.receive(b"x")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"session": "../s"}, "session '../s'"),
        ({"launch": None}, "launch is not a string"),
        ({"nonce": "0F" * 16}, "nonce"),
        ({"nonce": "0f" * 15}, "nonce"),
        ({"owner_epoch": "7"}, "owner_epoch"),
        ({"owner_epoch": True}, "owner_epoch"),
        ({"owner_epoch": -1}, "owner_epoch"),
        ({"owner_epoch": 2**63}, "owner_epoch"),
        ({"argv": []}, "argv is empty"),
        ({"argv": [""]}, "argv is empty"),
        ({"fresh_argv": [""]}, "fresh_argv begins with an empty string"),
        ({"fresh_argv": "agent"}, "fresh_argv is not a list"),
        ({"argv": "agent"}, "argv is not a list"),
        ({"argv": ["a", 1]}, "argv is not a string"),
        ({"argv": ["a\0b"]}, "argv holds a NUL"),
        ({"argv": ["a", "\ud800"]}, "argv holds half a surrogate pair"),
        ({"argv": ["a"] * 4097}, "4097 entries; the most is 4096"),
        ({"env": ["A=1"]}, "env is not an object"),
        ({"env": {"A=B": "1"}}, "no name of a variable"),
        ({"env": {"": "1"}}, "no name of a variable"),
        ({"env": {"A": 1}}, "env.A is not a string"),
        ({"env": {"A": "x\0"}}, "env.A holds a NUL"),
        ({"cwd": "relative"}, "not absolute"),
        ({"cwd": 3}, "cwd is not a string"),
        ({"workspace": "a/b"}, "workspace 'a/b'"),
        ({"workspace": ".."}, "workspace '..'"),
        ({"workspace": None}, "workspace is not a string"),
        ({"roots": ["srv"]}, "roots: 'srv'"),
        ({"roots": ["~other/x"]}, "roots: '~other/x'"),
        ({"roots": ["/x"] * 65}, "65 entries; the most is 64"),
        ({"lookup": []}, None),
        ({"lookup": [1]}, "lookup is not an object"),
        ({"lookup": {"uuids": ["a b"]}}, "lookup.uuids 'a b'"),
        ({"lookup": {"uuids": ["u"] * 1001}}, "1001 entries; the most is 1000"),
        ({"lookup": {"transcripts": ["x"]}}, "lookup.transcripts: 'x'"),
        ({"lookup": {"transcripts": ["/x"] * 17}}, "17 entries; the most is 16"),
        ({"cwd": "/srv/x", "workspace": None}, None),
        ({"lookup": None}, None),
    ],
)
def test_every_field_is_checked_and_named(changes: dict[str, Any], complaint: str | None) -> None:
    if complaint is None:
        parse(**changes)
        return
    with pytest.raises(LaunchError) as refused:
        parse(**changes)
    assert complaint in str(refused.value)
    assert refused.value.code == "bad_request"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_and_nothing_else(data: bytes) -> None:
    reader = launch.RequestReader()
    try:
        assert reader.receive(data) is None
    except LaunchError:
        return
    with pytest.raises(LaunchError):
        reader.receive(b"")


def test_a_request_over_1_mib_is_refused_where_it_is_made_and_one_of_1_mib_is_taken() -> None:
    spare = launch.MAX_REQUEST_BYTES - len(protocol.launch_request(REQUEST | {"env": {"A": ""}}))
    spare += len(b"LAUNCH 1 1048576\n") - 4  # the header's length field grows from 3 digits to 7
    data = protocol.launch_request(REQUEST | {"env": {"A": "x" * spare}})
    assert launch.RequestReader().receive(data) is not None
    with pytest.raises(LaunchError, match="the most is 1048576"):
        protocol.launch_request(REQUEST | {"env": {"A": "x" * (spare + 100)}})


def test_answers_come_back_as_they_were_given() -> None:
    started = launch.answer_started(
        keeper_pid=1, agent_pid=2, cwd="/srv/ü", found=["u-1"], fresh=True, isolation="none"
    )
    assert protocol.parse_launch_answer(started) == {
        "ok": True,
        "keeper_pid": 1,
        "agent_pid": 2,
        "cwd": "/srv/ü",
        "found": ["u-1"],
        "fresh": True,
        "isolation": "none",
    }
    for code in sorted(launch.CODES):
        refused = launch.answer_refused(LaunchError("why\nnot", code=code))
        assert refused.count(b"\n") == 1
        answer = protocol.parse_launch_answer(refused)
        assert answer == {"ok": False, "error": {"code": code, "message": "why\nnot"}}


def test_the_longest_answer_is_within_its_bound() -> None:
    answer = launch.answer_started(
        keeper_pid=2**22,
        agent_pid=2**22,
        cwd="/" + "ü" * 2047,
        found=["u" * 64] * launch.MAX_UUIDS,
        fresh=False,
        isolation="namespaces",
    )
    assert len(answer) <= launch.MAX_ANSWER_BYTES


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b'{"ok":true}\n',
        b'{"ok":false,"error":{"code":"odd","message":"x"}}\n',
        b'{"ok":true,"keeper_pid":1,"agent_pid":2,"cwd":"/","found":[],"isolation":"none"}',
        b"[]\n",
        b"\xff\n",
    ],
)
def test_an_answer_cut_off_or_unknown_says_that_nobody_knows(data: bytes) -> None:
    with pytest.raises(KeeperError, match="lock"):
        protocol.parse_launch_answer(data)
