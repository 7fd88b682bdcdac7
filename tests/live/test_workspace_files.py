"""Between a workspace and storage under a real `holdover up`: the agent's side carries, not the daemon."""

import hashlib
import http.client
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests.live.up import Up, running, wait_until
from tests.needs import needs_weed

pytestmark = [pytest.mark.slow, needs_weed]

MIB = 1 << 20


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with (
        tempfile.TemporaryDirectory(prefix="wf-", dir="/tmp") as name,
        running(Path(name), storage=True) as one,
    ):
        yield one


def a_session(up: Up) -> tuple[str, Path]:
    """(id, workspace) of one that is idle."""
    session = up.new_session("say hello")["id"]
    wait_until(lambda: up.session(session)["state"] == "idle", "the session is idle")
    return session, Path(up.session(session)["cwd"])


def follow(url: str) -> tuple[int, str, str]:
    """(bytes, their digest, where they came from) of a link, redirects followed."""
    for _ in range(2):
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=60)
        connection.request("GET", f"{parts.path}?{parts.query}")
        response = connection.getresponse()
        if response.status == 302:
            url = response.headers["Location"]
            connection.close()
            continue
        assert response.status == 200, response.read()
        digest, size = hashlib.sha256(), 0
        while chunk := response.read(MIB):
            digest.update(chunk)
            size += len(chunk)
        connection.close()
        return size, digest.hexdigest(), parts.netloc
    raise AssertionError("redirected twice")


def resident_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def test_what_an_agent_made_reaches_whoever_has_the_link(up: Up) -> None:
    session, cwd = a_session(up)
    size = 256 * MIB + 5
    with (cwd / "made.bin").open("wb") as file:
        file.write(b"first")
        file.truncate(size)
    expected = hashlib.sha256()
    with (cwd / "made.bin").open("rb") as file:
        while chunk := file.read(MIB):
            expected.update(chunk)
    up.call("GET", "/v1/files")
    before = resident_mib(up.daemon_pid())
    told = up.call("POST", f"/v1/sessions/{session}/files", {"path": "made.bin"})["file"]
    assert (told["name"], told["size"], told["state"]) == ("made.bin", size, "uploading")
    path = f"/v1/files/{told['id']}"
    wait_until(lambda: up.call("GET", path)["state"] == "ready", "it is in storage", 120)
    link = up.call("POST", f"{path}/links", {})["url"]
    got, digest, whence = follow(link)
    assert (got, digest) == (size, expected.hexdigest())
    assert urlsplit(link).netloc != whence
    # What boto3 takes when it is first used, and nothing of the file.
    assert resident_mib(up.daemon_pid()) - before < 64


def test_what_is_attached_is_there_when_the_agent_reads_its_prompt(up: Up) -> None:
    session, cwd = a_session(up)
    (cwd / "in.txt").write_text("what was sent along")
    told = up.call("POST", f"/v1/sessions/{session}/files", {"path": "in.txt"})["file"]
    wait_until(
        lambda: up.call("GET", f"/v1/files/{told['id']}")["state"] == "ready", "it is in storage"
    )
    other, there = a_session(up)
    prompt = {"id": str(uuid4()), "text": "say read it", "attachments": [told["id"]]}
    first = up.call("POST", f"/v1/sessions/{other}/prompts", prompt)
    found = there / "attachments" / told["id"] / "in.txt"
    assert found.read_text() == "what was sent along"
    assert up.call("POST", f"/v1/sessions/{other}/prompts", prompt) == first
    said = next(m for m in up.log(other) if m["client_id"] == prompt["id"])
    assert f"attachments/{told['id']}/in.txt" in str(said["body"])
    status, answer = up.request(
        "POST", "/v1/sessions", {"agent": "demo", "prompt": {**prompt, "id": str(uuid4())}}
    )
    assert (status, answer["error"]["code"]) == (422, "unprocessable")
