"""The sweeper: what it finds in either direction, what it leaves alone, and who does it."""

from pathlib import Path

import pytest
import trio

from holdoverd.errors import StorageUnavailable
from holdoverd.ids import now_ms
from tests.files.house import Anybody, House, open_house

pytestmark = pytest.mark.slow  # a server has to start

HELLO = b"hello"
SWEEP = "/v1/admin/storage/sweep"


async def sweep(house: House, **options: object) -> dict[str, int]:
    """What was found, those kinds alone that were."""
    found = await house.call("POST", SWEEP, {"older_than_s": 0, **options})
    assert found["dry_run"] is (options.get("dry_run") is not False)
    counts = {k: v for k, v in found.items() if isinstance(v, int) and not isinstance(v, bool)}
    return {name: count for name, count in counts.items() if count}


async def test_nothing_is_found_where_nothing_is_amiss(house: House) -> None:
    await house.put_file(HELLO)
    await house.new(HELLO)
    assert await sweep(house, dry_run=False) == {}
    assert len(await house.keys()) == len(await house.open_uploads()) == 1


async def test_storage_without_rows_is_removed_and_only_when_told(house: House) -> None:
    store = house.services.files.store
    await house.put_file(HELLO)
    await store.create_multipart("f/stray")
    upload = await store.create_multipart("f/stray-object")
    part = await store.upload_part("f/stray-object", upload, 1, HELLO)
    await store.complete("f/stray-object", upload, [part])
    assert await sweep(house) == {"uploads": 1, "objects": 1}
    assert await sweep(house, older_than_s=3600, dry_run=False) == {}
    assert len(await house.keys()) == 2
    found = await house.call("POST", SWEEP, {"older_than_s": 0, "dry_run": False})
    assert found["found"] == {"uploads": ["f/stray"], "objects": ["f/stray-object"]}
    assert await sweep(house) == {}
    assert len(await house.keys()) == 1
    assert await house.open_uploads() == []


async def test_expired_uploads_are_given_up(weed: str, bucket: str, tmp_path: Path) -> None:
    now = [now_ms()]
    async with open_house(
        weed, tmp_path, bucket=bucket, now=lambda: now[0], upload_lifetime_s=100
    ) as house:
        made = await house.new(HELLO)
        parts = await house.put_all(made, HELLO)
        done = await house.put_file(HELLO)
        now[0] += 99_000
        assert await sweep(house) == {}
        now[0] += 1_000
        assert await sweep(house) == {"given_up": 1}
        assert await sweep(house, dry_run=False) == {"given_up": 1}
        assert (await house.complete(made, parts)).status == 410
        assert (await house.call("GET", f"/v1/files/{done['id']}"))["state"] == "ready"
        assert await house.open_uploads() == []
        assert (await house.call("GET", "/v1/admin/storage"))["owners"][0]["files"] == 1


async def test_what_could_not_be_erased_is_erased_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await house.put_file(HELLO)
    store = house.services.files.store

    async def fail(_key: str) -> None:
        raise StorageUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", fail)
        await house.call("DELETE", f"/v1/files/{file['id']}")
    assert len(await house.keys()) == 1
    assert await sweep(house) == {"erased": 1, "objects": 1}
    assert await sweep(house, dry_run=False) == {"erased": 1}
    assert await house.keys() == []
    assert await sweep(house) == {}


async def test_object_that_came_after_its_file_was_given_up_is_removed(house: House) -> None:
    """Two instances: one completes in storage while the other gives the upload up."""
    store = house.services.files.store
    made = await house.new(HELLO)
    await house.call("DELETE", f"/v1/uploads/{made['upload']['id']}")
    key = (await house.services.files.find(Anybody(), made["file"]["id"])).key
    upload = await store.create_multipart(key)
    await store.complete(key, upload, [await store.upload_part(key, upload, 1, HELLO)])
    await store.create_multipart(key)
    assert await sweep(house, dry_run=False) == {"uploads": 1, "objects": 1}
    assert await house.keys() == []


async def test_missing_bytes_are_told_and_nothing_is_touched(house: House) -> None:
    files = [await house.put_file(HELLO) for _ in range(3)]
    lost = files[1]
    row = await house.services.files.find(Anybody(), lost["id"])
    await house.services.files.store.delete(row.key)
    found = await house.call("POST", SWEEP, {"dry_run": False, "older_than_s": 0})
    assert (found["missing"], found["found"]["missing"]) == (1, [lost["id"]])
    assert (await house.call("GET", f"/v1/files/{lost['id']}"))["state"] == "ready"
    assert len(await house.keys()) == 2


async def test_dry_run_is_what_is_done_when_nothing_is_said(house: House) -> None:
    await house.new(HELLO)
    assert (await house.call("POST", SWEEP))["dry_run"] is True


async def test_one_instance_sweeps_when_it_is_time(
    weed: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[str] = []
    async with (
        open_house(weed, tmp_path, bucket=bucket, sweep_every_s=1) as one,
        open_house(weed, tmp_path, bucket=bucket, sweep_every_s=1) as other,
        trio.open_nursery() as nursery,
    ):
        started = trio.current_time()
        for name, house in (("one", one), ("other", other)):

            async def note(name: str = name, **_: object) -> object:
                swept.append(name)
                if len(swept) == 2:
                    nursery.cancel_scope.cancel()
                raise StorageUnavailable("cut short")

            monkeypatch.setattr(house.services.sweeper, "sweep", note)
            nursery.start_soon(house.services.sweeper.run)
        with trio.fail_after(20):
            await trio.sleep_forever()
    assert len(swept) == 2
    assert trio.current_time() - started >= 2  # twice a second, were both to do it
