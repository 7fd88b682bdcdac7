"""Uploads from create to complete, against the real storage: only what was declared gets in, once."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio

from holdoverd.errors import StorageUnavailable
from holdoverd.files import rules
from holdoverd.files.who import AsCaller
from tests.files.house import House, get, open_house, put, sha256

pytestmark = pytest.mark.slow  # a server has to start

HELLO = b"hello"


async def test_file_goes_in_and_comes_out(house: House) -> None:
    made = await house.new(HELLO, "héllo.txt", path="/a/b/", content_type="text/plain")
    file, upload = made["file"], made["upload"]
    assert (file["name"], file["path"], file["state"]) == ("héllo.txt", "a/b", "uploading")
    assert (upload["more"], upload["part_size"], len(upload["parts"])) == (False, 16 * 2**20, 1)
    parts = await house.put_all(made, HELLO)
    answer = await house.complete(made, parts)
    ready = answer.json()["file"]
    assert (ready["state"], ready["verified"], ready["id"]) == ("ready", "size", file["id"])
    assert await house.call("GET", f"/v1/files/{file['id']}") == ready
    assert await house.download(file["id"]) == HELLO
    assert await house.acts(file["id"]) == ["file.made", "file.downloaded"]
    told = await house.call("GET", f"/v1/files/{file['id']}/download?redirect=false")
    assert (told["size"], told["sha256"]) == (5, None)
    assert (await get(told["url"])).body == HELLO


async def test_empty_file_is_a_file(house: House) -> None:
    file = await house.put_file(b"", "empty")
    assert (file["size"], file["state"]) == (0, "ready")
    assert await house.download(file["id"]) == b""


@pytest.mark.parametrize("body", [b"hell", b"hello!", b"", b"hellp"])
async def test_other_bytes_than_declared_are_refused(house: House, body: bytes) -> None:
    """Declared 5 bytes with their digest; 4, 6 and none sent, and the last byte flipped."""
    made = await house.new(HELLO, sha256=sha256(HELLO).upper())
    (part,) = made["upload"]["parts"]
    assert (await put(part, body)).status in (400, 403)
    answer = await house.complete(made, [{"number": 1, "etag": "0" * 32}])
    assert (answer.status, answer.code) == (409, "conflict")
    assert answer.json()["error"]["missing"] == [1]
    assert (await house.call("GET", f"/v1/files/{made['file']['id']}"))["state"] == "uploading"
    parts = await house.put_all(made, HELLO)
    assert (await house.complete(made, parts)).json()["file"]["verified"] == "sha256"


async def test_digest_header_that_is_left_out_or_altered_is_refused(house: House) -> None:
    made = await house.new(HELLO, sha256=sha256(HELLO))
    (part,) = made["upload"]["parts"]
    assert (await put({**part, "headers": {}}, HELLO)).status == 403
    other = {"x-amz-checksum-sha256": "q83vEjRWeJA="}
    assert (await put({**part, "headers": other}, HELLO)).status == 403


async def test_replayed_urls_change_nothing(house: House) -> None:
    """All of them, after complete, after abort and after delete."""
    made = await house.new(HELLO)
    file = (await house.complete(made, await house.put_all(made, HELLO))).json()["file"]
    (part,) = made["upload"]["parts"]
    before = await house.keys()
    assert 400 <= (await put(part, b"HELLO")).status < 500
    assert await house.keys() == before
    assert await house.download(file["id"]) == HELLO

    aborted = await house.new(HELLO)
    upload = f"/v1/uploads/{aborted['upload']['id']}"
    await house.call("DELETE", upload)
    await house.call("DELETE", upload)
    assert 400 <= (await put(aborted["upload"]["parts"][0], HELLO)).status < 500
    assert (await house.ask("POST", f"{upload}/parts", {"numbers": [1]})).status == 410
    assert (await house.complete(aborted, [{"number": 1, "etag": "x"}])).status == 410

    old = (await house.call("GET", f"/v1/files/{file['id']}/download?redirect=false"))["url"]
    await house.call("DELETE", f"/v1/files/{file['id']}")
    await house.call("DELETE", f"/v1/files/{file['id']}")
    assert 400 <= (await put(part, HELLO)).status < 500
    assert (await get(old)).status == 404
    assert (await house.ask("GET", f"/v1/files/{file['id']}/download")).status == 410
    assert (await house.call("GET", f"/v1/files/{file['id']}"))["state"] == "deleted"
    assert (await house.complete(made, [{"number": 1, "etag": "x"}])).status == 200
    assert await house.keys() == []
    assert await house.open_uploads() == []
    assert (await house.call("GET", "/v1/files"))["items"] == []


async def test_fifty_that_complete_at_once_make_one_file_and_one_job(house: House) -> None:
    made = await house.new(HELLO)
    parts = await house.put_all(made, HELLO)
    named = {1: str(parts[0]["etag"])}
    jobs: list[str] = []
    files: list[Any] = []
    who = AsCaller(house.doors.context.admin())

    async def complete() -> None:
        # Past the lock of this instance: as if each were another one.
        house.services.uploads._completing.clear()
        files.append(
            await house.services.uploads.complete(
                who, made["upload"]["id"], named, also=lambda _cx: jobs.append("job")
            )
        )

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(complete)
    assert len(files) == 50
    assert all(file == files[0] for file in files)
    assert jobs == ["job"]
    assert await house.acts(made["file"]["id"]) == ["file.made"]
    assert await house.download(made["file"]["id"]) == HELLO


async def test_what_goes_with_completing_is_undone_with_it(house: House) -> None:
    made = await house.new(HELLO)
    parts = await house.put_all(made, HELLO)
    named = {1: str(parts[0]["etag"])}
    who = AsCaller(house.doors.context.admin())

    def fail(_cx: object) -> None:
        raise RuntimeError("no such processor")

    with pytest.raises(RuntimeError):
        await house.services.uploads.complete(who, made["upload"]["id"], named, also=fail)
    assert (await house.call("GET", f"/v1/files/{made['file']['id']}"))["state"] == "uploading"
    # Storage has completed it by then; the next attempt finds that out.
    assert (await house.complete(made, parts)).json()["file"]["state"] == "ready"


class Small:
    """Parts of 5 MiB, S3's least, so that several fit into a test."""

    size = 5 * 2**20

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rules, "PART_BYTES", self.size)
        self.data = b"1" * self.size + b"2" * self.size + b"tail"

    def part(self, number: int) -> bytes:
        return self.data[(number - 1) * self.size : number * self.size]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Small:
    return Small(monkeypatch)


