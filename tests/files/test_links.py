"""Links, upload links and their pages; downloads that stay inert; the audit."""

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import trio

from holdoverd.errors import StorageUnavailable
from holdoverd.ids import now_ms
from holdoverd.storage.client import Store
from tests.files.house import House, get, open_house, put, sha256
from tests.files.weed import KEYS
from tests.http.kit import Answer

pytestmark = pytest.mark.slow  # a server has to start

HELLO = b"hello"
PAGE = {"Accept": "text/html,application/xhtml+xml"}


def place(url: str) -> str:
    return urlsplit(url).path


async def linked(house: House, **terms: object) -> tuple[Any, Any]:
    """(file, link)"""
    file = await house.put_file(HELLO, "a.txt")
    return file, await house.call("POST", f"/v1/files/{file['id']}/links", terms)


async def test_link_is_all_that_a_stranger_needs(house: House) -> None:
    file, link = await linked(house)
    assert link["url"].startswith("http://localhost:8780/l/")
    answer = await house.doors.ask("GET", place(link["url"]))
    assert (answer.status, answer.headers["cache-control"]) == (302, "no-store")
    got = await get(answer.headers["location"])
    assert got.body == HELLO
    assert got.headers["content-disposition"].startswith("attachment;")
    assert (await house.call("GET", "/v1/links"))["items"][0]["downloads"] == 1
    assert await house.acts(link["id"]) == ["link.made", "link.used"]
    assert "X-Amz-Expires=60&" in answer.headers["location"]
    for other in ("/l/none", "/l/" + "x" * 32, "/u/none"):
        assert (await house.doors.ask("GET", other)).status == 404
    assert file["state"] == "ready"


async def test_looking_is_not_using(house: House) -> None:
    """What unfurls links in chats asks with HEAD, and must neither count nor get a URL."""
    _, link = await linked(house, max_downloads=1)
    answer = await house.doors.ask("HEAD", place(link["url"]))
    assert (answer.status, answer.headers.get("location")) == (204, None)
    assert (await house.doors.ask("GET", place(link["url"]))).status == 302
    assert (await house.doors.ask("HEAD", place(link["url"]))).status == 410


async def test_revoked_link_is_gone_at_once(house: House) -> None:
    _, link = await linked(house)
    await house.call("DELETE", f"/v1/links/{link['id']}")
    await house.call("DELETE", f"/v1/links/{link['id']}")
    answer = await house.doors.ask("GET", place(link["url"]))
    assert (answer.status, answer.code) == (410, "gone")
    assert await house.acts(link["id"]) == ["link.made", "link.revoked"]
    page = await house.doors.ask("GET", place(link["url"]), **PAGE)
    assert (page.status, page.headers["content-type"]) == (410, "text/html; charset=utf-8")
    assert b"revoked" in page.body


async def test_link_of_a_deleted_file_is_gone(house: House) -> None:
    file, link = await linked(house)
    await house.call("DELETE", f"/v1/files/{file['id']}")
    assert (await house.doors.ask("GET", place(link["url"]))).status == 410
    answer = await house.ask("POST", f"/v1/files/{file['id']}/links", {})
    assert answer.status == 410


async def test_link_expires(weed: str, bucket: str, tmp_path: Path) -> None:
    now = [now_ms()]
    async with open_house(weed, tmp_path, bucket=bucket, now=lambda: now[0]) as house:
        _, link = await linked(house, expires_in_s=60)
        assert (await house.doors.ask("GET", place(link["url"]))).status == 302
        now[0] += 60_000
        assert (await house.doors.ask("GET", place(link["url"]))).status == 410


async def test_of_twenty_that_race_for_one_download_one_gets_it(house: House) -> None:
    _, link = await linked(house, max_downloads=1)
    answers: list[Answer] = []

    async def follow() -> None:
        answers.append(await house.doors.ask("GET", place(link["url"])))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(follow)
    assert sorted(answer.status for answer in answers) == [302] + [410] * 19
    assert await house.acts(link["id"]) == ["link.made", "link.used"]


async def test_password_is_asked_for_and_counted_only_when_right(house: House) -> None:
    _, link = await linked(house, password="s3same", max_downloads=1)
    assert link["password"] is True
    path = place(link["url"])
    page = await house.doors.ask("GET", path)
    assert page.status == 200
    assert b'<form method="post">' in page.body
    storage = house.services.files.store.public_endpoint
    assert f"form-action 'self' {storage}" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "same-origin"
    assert (await house.doors.ask("POST", path, {"password": "no"})).status == 403
    again = await house.doors.ask("POST", path, {"password": "no"}, **PAGE)
    assert (again.status, b"not right" in again.body) == (403, True)
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    client = house.doors.client()
    answer = await client.ask("POST", path, raw=b"password=s3same", **form)
    assert answer.status == 302
    assert (await get(answer.headers["location"])).body == HELLO
    assert (await house.doors.ask("POST", path, {"password": "s3same"})).status == 410


