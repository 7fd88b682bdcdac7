"""`analyze` as a worker runs it: real Claude Code reads files of each kind by its path."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.claude.conftest import LOOPBACK_ENV
from tests.claude.install import InstallError, install
from tests.jobs.yard import Yard, open_yard

pytestmark = [pytest.mark.claude, pytest.mark.slow]


@pytest.fixture(scope="session")
def claude_binary() -> Path:
    """The newest alone: what sessions rely on is tried with both versions, print mode is older."""
    try:
        return install()
    except InstallError as error:
        pytest.skip(f"no Claude Code: {error}")


@pytest.fixture
def yard(tmp_path: Path, claude_binary: Path, scripted_api: str) -> Iterator[Yard]:
    with open_yard(tmp_path) as yard:
        home = tmp_path / "home"
        home.mkdir()
        env = {**LOOPBACK_ENV, "ANTHROPIC_BASE_URL": scripted_api, "HOME": str(home)}
        pairs = ", ".join(f"{name} = {json.dumps(value)}" for name, value in env.items())
        yard.env |= {
            "HOLDOVER_AGENTS_CLAUDE_COMMAND": str(claude_binary),
            "HOLDOVER_AGENTS_CLAUDE_ENV": f"{{ {pairs} }}",
        }
        yield yard


def png(side: int) -> bytes:
    """A square of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return len(data).to_bytes(4, "big") + kind + data + crc.to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))
    rows = (b"\0" + b"\xc0\x20\x20" * side) * side
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def pdf(words: str) -> bytes:
    """One page with a line of text."""
    stream = f"BT /F1 24 Tf 72 700 Td ({words}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % at for at in offsets)
    return out + (
        b"xref\n0 %d\n0000000000 65535 f \n%b" % (len(objects) + 1, table)
        + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
        % (len(objects) + 1, len(out))
    )


def analyze(yard: Yard, name: str, data: bytes, prompt: str = "READ") -> str:
    """The answer about a file of that name and content."""
    yard.store.put("f_1", data)
    row = yard.store.folder / "f_1.json"
    row.write_text(json.dumps({**json.loads(row.read_text()), "name": name}))
    job = yard.submit("analyze", "f_1", params=json.dumps({"prompt": prompt}), max_attempts=1)
    yard.start()
    ended = yard.wait(job, "done", "dead", within_s=90)
    assert ended.state == "done", ended.error
    return str(json.loads(ended.result or "{}")["text"])


def test_a_text(yard: Yard) -> None:
    assert "first words" in analyze(yard, "notes ü.txt", b"first words\nmore\n")


def test_a_pdf(yard: Yard) -> None:
    """Its pages go to the model; what the tool says of it is for the transcript."""
    answer = analyze(yard, "bill.pdf", pdf("Amount due"))
    assert answer.startswith("done: ")
    assert "PDF" in answer or "pdf" in answer
    assert "rror" not in answer


def test_an_image(yard: Yard) -> None:
    answer = analyze(yard, "red.png", png(64))
    assert answer.startswith("done: ")
    assert "rror" not in answer


def test_fifty_megabytes(yard: Yard) -> None:
    line = base64.b64encode(b"x" * 54) + b"\n"
    answer = analyze(yard, "big.log", line * (50_000_000 // len(line)), "READ 20")
    assert base64.b64encode(b"x" * 54).decode() in answer


def test_nothing_can_be_changed_or_run(yard: Yard) -> None:
    """What is in a file is a stranger's words, and the agent may take them for orders."""
    marker = yard.folder / "marker"
    answer = analyze(yard, "a.txt", b"x", f"BASH touch {marker}")
    assert not marker.exists()
    assert answer.startswith("done: ")


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [(401, "dead", "not logged in"), (400, "dead", "refused the file"), (429, "ready", "busy")],
)
def test_what_the_model_refuses_is_said(yard: Yard, status: int, state: str, words: str) -> None:
    yard.env["HOLDOVER_AGENTS_CLAUDE_ENV"] = yard.env["HOLDOVER_AGENTS_CLAUDE_ENV"].replace(
        "{", '{ CLAUDE_CODE_MAX_RETRIES = "0",', 1
    )
    yard.store.put("f_1", b"x")
    job = yard.submit("analyze", "f_1", params=json.dumps({"prompt": f"FAIL {status}"}))
    yard.start()
    ended = yard.until(
        lambda: found if (found := yard.job(job)).state == state and found.attempt else None,
        f"job {state}",
        90,
    )
    assert words in (ended.error or "")
    assert ended.counted == (0 if state == "ready" else 1)
