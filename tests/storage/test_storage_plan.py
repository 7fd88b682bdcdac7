"""How storage is run, as rules: sizes, ports, secrets; and its keys."""

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.storage import enclose
from holdoverd.storage.credentials import load_credentials
from holdoverd.storage.keys import ensure_keys, write_identities
from holdoverd.storage.plan import GIB, MIB, SIDE_PORTS, WALLED_PORTS, StoragePlan

PLAN = StoragePlan(
    program=Path("/opt/bin/weed"),
    data=Path("/var/lib/s"),
    sockets=Path("/run/s"),
    identities=Path("/run/s/identities.json"),
    disk_bytes=100 * GIB,
)


def option(plan: StoragePlan, name: str) -> str:
    (found,) = [word for word in plan.command() if word.startswith(f"-{name}=")]
    return found.partition("=")[2]


@given(st.integers(1 * GIB, 100_000 * GIB))
def test_volumes_fit_on_any_disk_and_leave_room(disk_bytes: int) -> None:
    plan = replace(PLAN, disk_bytes=disk_bytes)
    volume = int(option(plan, "master.volumeSizeLimitMB"))
    assert 64 <= volume <= 1024
    # As many as fill the disk, so that their number never is what refuses a file.
    assert volume * int(option(plan, "volume.max")) * MIB > disk_bytes
    # A bucket begins with seven volumes: they are small beside the disk.
    assert volume * 7 * MIB < disk_bytes / 2
    reserve = int(option(plan, "volume.minFreeSpace").removesuffix("MiB"))
    assert 0 < reserve * MIB <= disk_bytes / 20


def test_every_port_is_named_and_listens_on_loopback_only() -> None:
    for name, port in zip(SIDE_PORTS, WALLED_PORTS, strict=True):
        assert option(PLAN, name) == str(port)
    assert option(PLAN, "ip.bind") == "127.0.0.1"
    assert len(set(WALLED_PORTS)) == len(SIDE_PORTS)


def test_nothing_is_told_to_anybody_else() -> None:
    assert option(PLAN, "master.telemetry") == "false"


def test_sockets_lie_in_a_folder_of_its_own_and_not_in_tmp() -> None:
    assert option(PLAN, "s3.localSocket") == str(PLAN.s3_socket) == "/run/s/s3.sock"
    assert option(PLAN, "filer.localSocket").startswith("/run/s/")


def test_keys_are_made_once_are_private_and_are_read_by_both_sides(tmp_path: Path) -> None:
    keys, identities = tmp_path / "keys.json", tmp_path / "identities.json"
    assert ensure_keys(keys)
    made = keys.read_text()
    assert not ensure_keys(keys)
    assert keys.read_text() == made
    write_identities(keys, identities)
    found = load_credentials({"HOLDOVER_STORAGE_CREDENTIALS": str(keys)})
    assert found is not None
    (identity,) = json.loads(identities.read_text())["identities"]
    assert identity["credentials"] == [
        {"accessKey": found.access_key, "secretKey": found.secret_key}
    ]
    assert len(found.secret_key) == 40
    for path in (keys, identities):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    command = " ".join(replace(PLAN, identities=identities).command())
    assert found.secret_key not in command
    assert found.access_key not in command


def test_no_two_hosts_get_the_same_keys(tmp_path: Path) -> None:
    made = {ensure_keys(tmp_path / str(n)) and (tmp_path / str(n)).read_text() for n in range(20)}
    assert len(made) == 20


def test_an_empty_object_says_that_there_are_no_keys(tmp_path: Path) -> None:
    """The unit's default where /etc/holdover has none: the daemon starts without storage."""
    (tmp_path / "storage").write_text("{}")
    assert load_credentials({"CREDENTIALS_DIRECTORY": str(tmp_path)}) is None


@pytest.mark.parametrize("unit", ["holdoverd@.service.in", "holdover-storage.service.in"])
def test_units_pass_the_keys_by_the_name_that_is_read(unit: str) -> None:
    text = (Path(__file__).parents[2] / "units" / unit).read_text()
    assert "LoadCredential=storage:/etc/holdover/storage-keys.json\n" in text


@pytest.mark.parametrize("unit", ["holdover-s3.service", "holdover-storage.service.in"])
def test_storage_stands_as_far_behind_the_daemon_as_a_unit_as_under_up(unit: str) -> None:
    text = (Path(__file__).parents[2] / "units" / unit).read_text()
    assert f"Nice={enclose.NICE}\n" in text


def test_standing_back_is_tried_again_while_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def write_text(_path: Path, text: str) -> int:
        tries.append(text)
        if len(tries) < 4:
            raise BlockingIOError
        return len(text)

    monkeypatch.setattr(Path, "write_text", write_text)
    enclose.stand_back(tmp_path / "autogroup")
    assert tries == [str(enclose.NICE)] * 4


def test_a_kernel_that_knows_no_logins_is_left_alone(tmp_path: Path) -> None:
    enclose.stand_back(tmp_path / "no such folder" / "autogroup")


@pytest.mark.parametrize(
    ("all_of_them", "kept"),
    [({0}, {0}), ({0, 1}, {1}), ({3, 5, 8}, {5, 8}), ({0, 1, 2, 3}, {2, 3})],
)
def test_storage_keeps_to_half_of_the_processors(all_of_them: set[int], kept: set[int]) -> None:
    assert enclose.half_of(all_of_them) == kept