async def test_guessing_a_password_is_slowed_down(house: House) -> None:
    _, link = await linked(house, password="s3same")
    path = place(link["url"])
    guesses = [await house.doors.ask("POST", path, {"password": str(n)}) for n in range(11)]
    assert [answer.status for answer in guesses] == [403] * 10 + [429]
    assert int(guesses[-1].headers["retry-after"]) > 0
    assert (await house.doors.ask("POST", path, {"password": "s3same"})).status == 429


async def test_tokens_and_passwords_are_not_in_the_catalogue(house: House, tmp_path: Path) -> None:
    _, link = await linked(house, password="s3same-s3same")
    made = await house.call(
        "POST", "/v1/upload-links", {"path": "in", "expires_in_s": 60, "max_bytes": 10}
    )
    await house.doors.ask("POST", place(link["url"]), {"password": "s3same-s3same"})
    secrets = [link["url"].rpartition("/")[2], made["url"].rpartition("/")[2], "s3same-s3same"]
    secrets += ["X-Amz-Signature", KEYS.secret_key, KEYS.access_key]
    # Not the pipe by which instances ring for each other: whoever reads it waits.
    for file in filter(Path.is_file, tmp_path.iterdir()):
        data = file.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in data], file


async def test_links_are_their_owners(house: House) -> None:
    bob, _ = await house.doors.token("bob", ("read", "files"))
    headers = {"Authorization": f"Bearer {bob}"}
    _, link = await linked(house)
    assert (await house.doors.ask("DELETE", f"/v1/links/{link['id']}", **headers)).status == 404
    assert (await house.doors.ask("GET", "/v1/links", **headers)).json()["items"] == []
    terms = {"path": "", "expires_in_s": 60, "max_bytes": 10}
    made = await house.doors.ask("POST", "/v1/upload-links", terms, **headers)
    assert (made.status, made.json()["owner"]) == (201, "bob")
    other, _ = await house.doors.token("alice", ("read", "files"))
    headers = {"Authorization": f"Bearer {other}"}
    path = f"/v1/upload-links/{made.json()['id']}"
    assert (await house.doors.ask("DELETE", path, **headers)).status == 404
    assert (await house.doors.ask("GET", "/v1/audit", **headers)).status == 403


async def test_upload_link_takes_files_until_it_is_full(house: House) -> None:
    terms = {"path": "in/box", "expires_in_s": 60, "max_bytes": 12}
    link = await house.call("POST", "/v1/upload-links", terms)
    path = place(link["url"])
    page = await house.doors.ask("GET", path)
    assert (page.status, b"12 bytes" in page.body) == (200, True)
    policy = page.headers["content-security-policy"]
    assert "connect-src 'self' http://127.0.0.1:" in policy
    new = {"name": "a.txt", "size": 5, "sha256": sha256(HELLO), "path": "elsewhere"}
    made = (await house.doors.ask("POST", path, new)).json()
    assert (made["file"]["path"], made["file"]["owner"]) == ("in/box", "default")
    upload = f"{path}/uploads/{made['upload']['id']}"
    parts = await house.put_all(made, HELLO)
    state = (await house.doors.ask("GET", upload)).json()
    assert [part["size"] for part in state["parts"]] == [5]
    fresh = await house.doors.ask("POST", f"{upload}/parts", {"numbers": [1]})
    assert fresh.status == 200
    answer = await house.doors.ask("POST", f"{upload}/complete", {"parts": parts})
    assert answer.json()["file"]["verified"] == "sha256"

    # Sent again under its key it is the same upload, by fresh URLs, and takes no room twice.
    asked = [
        (await house.doors.ask("POST", path, {"name": "b", "size": 7}, Idempotency_Key="k")).json()
        for _ in range(2)
    ]
    second = asked[0]
    assert asked[1]["file"] == second["file"]
    assert asked[1]["upload"]["parts"][0]["url"].startswith("http://")
    assert (await house.doors.ask("POST", path, {"name": "c", "size": 1})).status == 413
    other = f"{path}/uploads/{second['upload']['id']}"
    assert (await house.doors.ask("DELETE", other)).status == 204
    assert (await house.doors.ask("POST", path, {"name": "c", "size": 7})).status == 201
    # What came another way is not this link's, nor is anything else of its owner's.
    mine = await house.new(HELLO)
    stolen = f"{path}/uploads/{mine['upload']['id']}"
    assert (await house.doors.ask("GET", stolen)).status == 404
    assert (await house.doors.ask("DELETE", stolen)).status == 404
    acts = await house.acts(link["id"])
    assert acts == ["upload_link.made"] + ["upload_link.used"] * 3
    await house.call("DELETE", f"/v1/upload-links/{link['id']}")
    assert (await house.doors.ask("GET", path)).status == 410
    assert (await house.doors.ask("POST", path, new)).status == 410
    assert (await house.doors.ask("GET", upload)).status == 410
    assert (await house.call("GET", "/v1/upload-links"))["items"][0]["used_bytes"] == 12


