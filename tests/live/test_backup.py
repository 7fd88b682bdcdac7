"""A backup under load, restored on another root: sessions go on, old cursors start over."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio_websocket import wrap_client_stream

from tests.live.up import Up, running

pytestmark = pytest.mark.slow


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="holdover-") as name:
        yield Path(name)


def command(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HOLDOVER_")},
        "HOME": str(folder / "home"),
        "HOLDOVER_STATE_DIR": str(folder / "state"),
        "HOLDOVER_RUNTIME_DIR": str(folder / "run"),
        "HOLDOVER_CONFIG_DIR": str(folder / "config"),
    }
    return subprocess.run(
        [sys.executable, "-m", "holdover", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


async def hello(up: Up, session: str, *, after: int, epoch: str) -> dict[str, object]:
    """The first frame for somebody who comes with a cursor."""
    stream = await trio.open_unix_socket(str(up.admin_socket))
    path = f"/v1/sessions/{session}/stream?after={after}&epoch={epoch}"
    async with stream, trio.open_nursery() as nursery:
        connection = await wrap_client_stream(
            nursery, stream, "localhost", path, subprotocols=["holdover.v1"]
        )
        frame: dict[str, object] = json.loads(await connection.get_message())
        nursery.cancel_scope.cancel()
    return frame


async def test_a_backup_under_load_goes_on_elsewhere(folder: Path) -> None:
    first, second = folder / "a", folder / "b"
    copy = folder / "copy.db"
    work = folder / "work"  # the same folder on either machine
    work.mkdir()
    with running(first, HOLDOVER_SESSIONS_ROOTS=str(work)) as up:
        told = up.new_session("hello", cwd=str(work))["id"]
        up.wait_state(told, "idle")
        busy = [up.new_session("stream 3000 rate 100", cwd=str(work))["id"] for _ in range(4)]
        for session in busy:
            up.wait_state(session, "working")
        done = command(first, "db", "backup", str(copy))
        assert done.returncode == 0, done.stderr
        assert "5 sessions" in done.stderr
        assert "Not in it:" in done.stderr
        again = command(first, "db", "backup", str(copy))
        assert (again.returncode, "is there already" in again.stderr) == (5, True)
        # What happens later is not in it.
        up.prompt(told, "later")
        up.wait_state(told, "idle")
        before = {one: up.session(one) for one in (told, *busy)}
        refused = command(first, "db", "restore", "--yes", str(copy))
        assert (refused.returncode, "stop it" in refused.stderr) == (5, True)
        status = json.loads(command(first, "db", "status", "--check", "--json").stdout)
        assert (status["sessions"], status["damage"]) == (5, [])
    done = command(second, "db", "restore", "--yes", str(copy))
    assert done.returncode == 0, done.stderr
    with running(second, HOLDOVER_SESSIONS_ROOTS=str(work)) as up:
        for session in (told, *busy):
            up.wait_state(session, "dormant")
            assert up.session(session)["epoch"] != before[session]["epoch"]
        texts = json.dumps(up.log(told))
        assert "hello" in texts
        assert "later" not in texts
        frame = await hello(up, told, after=before[told]["last_seq"], epoch=before[told]["epoch"])
        assert frame["resync"] is True
        # Every session goes on with its next prompt.
        for session in (told, *busy):
            up.prompt(session, "and now?")
        for session in (told, *busy):
            up.wait_state(session, "idle")
            assert "and now?" in json.dumps(up.log(session))
    # Back at the first root: what was there is kept beside.
    done = command(first, "db", "restore", "--yes", str(copy))
    assert "What was here before is" in done.stderr
    assert list((first / "state").glob("catalogue.db.before-*"))
