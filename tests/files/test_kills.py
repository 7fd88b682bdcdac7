"""`kill -9` at every step from create to the end: one sweep later, rows and bytes agree."""

import json
import secrets
import shutil
import signal
import sys
from pathlib import Path

import pytest
import trio

from tests.files.house import Anybody, House, open_house
from tests.files.mortal import DATA, STEPS

pytestmark = pytest.mark.slow  # a server and a process for each step

SWEEP = "/v1/admin/storage/sweep"


async def agree(house: House) -> None:
    """No ready row without bytes, no bytes without a row that wants them."""
    states = await house.states()
    keys = set(await house.keys())
    for file_id, state in states.items():
        row = await house.services.files.find(Anybody(), file_id)
        if state == "ready":
            assert await house.download(file_id) == DATA
        keys -= {row.key} if state in ("ready", "uploading") else set()
    assert keys == set()
    assert len(await house.open_uploads()) == list(states.values()).count("uploading")


@pytest.mark.parametrize("scenario", STEPS)
async def test_rows_and_bytes_agree_after_a_death_at_any_step(
    weed: str, tmp_path: Path, sqlite_template: Path, scenario: str
) -> None:
    limiter = trio.CapacityLimiter(3)

    async def one(number: int, step: str) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(sqlite_template, folder / "catalogue.db")
        async with limiter:
            await die_and_look(weed, folder, scenario, step)

    async with trio.open_nursery() as nursery:
        for number, step in enumerate(STEPS[scenario]):
            nursery.start_soon(one, number, step)


async def die_and_look(weed: str, folder: Path, scenario: str, step: str) -> None:
    url = f"sqlite:///{folder / 'catalogue.db'}"
    bucket = f"t-{secrets.token_hex(8)}"
    command = [sys.executable, "-m", "tests.files.mortal", weed, bucket, url, scenario, step]
    child = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert child.returncode == -signal.SIGKILL, (step, child.stderr)
    made = json.loads(child.stdout) if child.stdout else None
    async with open_house(weed, folder, bucket=bucket) as house:
        await house.call("POST", SWEEP, {"dry_run": False, "older_than_s": 0})
        states = list((await house.states()).values())
        if scenario == "complete" and made is not None:
            # Nothing of what the client has sent is lost: it completes, and nothing else.
            assert states == ["ready" if step == "ready" else "uploading"], step
            named = [{"number": 1, "etag": made["etag"]}]
            path = f"/v1/uploads/{made['upload']}/complete"
            answer = await house.ask("POST", path, {"parts": named})
            assert (answer.status, answer.json()["file"]["state"]) == (200, "ready"), step
        elif made is not None:
            assert states == ["deleted"], step
        await agree(house)
        again = await house.call("POST", SWEEP, {"older_than_s": 0})
        assert again["found"] == {}, step