async def test_several_parts_are_verified_by_their_digests(house: House, small: Small) -> None:
    made = await house.new(small.data, sha256=sha256(small.data))
    assert (made["upload"]["parts"], made["upload"]["more"]) == ([], True)
    path = f"/v1/uploads/{made['upload']['id']}"
    answer = await house.ask("POST", f"{path}/parts", {"numbers": [1, 2, 3]})
    assert (answer.status, answer.code) == (422, "unprocessable")
    digests = {str(n): sha256(small.part(n)) for n in (1, 2, 3)}
    urls = await house.call("POST", f"{path}/parts", {"numbers": [1, 2, 3], "sha256": digests})
    flipped = small.part(2)[:-1] + b"?"
    assert (await put(urls["parts"][1], flipped)).status == 400
    made["upload"]["parts"] = urls["parts"][:2]
    parts = await house.put_all(made, small.data)
    answer = await house.complete(made, parts)
    assert answer.json()["error"]["missing"] == [3]
    state = await house.call("GET", path)
    assert [part["number"] for part in state["parts"]] == [1, 2]
    assert state["count"] == 3
    # A digest once told is known: fresh URLs need it no more.
    made["upload"]["parts"] = (await house.call("POST", f"{path}/parts", {"numbers": [3]}))["parts"]
    parts += await house.put_all(made, small.data)
    swapped = [{**parts[0], "etag": parts[1]["etag"]}, *parts[1:]]
    assert (await house.complete(made, swapped)).status == 409
    assert (await house.complete(made, parts[:2])).status == 422
    file = (await house.complete(made, parts)).json()["file"]
    assert (file["verified"], file["sha256"]) == ("parts", sha256(small.data))
    assert await house.download(file["id"]) == small.data


async def test_digest_that_changed_after_its_part_was_put_is_a_conflict(
    house: House, small: Small
) -> None:
    made = await house.new(small.data, sha256=sha256(small.data))
    path = f"/v1/uploads/{made['upload']['id']}/parts"
    digests = {str(n): sha256(small.part(n)) for n in (1, 2, 3)}
    urls = await house.call("POST", path, {"numbers": [1, 2, 3], "sha256": digests})
    made["upload"]["parts"] = urls["parts"]
    parts = await house.put_all(made, small.data)
    await house.call("POST", path, {"numbers": [2], "sha256": {"2": sha256(b"other")}})
    assert (await house.complete(made, parts)).status == 409