async def test_upload_that_outlasts_its_link_may_be_completed(
    weed: str, bucket: str, tmp_path: Path
) -> None:
    now = [now_ms()]
    async with open_house(weed, tmp_path, bucket=bucket, now=lambda: now[0]) as house:
        terms = {"path": "", "expires_in_s": 60, "max_bytes": 12}
        path = place((await house.call("POST", "/v1/upload-links", terms))["url"])
        made = (await house.doors.ask("POST", path, {"name": "a", "size": 5})).json()
        now[0] += 60_000
        assert (await house.doors.ask("POST", path, {"name": "b", "size": 5})).status == 410
        assert (await house.doors.ask("GET", path)).status == 410
        parts = {"parts": await house.put_all(made, HELLO)}
        done = f"{path}/uploads/{made['upload']['id']}/complete"
        assert (await house.doors.ask("POST", done, parts)).status == 200


async def test_page_may_run_its_own_script_alone(house: House) -> None:
    import base64
    import hashlib

    terms = {"path": "", "expires_in_s": 60, "max_bytes": 12}
    link = await house.call("POST", "/v1/upload-links", terms)
    page = await house.doors.ask("GET", place(link["url"]))
    text = page.body.decode()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in page.headers["content-security-policy"]
    assert "default-src 'none'" in page.headers["content-security-policy"]


async def test_client_may_send_to_storage_and_nowhere_else(house: House) -> None:
    policy = (await house.doors.ask("GET", "/")).headers["content-security-policy"]
    if "script-src 'self'" not in policy:
        pytest.skip("the web client is not built")
    store = house.services.files.store
    assert f"; connect-src 'self' {store.public_origin}; " in policy


# --- inert ------------------------------------------------------------------------------------


async def test_file_is_an_inert_attachment_whatever_was_sent_with_it(house: House) -> None:
    """Content-Type, Content-Disposition and Response-* headers, with the parts and with the GET."""
    evil = {
        "Content-Type": "text/html",
        "Content-Disposition": "inline",
        "Response-Content-Type": "text/html",
        "Response-Content-Disposition": "inline",
        "Seaweed-Content-Type": "text/html",
    }
    data = b"<script>alert(1)</script>"
    made = await house.new(data, "a.html", content_type="text/html")
    (part,) = made["upload"]["parts"]
    answer = await put(part, data, evil)
    assert answer.status == 200
    named = [{"number": 1, "etag": answer.headers["etag"]}]
    file = (await house.complete(made, named)).json()["file"]
    path = f"/v1/files/{file['id']}/download"
    for query in ("", "?inline=true"):
        location = (await house.ask("GET", path + query)).headers["location"]
        got = await get(location, evil)
        assert got.headers["content-type"] == "application/octet-stream"
        assert got.headers["content-disposition"].startswith("attachment;")
        for more in ("&response-content-type=text/html", "&response-content-disposition=inline"):
            assert (await get(location + more)).status == 403
            assert (await get(location.replace("?", f"?{more[1:]}&", 1))).status == 403
    # By the bare key there is nothing to be had without a signature.
    assert (await get(location.partition("?")[0])).status == 403


async def test_picture_may_be_shown_inline(house: House) -> None:
    file = await house.put_file(b"PNG", "a.png", content_type="image/png")
    path = f"/v1/files/{file['id']}/download"
    got = await get((await house.ask("GET", f"{path}?inline=true")).headers["location"])
    assert got.headers["content-type"] == "image/png"
    assert got.headers["content-disposition"].startswith("inline;")
    got = await get((await house.ask("GET", path)).headers["location"])
    assert got.headers["content-type"] == "application/octet-stream"


def hostile_names() -> list[str]:
    """1,000 names, the same each time: header ends, quotes, escapes, every kind of Unicode."""
    chosen = random.Random(5)
    pieces = [
        *"\r\n\t\x00/\\\"';:%=,<>?*|&#+ .~^`{}()[]@!$\x7f\x1b\u2028\u202e\ufeff\u0301",
        *("\r\nSet-Cookie: a=b", "\r\n\r\n<html>", '"; filename="b.exe', "filename*=UTF-8''x"),
        *("%0d%0a", "%00", "..", "../", "a", "Z", "ä", "日本", "😀", "🏳️‍🌈", "é", "x" * 60),
    ]
    names = ["".join(chosen.choices(pieces, k=chosen.randint(1, 8))) for _ in range(990)]
    names += ["", ".", "..", " ", "...", "a" * 255, "a" * 256, "ü" * 127, "ü" * 128, "CON"]
    return names


