"""PROTOCOL.md tells the truth: its conversations are played, its numbers compared."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from holdoverd.keeper import keeper_side, launch, spool
from tests.keeper.conversation import Conversation

DOCUMENT = (
    Path(__file__).resolve().parents[2] / "daemon" / "holdoverd" / "keeper" / "PROTOCOL.md"
).read_text()
CONVERSATIONS = re.findall(r"```conversation\n(.*?)```", DOCUMENT, re.DOTALL)
_STEP = re.compile(r"(?P<connection>\d?)(?P<way>[<>=]) ?(?P<what>.*)")


@pytest.mark.parametrize("text", CONVERSATIONS)
def test_the_conversations_of_the_document_happen_as_they_stand(text: str) -> None:
    talk = Conversation()
    heard: dict[int, int] = {}  # {connection: bytes of its answers that were looked at}
    delivered = 0
    for step in text.splitlines():
        match = _STEP.fullmatch(step)
        assert match is not None, step
        connection = int(match["connection"] or 1)
        data = match["what"].replace("\\n", "\n").encode()
        while talk.accepted < connection:
            talk.connect()
        match match["way"], match["what"]:
            case ">", "closed":
                talk.hang_up(connection)
            case "<", "closed":
                assert connection in talk.closed, step
            case ">", _:
                talk.send(connection, data)
            case "<", _:
                start = heard.get(connection, 0)
                assert talk.said[connection][start:].startswith(data), (step, talk.said)
                heard[connection] = start + len(data)
            case _:
                assert talk.lines[delivered] == data, step
                delivered += 1
    assert delivered == len(talk.lines)
    assert {c: len(said) for c, said in talk.said.items() if said} == heard


def test_there_are_conversations_for_every_command_and_answer() -> None:
    played = "".join(CONVERSATIONS)
    words = [
        "HELLO",
        "LINE",
        "END",
        "SIGNAL",
        "PING",
        "WELCOME",
        "STALE",
        "REPLACED",
        "ACK",
        "PONG",
        "ERROR",
    ]
    assert [word for word in words if f"{word} " not in played and f"{word}\\n" not in played] == []


def test_the_examples_of_json_are_json() -> None:
    examples = [line for line in DOCUMENT.splitlines() if line.startswith('{"')]
    assert len(examples) == 3
    for example in examples:
        json.loads(example)
    started, refused, end = map(json.loads, examples)
    made = json.loads(
        launch.answer_started(
            keeper_pid=1, agent_pid=1, cwd="", found=[], fresh=False, isolation="none"
        )
    )
    assert made.keys() == started.keys()
    assert refused["error"]["code"] in launch.CODES
    record = spool.end_record("", status=0, signal=None, oom=False, cut=False, at_ms=0)
    assert list(json.loads(record)) == list(end)


def test_the_codes_and_bounds_in_the_document_are_those_in_the_code() -> None:
    codes = re.findall(r"^\| `([a-z_]+)` \|", DOCUMENT.split("| code | |")[1].split("##")[0], re.M)
    assert set(codes) == launch.CODES
    for bound in (
        f"at most {keeper_side.MAX_HEADER_BYTES} bytes with their newline",
        f"At most {keeper_side.MAX_LINE_BYTES // 1024**2} MiB",
        f"at most {keeper_side.MAX_REPLY_BYTES} bytes",
        f"At most {keeper_side.MAX_GREETING} connections",
        f"at most {launch.MAX_REQUEST_BYTES // 1024**2} MiB",
        f"at most {launch.MAX_ROOTS}",
        f"at most {launch.MAX_TRANSCRIPTS} globs",
        f"at most {launch.MAX_UUIDS} |",
        f"({spool.MAX_BYTES // 1024**3} GiB)",
    ):
        assert bound in DOCUMENT, bound