async def test_digests_where_none_were_announced_are_refused(house: House) -> None:
    made = await house.new(HELLO)
    path = f"/v1/uploads/{made['upload']['id']}/parts"
    body = {"numbers": [1], "sha256": {"1": sha256(HELLO)}}
    assert (await house.ask("POST", path, body)).status == 422
    assert (await house.ask("POST", path, {"numbers": [2]})).status == 422
    assert (await house.ask("POST", path, {"numbers": []})).status == 422
    assert (await house.ask("POST", path, {"numbers": ["1"]})).status == 422


async def test_urls_of_seconds_are_renewed_until_the_upload_is_done(
    weed: str, bucket: str, tmp_path: Path, small: Small
) -> None:
    async with open_house(weed, tmp_path, bucket=bucket, url_lifetime_s=1) as house:
        made = await house.new(small.data)
        path = f"/v1/uploads/{made['upload']['id']}/parts"
        parts = []
        for number in (1, 2, 3):
            await trio.sleep(2.1)  # each URL that came before is dead by now
            if number == 1:
                dead = made["upload"]["parts"][0]
                assert (await put(dead, small.part(1))).status == 403
            (url,) = (await house.call("POST", path, {"numbers": [number]}))["parts"]
            answer = await put(url, small.part(number))
            assert answer.status == 200
            parts.append({"number": number, "etag": answer.headers["etag"]})
        assert (await house.complete(made, parts)).status == 200


async def test_answer_that_is_given_again_has_fresh_urls(house: House) -> None:
    """Idempotency keys: no URL is kept, and the upload is the same."""
    token, _ = await house.doors.token(scopes=("read", "files"))
    headers = {"Authorization": f"Bearer {token}", "Idempotency_Key": "k1"}
    body = {"name": "a", "size": 5}
    first = (await house.doors.ask("POST", "/v1/files", body, **headers)).json()
    again = (await house.doors.ask("POST", "/v1/files", body, **headers)).json()
    assert again["upload"]["id"] == first["upload"]["id"]
    parts = await house.put_all(again, HELLO)
    path = f"/v1/uploads/{first['upload']['id']}/parts"
    for _ in range(2):
        answer = await house.doors.ask("POST", path, {"numbers": [1]}, **headers)
        assert "X-Amz-Signature" in answer.json()["parts"][0]["url"]
    assert (await house.complete(again, parts)).status == 200
    assert len(await house.states()) == 1


async def test_other_owners_files_are_not_there(house: House) -> None:
    alice, _ = await house.doors.token("alice", ("read", "files"))
    bob, _ = await house.doors.token("bob", ("read", "files"))
    reader, _ = await house.doors.token("alice", ("read",))

    async def ask(token: str, method: str, path: str, body: object = None) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return (await house.doors.ask(method, path, body, **headers)).status

    made = await house.new(HELLO, owner="alice")
    file, upload = f"/v1/files/{made['file']['id']}", f"/v1/uploads/{made['upload']['id']}"
    parts = {"parts": await house.put_all(made, HELLO)}
    assert await ask(bob, "GET", upload) == 404
    assert await ask(bob, "POST", f"{upload}/complete", parts) == 404
    assert await ask(reader, "POST", f"{upload}/complete", parts) == 403
    assert await ask(alice, "POST", f"{upload}/complete", parts) == 200
    for method, path, body in (
        ("GET", file, None),
        ("GET", f"{file}/download", None),
        ("PATCH", file, {"name": "mine"}),
        ("DELETE", file, None),
        ("POST", f"{file}/links", {}),
        ("DELETE", upload, None),
    ):
        assert await ask(bob, method, path, body) == 404, path
        if method != "GET":
            assert await ask(reader, method, path, body) == 403, path
    assert await ask(reader, "GET", f"{file}/download") == 302
    headers = {"Authorization": f"Bearer {bob}"}
    assert (await house.doors.ask("GET", "/v1/files", **headers)).json()["items"] == []
    assert await ask(bob, "POST", "/v1/files", {"name": "x", "size": 1, "owner": "alice"}) == 403
    items = (await house.call("GET", "/v1/files?owner=alice"))["items"]
    assert [item["id"] for item in items] == [made["file"]["id"]]
    assert (await house.call("GET", "/v1/files?owner=bob"))["items"] == []