def is_legal(name: str) -> bool:
    fits = 1 <= len(name.encode()) <= 255
    return fits and name not in (".", "..") and "/" not in name and "\0" not in name


async def test_a_thousand_hostile_names(house: House) -> None:
    """None injects a header; legal ones come back exactly, from here and from storage; others: 422."""
    names = hostile_names()
    assert len(names) == 1000
    file = await house.put_file(HELLO)
    path = f"/v1/files/{file['id']}"
    answers: dict[str, str] = {}
    client = house.doors.client("admin")
    legal = [name for name in names if is_legal(name)]
    for name in names:
        answer = await client.ask("PATCH", path, {"name": name})
        if not is_legal(name):
            assert (answer.status, answer.code) == (422, "unprocessable"), name
            continue
        assert (answer.status, answer.json()["name"]) == (200, name)
        answer = await client.ask("GET", f"{path}/download")
        assert answer.status == 302
        assert "set-cookie" not in answer.headers
        answers[name] = answer.headers["location"]
    assert 400 < len(legal) < 1000
    # All were signed; every fourth is fetched, which covers each piece many times.
    for name, location in list(answers.items())[::4]:
        got = await get(location)
        disposition = got.headers["content-disposition"]
        assert unquote(disposition.rpartition("; filename*=UTF-8''")[2]) == name
        assert disposition.startswith('attachment; filename="')
        assert "set-cookie" not in got.headers
        assert got.body == HELLO


# --- clocks and names -------------------------------------------------------------------------


@pytest.mark.parametrize("off_s", [600, -600])
async def test_clock_that_is_ten_minutes_off_is_a_clear_error(house: House, off_s: int) -> None:
    """And not a URL that storage then refuses."""
    import time

    file, link = await linked(house)
    files = house.services.files
    files._store = Store(files.settings, KEYS, clock=lambda: time.time() + off_s)
    for answer in (
        await house.ask("GET", f"/v1/files/{file['id']}/download"),
        await house.ask("POST", "/v1/files", {"name": "a", "size": 1}),
        await house.doors.ask("GET", place(link["url"])),
    ):
        assert (answer.status, answer.code) == (502, "storage_unavailable")
        assert "clock" in answer.json()["error"]["message"]
        assert "behind" in str(answer.body) if off_s < 0 else "ahead of" in str(answer.body)
    assert (await house.call("GET", "/v1/links"))["items"][0]["downloads"] == 0


async def test_audit_is_paged_and_filtered(house: House) -> None:
    file, link = await linked(house)
    await house.doors.ask("GET", place(link["url"]))
    first = await house.call("GET", "/v1/audit?limit=2")
    assert [item["action"] for item in first["items"]] == ["link.used", "link.made"]
    rest = await house.call("GET", f"/v1/audit?limit=2&cursor={first['next']}")
    assert [item["action"] for item in rest["items"]] == ["file.made"]
    assert rest["next"] is None
    assert rest["items"][0]["details"]["verified"] == "size"
    used = await house.call("GET", "/v1/audit?action=link.used")
    assert [(item["actor"], item["subject"]) for item in used["items"]] == [(link["id"],) * 2]
    assert used["items"][0]["details"]["file"] == file["id"]
    assert (await house.call("GET", "/v1/audit?owner=nobody"))["items"] == []


# --- secrets ----------------------------------------------------------------------------------


async def test_nothing_secret_is_logged_even_at_debug_level(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    import logging

    caplog.set_level(logging.DEBUG)
    file, link = await linked(house, password="s3same-s3same")
    await house.doors.ask("POST", place(link["url"]), {"password": "s3same-s3same"})
    token, _ = await house.doors.token(scopes=("read", "files"))
    await house.doors.ask("GET", "/v1/files", Authorization=f"Bearer {token}")
    await house.call("DELETE", f"/v1/files/{file['id']}")
    stranger = Store(house.services.files.settings, replace(KEYS, secret_key="wrong-wrong"))
    with pytest.raises(StorageUnavailable):
        await stranger.create_multipart("f/x")
    secrets = [KEYS.secret_key, KEYS.access_key, "X-Amz-Signature=", "s3same-s3same", token]
    secrets += [link["url"].rpartition("/")[2], "wrong-wrong"]
    assert not [secret for secret in secrets if secret in caplog.text]
    assert logging.getLogger("botocore").isEnabledFor(logging.DEBUG) is False
