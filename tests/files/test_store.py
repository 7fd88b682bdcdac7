"""What the design leans on, proved against the real SeaweedFS."""

import base64
import hashlib
import time
from dataclasses import replace
from functools import partial

import pytest
import trio

from holdoverd.errors import StorageRefused, StorageUnavailable
from holdoverd.storage.client import Store
from tests.files.put import Answer, send
from tests.files.weed import KEYS, storage_settings

pytestmark = pytest.mark.slow  # a server has to start

HELLO = hashlib.sha256(b"hello").hexdigest()


async def put(url: str, body: bytes, headers: dict[str, str] | None = None) -> Answer:
    return await trio.to_thread.run_sync(partial(send, "PUT", url, body, headers))


async def get(url: str) -> Answer:
    return await trio.to_thread.run_sync(partial(send, "GET", url))


async def test_bucket_is_made_once(store: Store) -> None:
    await store.ensure_bucket()
    assert await store.is_there()


@pytest.mark.parametrize("body", [b"hell", b"hello!", b""])
async def test_other_length_than_signed_is_refused(store: Store, body: bytes) -> None:
    upload = await store.create_multipart("f/a")
    url, _ = store.sign_part("f/a", upload, 1, 5, None, 60)
    assert (await put(url, body)).status == 403
    assert await store.list_parts("f/a", upload) == []
    await store.abort("f/a", upload)


async def test_flipped_byte_is_refused_where_a_digest_was_signed(store: Store) -> None:
    upload = await store.create_multipart("f/a", digests=True)
    url, headers = store.sign_part("f/a", upload, 1, 5, HELLO, 60)
    assert (await put(url, b"hellp", headers)).status == 400
    assert (await put(url, b"hello")).status == 403  # without the header it is another request
    assert (await put(url, b"hello", headers)).status == 200
    parts = await store.list_parts("f/a", upload)
    assert parts is not None
    assert [(part.number, part.size) for part in parts] == [(1, 5)]
    etag = await store.complete("f/a", upload, [replace(parts[0], sha256=HELLO)])
    head = await store.head("f/a")
    assert head is not None
    assert (head.etag, head.size) == (etag, 5)
    composite = hashlib.sha256(bytes.fromhex(HELLO)).digest()
    assert head.checksum == base64.b64encode(composite).decode() + "-1"


async def test_part_urls_are_dead_after_complete_and_after_abort(store: Store) -> None:
    upload = await store.create_multipart("f/a")
    url, _ = store.sign_part("f/a", upload, 1, 5, None, 60)
    assert (await put(url, b"hello")).status == 200
    parts = await store.list_parts("f/a", upload)
    assert parts is not None
    with pytest.raises(StorageRefused) as caught:
        await store.complete("f/a", upload, [replace(parts[0], etag="0" * 32)])
    assert caught.value.reason == "InvalidPart"
    await store.complete("f/a", upload, parts)
    assert (await put(url, b"HELLO")).status == 404
    assert (await get(store.sign_get("f/a", "attachment", "text/plain", 60))).body == b"hello"

    upload = await store.create_multipart("f/b")
    url, _ = store.sign_part("f/b", upload, 1, 5, None, 60)
    await store.abort("f/b", upload)
    assert (await put(url, b"hello")).status == 404
    assert await store.list_parts("f/b", upload) is None
    assert await store.complete("f/b", upload, parts) is None
    assert await store.head("f/b") is None


async def test_expired_and_altered_urls_are_refused(store: Store) -> None:
    upload = await store.create_multipart("f/a")
    url, _ = store.sign_part("f/a", upload, 1, 5, None, 60)
    assert (await put(url.replace("partNumber=1", "partNumber=2"), b"hello")).status == 403
    earlier = Store(store._settings, KEYS, clock=lambda: time.time() - 120)
    old, _ = earlier.sign_part("f/a", upload, 1, 5, None, 60)
    assert (await put(old, b"hello")).status == 403
    await store.abort("f/a", upload)


async def test_lists_what_is_open_and_what_is_stored(store: Store) -> None:
    uploads = {await store.create_multipart(f"f/{name}") for name in "abc"}
    found, more = await store.list_multipart()
    assert {item.upload_id for item in found} == uploads
    assert more is None
    assert abs(found[0].initiated_at / 1000 - time.time()) < 60
    for item in found:
        part = await store.upload_part(item.key, item.upload_id, 1, b"x")
        await store.complete(item.key, item.upload_id, [part])
    keys, more = await store.list_keys("f/")
    assert [(item.key, item.size) for item in keys] == [("f/a", 1), ("f/b", 1), ("f/c", 1)]
    assert more is None
    after, _ = await store.list_keys("f/", "f/a")
    assert [item.key for item in after] == ["f/b", "f/c"]
    await store.delete("f/a")
    await store.delete("f/a")
    assert await store.head("f/a") is None


async def test_clock_that_is_off_is_named(store: Store) -> None:
    await store.check_clock()
    off = Store(store._settings, KEYS, clock=lambda: time.time() - 600)
    with pytest.raises(StorageUnavailable, match=r"600 s behind|599 s behind|601 s behind"):
        await off.check_clock()


async def test_clock_that_is_set_is_named_at_once_and_forgotten_at_once(store: Store) -> None:
    set_by_s = [0]
    own = Store(store._settings, KEYS, clock=lambda: time.time() + set_by_s[-1])
    await own.check_clock()
    for off_s in (3600, -3600):
        set_by_s.append(off_s)
        with pytest.raises(StorageUnavailable, match=r"(3600|3599|3601) s (behind|ahead)"):
            await own.check_clock()
    set_by_s.append(0)
    await own.check_clock()


async def test_storage_that_is_not_there_is_a_clear_error() -> None:
    nobody = Store(storage_settings("http://127.0.0.1:1"), KEYS)
    with pytest.raises(StorageUnavailable, match=r"127\.0\.0\.1:1.*could not be asked"):
        await nobody.head("f/a")


async def test_wrong_keys_are_refused_by_name(store: Store) -> None:
    stranger = Store(store._settings, replace(KEYS, secret_key="wrong"))
    with pytest.raises(StorageRefused) as caught:
        await stranger.create_multipart("f/a")
    assert caught.value.reason == "SignatureDoesNotMatch"
    assert "wrong" not in str(caught.value)