async def test_quota_counts_what_is_there_and_what_is_coming(
    weed: str, bucket: str, tmp_path: Path
) -> None:
    async with open_house(weed, tmp_path, bucket=bucket, quota_bytes=10) as house:
        first = await house.new(HELLO)
        file = await house.put_file(HELLO)
        answer = await house.ask("POST", "/v1/files", {"name": "a", "size": 1})
        assert (answer.status, answer.code) == (413, "too_large")
        await house.call("DELETE", f"/v1/uploads/{first['upload']['id']}")
        await house.call("DELETE", f"/v1/files/{file['id']}")
        assert len((await house.new(b"x" * 10))["upload"]["parts"]) == 1
        quota = {"owner": "default", "quota_bytes": 11}
        await house.call("POST", "/v1/admin/storage/quota", quota)
        await house.new(b"x")
        status = await house.call("GET", "/v1/admin/storage")
        assert status["owners"] == [
            {"owner": "default", "bytes": 11, "files": 2, "quota_bytes": 11}
        ]
        assert status["reachable"] is True
        (change,) = (await house.call("GET", "/v1/audit?action=quota.set"))["items"]
        assert (change["owner"], change["actor"]) == ("default", "admin")
        assert change["details"] == {"quota_bytes": 11}
        assert (await house.ask("POST", "/v1/files", {"name": "a", "size": 1})).status == 413


async def test_storage_that_is_gone_leaves_no_row_behind_and_says_so(tmp_path: Path) -> None:
    async with open_house("http://127.0.0.1:1", tmp_path) as house:
        answer = await house.ask("POST", "/v1/files", {"name": "a", "size": 1})
        assert (answer.status, answer.code) == (502, "storage_unavailable")
        assert await house.states() == {}
        assert (await house.call("GET", "/v1/files"))["items"] == []


async def test_upload_that_storage_does_not_open_is_given_up(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> str:
        raise StorageUnavailable("gone")

    monkeypatch.setattr(house.services.files.store, "create_multipart", fail)
    assert (await house.ask("POST", "/v1/files", {"name": "a", "size": 1})).status == 502
    assert set((await house.states()).values()) == {"deleted"}
    assert (await house.call("GET", "/v1/admin/storage"))["owners"][0]["bytes"] == 0


async def test_lists_by_folder_by_words_and_newest_first(house: House) -> None:
    for name, path in (
        ("b.txt", "x"),
        ("a.txt", "x"),
        ("Grüße aus Köln.txt", "x/y"),
        ("report-2026 report.txt", ""),
        ("x0.txt", "x0"),
    ):
        await house.new(b"", name, path=path)

    async def names(query: str) -> list[str]:
        found: list[str] = []
        following = ""
        while True:
            target = quote(f"/v1/files?limit=1{query}{following}", safe="/?&=+")
            answer = await house.call("GET", target)
            found += [item["name"] for item in answer["items"]]
            if answer["next"] is None:
                return found
            following = f"&cursor={answer['next']}"

    everything = ["x0.txt", "report-2026 report.txt", "Grüße aus Köln.txt", "a.txt", "b.txt"]
    assert await names("") == everything
    assert await names("&path=x") == ["a.txt", "b.txt"]
    assert await names("&path=x&recursive=true") == ["a.txt", "b.txt", "Grüße aus Köln.txt"]
    assert await names("&path=/") == ["report-2026 report.txt"]
    assert await names("&path=x&name=b.txt") == ["b.txt"]
    assert await names("&q=KÖL") == ["Grüße aus Köln.txt"]
    assert await names("&q=re") == ["report-2026 report.txt"]
    assert await names("&q=report-20+txt") == ["report-2026 report.txt"]
    assert sorted(await names("&q=txt")) == sorted(everything)
    assert await names("&q=none") == await names("&q=---") == []
    assert await names("&state=ready") == []
    item = (await house.call("GET", "/v1/files?q=k%C3%B6ln"))["items"][0]
    await house.call("PATCH", f"/v1/files/{item['id']}", {"name": "neu.txt", "path": "z"})
    assert await names("&q=köln") == []
    assert await names("&q=neu&path=z") == ["neu.txt"]
    for bad in ("limit=0", "cursor=x", "path=a//b", "recursive=1", "state=deleted"):
        assert (await house.ask("GET", f"/v1/files?{bad}")).status in (400, 422), bad


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"size": 1}, 400),
        ({"name": "a"}, 400),
        ({"name": "a", "size": -1}, 422),
        ({"name": "a", "size": "1"}, 400),
        ({"name": "a", "size": 2**53 - 1}, 413),
        ({"name": "a", "size": 1, "sha256": "abc"}, 422),
        ({"name": "a", "size": 1, "content_type": "html"}, 422),
        ({"name": "a", "size": 1, "content_type": "a/b\r\nx: y"}, 422),
        ({"name": "a", "size": 1, "path": "../x"}, 422),
        ({"name": "a", "size": 1, "owner": "nobody"}, 422),
    ],
)
async def test_shapes(house: House, body: object, status: int) -> None:
    assert (await house.ask("POST", "/v1/files", body)).status == status
