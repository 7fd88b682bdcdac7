"""Proves, against the configured storage, each property that Holdover's files lean on.

``python -m holdoverd.storage.doctor [--json]``, where the daemon's settings and keys can be read.
Stores differ in what they leave out, and their documentation does not tell; so each property is
tried, with a client's own means: plain HTTP by signed URLs, through `public_endpoint`. It writes to
the configured bucket, beneath ``doctor/``, and removes what it wrote.

From what holds, `verdict` chooses how files are verified here, or refuses the store.
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio

from holdover import places
from holdoverd.errors import HoldoverError, SettingsError, StorageRefused, StorageUnavailable
from holdoverd.settings import Settings, load_default
from holdoverd.storage.client import Store
from holdoverd.storage.credentials import load_credentials
from holdoverd.storage.plan import DOOR_FILE

HOST_KEYS = Path("/etc/holdover/storage-keys.json")

PREFIX = "doctor/"
TIMEOUT_S = 30.0
PART_BYTES = 5 << 20  # the smallest that a part before the last may be


class Weight(Enum):
    """What follows when a property does not hold.

    MUST: files would not be safe, the store is refused. DIGESTS: digests are declared but not
    proved, files are verified by size. NOTE: something is less comfortable.
    """

    MUST = "must"
    DIGESTS = "digests"
    NOTE = "note"


@dataclass(frozen=True)
class Property:
    name: str
    weight: Weight
    means: str


@dataclass(frozen=True)
class Finding:
    """Whether a property holds; None: it could not be tried. `detail` says what was seen."""

    name: str
    holds: bool | None
    detail: str = ""


# fmt: off
PROPERTIES: tuple[Property, ...] = (
    Property("clock", Weight.MUST, "storage's clock and this host's are within 30 s"),
    Property("signed-only", Weight.MUST, "without a signature nothing can be read, written or listed"),
    Property("host", Weight.MUST, "a URL signed for public_endpoint is good there: the host signed is the host seen"),
    Property("tamper", Weight.MUST, "a URL whose query or path was changed is refused"),
    Property("expiry", Weight.MUST, "a URL is dead when its time is over"),
    Property("size", Weight.MUST, "a part has exactly the bytes that were signed"),
    Property("parts", Weight.MUST, "parts of equal size and a smaller last one become the file"),
    Property("empty", Weight.MUST, "a file may be one empty part"),
    Property("dead-after-complete", Weight.MUST, "part URLs do nothing once the upload is complete"),
    Property("dead-after-abort", Weight.MUST, "part URLs do nothing once the upload is aborted, and no key appears"),
    Property("dead-after-delete", Weight.MUST, "part URLs do nothing once the file is deleted"),
    Property("inert", Weight.MUST, "a download is an attachment, of a type that nothing runs"),
    Property("side-ports", Weight.MUST, "storage on this machine can be reached by its S3 door alone"),
    Property("checksum", Weight.DIGESTS, "a part has exactly the SHA-256 that was signed"),
    Property("composite", Weight.DIGESTS, "storage tells the checksum of a completed file"),
    Property("conditional", Weight.NOTE, "completing can be made to depend on the key being free"),
    Property("ranges", Weight.NOTE, "downloads can be gone on with (Range and If-Match)"),
    Property("cors", Weight.NOTE, "pages of public_url may put parts and read their ETags"),
)
# fmt: on


class Mode(Enum):
    """How files are kept in this store. DIGESTS: their SHA-256 proved by it. SIZE: the size alone."""

    DIGESTS = "digests"
    SIZE = "size"
    REFUSED = "refused"


def verdict(findings: Sequence[Finding]) -> tuple[Mode, list[str]]:
    """(what this store is good for, the names of the properties that decided so)."""
    held = {finding.name: finding.holds for finding in findings}
    for weight, mode in ((Weight.MUST, Mode.REFUSED), (Weight.DIGESTS, Mode.SIZE)):
        # What could not be tried counts as missing: it is trusted only when it was seen.
        missing = [p.name for p in PROPERTIES if p.weight is weight and not held.get(p.name)]
        if missing:
            return mode, missing
    return Mode.DIGESTS, []


# --- trying -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def __str__(self) -> str:
        code = self.body.partition(b"<Code>")[2].partition(b"</Code>")[0].decode(errors="replace")
        return f"{self.status} {code}".strip()

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def refused(self) -> bool:
        return 400 <= self.status < 500


class Doctor:
    """Tries one store; `origin` is the web client's, "" to leave its part out."""

    def __init__(self, store: Store, origin: str) -> None:
        self._store = store
        self._origin = origin
        self._prefix = f"{PREFIX}{secrets.token_hex(8)}/"
        self._keys: list[str] = []
        self._open: list[tuple[str, str]] = []

    async def examine(self) -> list[Finding]:
        """One finding a property, in order. Raises StorageUnavailable where nothing can be tried."""
        await self._store.ensure_bucket()
        findings = []
        try:
            for one in PROPERTIES:
                findings.append(await self._try(one))
        finally:
            with trio.CancelScope(shield=True):
                await self._clean()
        return findings

    async def _try(self, one: Property) -> Finding:
        attempt: Callable[[], Awaitable[tuple[bool, str]]] = getattr(
            self, "_" + one.name.replace("-", "_")
        )
        try:
            holds, detail = await attempt()
        except _NothingSaid as error:
            return Finding(one.name, None, str(error))
        except (HoldoverError, OSError, http.client.HTTPException) as error:
            return Finding(one.name, False, f"{type(error).__name__}: {error}")
        return Finding(one.name, holds, detail)

    async def _clean(self) -> None:
        # What is left behind where storage fails is the sweeper's.
        for key, upload in self._open:
            with contextlib.suppress(HoldoverError, OSError):
                await self._store.abort(key, upload)
        for key in self._keys:
            with contextlib.suppress(HoldoverError, OSError):
                await self._store.delete(key)

    # -- tools -----------------------------------------------------------------------------------

    def _key(self) -> str:
        key = f"{self._prefix}{len(self._keys)}"
        self._keys.append(key)
        return key

    async def _upload(self, *, digests: bool = False) -> tuple[str, str]:
        key = self._key()
        upload = await self._store.create_multipart(key, digests=digests)
        self._open.append((key, upload))
        return key, upload

    async def _send(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        return await trio.to_thread.run_sync(partial(_exchange, method, url, body, headers or {}))

    async def _put(
        self, key: str, upload: str, number: int, body: bytes, sha256: str | None = None
    ) -> tuple[str, Answer]:
        """Put a part as clients do; (its URL, the answer)."""
        url, headers = self._store.sign_part(key, upload, number, len(body), sha256, 300)
        return url, await self._send("PUT", url, body, headers)

    async def _file(self, body: bytes) -> tuple[str, str]:
        """Make a file of one part; (its key, the URL of the part)."""
        key, upload = await self._upload()
        url, answer = await self._put(key, upload, 1, body)
        if not answer.ok:
            raise _NothingSaid(f"no part could be put: {answer}")
        parts = await self._store.list_parts(key, upload)
        if parts is None or await self._store.complete(key, upload, parts) is None:
            raise _NothingSaid("an upload could not be completed")
        return key, url

    async def _read(self, key: str) -> Answer:
        url = self._store.sign_get(key, 'attachment; filename="x"', "application/octet-stream", 300)
        return await self._send("GET", url)

    async def _replay(self, key: str, url: str, before: bytes | None) -> tuple[bool, str]:
        """Put again by a part's URL: refused, nothing new, nothing changed."""
        answer = await self._send("PUT", url, b"HELLO", {"content-length": "5"})
        if not answer.refused:
            return False, f"the URL still answers {answer}"
        now = await self._store.head(key)
        if before is None:
            return now is None, "no key" if now is None else "a key appeared"
        found = (await self._read(key)).body
        return found == before, "unchanged" if found == before else "the file changed"

    # -- the properties, each by its name --------------------------------------------------------

    async def _clock(self) -> tuple[bool, str]:
        await self._store.check_clock()
        return True, ""

    async def _signed_only(self) -> tuple[bool, str]:
        key, _ = await self._file(b"hello")
        top = self._store.sign("GET", key, 300).partition("?")[0]
        bucket = self._store.sign("GET", "", 300).partition("?")[0]
        tries = (
            ("GET", top, None),
            ("PUT", top, b"other"),
            ("DELETE", top, None),
            ("GET", bucket, None),
            ("POST", top + "?uploads", b""),
        )
        for method, url, body in tries:
            answer = await self._send(method, url, body)
            if answer.ok:
                return False, f"{method} without a signature answers {answer}"
        return True, ""

    async def _host(self) -> tuple[bool, str]:
        key, upload = await self._upload()
        _, answer = await self._put(key, upload, 1, b"hello")
        return answer.ok, f"{self._store.public_endpoint} answers {answer}"

    async def _tamper(self) -> tuple[bool, str]:
        key, _ = await self._file(b"hello")
        other, _ = await self._file(b"other")
        url = self._store.sign_get(key, "attachment", "application/octet-stream", 300)
        for changed in (
            url.replace("octet-stream", "xhtml%2Bxml"),
            url.replace(key, other),
            url.replace("X-Amz-Expires=300", "X-Amz-Expires=900"),
        ):
            assert changed != url, "the URL has what is changed in it"
            answer = await self._send("GET", changed)
            if answer.ok:
                return False, f"a changed URL answers {answer}"
        return True, ""

    async def _expiry(self) -> tuple[bool, str]:
        key, _ = await self._file(b"hello")
        url = self._store.sign("GET", key, 1)
        await trio.sleep(2.5)
        answer = await self._send("GET", url)
        return answer.refused, f"1.5 s later it answers {answer}"

    async def _size(self) -> tuple[bool, str]:
        key, upload = await self._upload()
        for body in (b"hell", b"hello!"):
            url, headers = self._store.sign_part(key, upload, 1, 5, None, 300)
            sent = {**headers, "content-length": str(len(body))}
            answer = await self._send("PUT", url, body, sent)
            if answer.ok:
                return False, f"{len(body)} bytes instead of 5 answer {answer}"
        left = await self._store.list_parts(key, upload)
        return left == [], "" if left == [] else "a refused part was kept"

    async def _parts(self) -> tuple[bool, str]:
        key, upload = await self._upload()
        bodies = [secrets.token_bytes(PART_BYTES), secrets.token_bytes(PART_BYTES), b"x"]
        for number, body in enumerate(bodies, start=1):
            _, answer = await self._put(key, upload, number, body)
            if not answer.ok:
                return False, f"part {number} answers {answer}"
        parts = await self._store.list_parts(key, upload) or []
        sizes = [part.size for part in parts]
        if sizes != [len(body) for body in bodies]:
            return False, f"storage lists parts of {sizes} bytes"
        await self._store.complete(key, upload, parts)
        found = (await self._read(key)).body
        return found == b"".join(bodies), f"{len(found)} bytes of {2 * PART_BYTES + 1}"

    async def _empty(self) -> tuple[bool, str]:
        key, _ = await self._file(b"")
        found = await self._store.head(key)
        return found is not None and found.size == 0, ""

    async def _dead_after_complete(self) -> tuple[bool, str]:
        key, url = await self._file(b"hello")
        return await self._replay(key, url, b"hello")

    async def _dead_after_abort(self) -> tuple[bool, str]:
        key, upload = await self._upload()
        url, answer = await self._put(key, upload, 1, b"hello")
        if not answer.ok:
            raise _NothingSaid(f"no part could be put: {answer}")
        await self._store.abort(key, upload)
        return await self._replay(key, url, None)

    async def _dead_after_delete(self) -> tuple[bool, str]:
        key, url = await self._file(b"hello")
        await self._store.delete(key)
        return await self._replay(key, url, None)

    async def _inert(self) -> tuple[bool, str]:
        key, _ = await self._file(b"<script>")
        # Even by a URL that asks for nothing: it is stored so.
        for url in (
            self._store.sign_get(key, 'attachment; filename="x"', "application/octet-stream", 300),
            self._store.sign("GET", key, 300),
        ):
            answer = await self._send("GET", url)
            kind = answer.headers.get("content-type", "")
            how = answer.headers.get("content-disposition", "")
            if kind not in {"application/octet-stream", "binary/octet-stream"}:
                return False, f"it comes as {kind or 'no type at all'}"
            if not how.startswith("attachment"):
                return False, f"it comes as {how or 'no attachment'}"
        return True, ""

    async def _side_ports(self) -> tuple[bool, str]:
        parts = urlsplit(self._store.endpoint)
        if parts.hostname not in {"127.0.0.1", "::1", "localhost"}:
            return True, "storage is on another machine, whose matter it is"
        secret = secrets.token_hex(32).encode()
        key, _ = await self._file(secret)
        own = parts.port or (443 if parts.scheme == "https" else 80)
        paths = [
            f"{top}/{key}"
            for top in (f"/buckets/{self._store.bucket}", f"/{self._store.bucket}", "")
        ]
        found = await trio.to_thread.run_sync(leaking_ports, own, paths, secret)
        listed = ", ".join(map(str, found))
        return not found, f"a file can be read by everybody at port {listed}" if found else ""

    async def _checksum(self) -> tuple[bool, str]:
        key, upload = await self._upload(digests=True)
        sha256 = hashlib.sha256(b"hello").hexdigest()
        url, headers = self._store.sign_part(key, upload, 1, 5, sha256, 300)
        answer = await self._send("PUT", url, b"hellp", headers)
        if not answer.refused:
            return False, f"other bytes of the same length answer {answer}"
        other = {**headers, "x-amz-checksum-sha256": "A" * 43 + "="}
        answer = await self._send("PUT", url, b"hello", other)
        if not answer.refused:
            return False, f"another checksum than the signed one answers {answer}"
        answer = await self._send("PUT", url, b"hello", headers)
        return answer.ok, f"the right bytes answer {answer}"

    async def _composite(self) -> tuple[bool, str]:
        key, upload = await self._upload(digests=True)
        sha256 = hashlib.sha256(b"hello").hexdigest()
        await self._put(key, upload, 1, b"hello", sha256)
        parts = await self._store.list_parts(key, upload) or []
        from dataclasses import replace

        await self._store.complete(key, upload, [replace(part, sha256=sha256) for part in parts])
        found = await self._store.head(key)
        checksum = found.checksum if found is not None else None
        return checksum is not None, checksum or "it keeps none"

    async def _conditional(self) -> tuple[bool, str]:
        key, _ = await self._file(b"hello")
        upload = await self._store.create_multipart(key)
        self._open.append((key, upload))
        await self._put(key, upload, 1, b"other")
        parts = await self._store.list_parts(key, upload) or []
        listed = [{"PartNumber": part.number, "ETag": f'"{part.etag}"'} for part in parts]

        def complete(s3: Any) -> None:
            s3.complete_multipart_upload(
                Bucket=self._store.bucket,
                Key=key,
                UploadId=upload,
                MultipartUpload={"Parts": listed},
                IfNoneMatch="*",
            )

        try:
            await self._store._call("complete on a condition", complete)
        except StorageRefused as refused:
            kept = (await self._read(key)).body == b"hello"
            return kept, str(refused.reason)
        return False, "it overwrote the key"

    async def _ranges(self) -> tuple[bool, str]:
        key, _ = await self._file(b"hello")
        url = self._store.sign("GET", key, 300)
        part = await self._send("GET", url, None, {"Range": "bytes=1-3"})
        if (part.status, part.body) != (206, b"ell"):
            return False, f"a range answers {part.status} with {len(part.body)} bytes"
        etag = part.headers.get("etag", "")
        same = await self._send("GET", url, None, {"Range": "bytes=1-3", "If-Match": etag})
        other = await self._send("GET", url, None, {"Range": "bytes=1-3", "If-Match": '"no"'})
        right = (same.status, other.status) == (206, 412)
        return right, "" if right else f"If-Match answers {same.status} and {other.status}"

    async def _cors(self) -> tuple[bool, str]:
        if not self._origin:
            raise _NothingSaid("[server] public_url is not set")
        await self._store.set_cors([self._origin])
        key, upload = await self._upload()
        url, headers = self._store.sign_part(key, upload, 1, 5, None, 300)
        asked = {
            "Origin": self._origin,
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "content-type",
        }
        before = await self._send("OPTIONS", url, None, asked)
        if before.headers.get("access-control-allow-origin") not in {"*", self._origin}:
            return False, f"the question before a PUT answers {before}"
        answer = await self._send("PUT", url, b"hello", {**headers, "Origin": self._origin})
        exposed = answer.headers.get("access-control-expose-headers", "").lower()
        if "etag" not in exposed and exposed != "*":
            return False, "the ETag is not shown to pages"
        return True, ""


class _NothingSaid(Exception):
    """A property could not be tried."""


def _exchange(method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
    parts = urlsplit(url)
    kind: Any = (
        http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    )
    connection = kind(parts.hostname, parts.port, timeout=TIMEOUT_S)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        # It may have answered before it had read everything.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, target, body=body, headers=dict(headers))
        response = connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, response.read())
    finally:
        connection.close()


def leaking_ports(own: int, paths: Sequence[str], secret: bytes) -> list[int]:
    """Ports of this machine but `own` that give `secret` away at one of `paths`. Blocks.

    SeaweedFS's filer would; its other servers open and close together with it.
    """
    found = []
    for port in sorted(_listening() - {own}):
        for path in paths:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                if secret in _peek(port, path):
                    found.append(port)
                    break
    return found


def _peek(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().read(65_536)
    finally:
        connection.close()


def _listening() -> set[int]:
    """TCP ports with a listener in this network, from proc(5): state 0A is LISTEN."""
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A":
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


# --- the command --------------------------------------------------------------------------------


def surroundings(env: Mapping[str, str]) -> dict[str, str]:
    """`env` with what leads to the keys: those of `holdover up`, or this host's.

    Raises SettingsError where there are keys that may not be read.
    """
    if env.get("HOLDOVER_STORAGE_CREDENTIALS"):
        return dict(env)
    door = places.runtime_dir(env) / "storage" / DOOR_FILE
    named = env.get("HOLDOVER_RUNTIME_DIR") or env.get("HOLDOVER_STATE_DIR")
    if not named and HOST_KEYS.parent.is_dir() and HOST_KEYS.exists():
        if not os.access(HOST_KEYS, os.R_OK):
            raise SettingsError(f"{HOST_KEYS} is root's alone: run this as root (sudo).")
        return {**env, "HOLDOVER_STORAGE_CREDENTIALS": str(HOST_KEYS)}
    if door.exists():
        told = json.loads(door.read_text())
        return {
            **env,
            "HOLDOVER_STORAGE_ENDPOINT": told["endpoint"],
            "HOLDOVER_STORAGE_CREDENTIALS": told["keys"],
        }
    return dict(env)


def open_store(env: Mapping[str, str]) -> tuple[Store, Settings]:
    """Raises SettingsError where no storage is configured here."""
    found = surroundings(env)
    settings = load_default(found)
    store = Store.open(settings.storage, load_credentials(found), None)
    if store is None:
        raise SettingsError(
            "No storage is configured here: neither `holdover up` runs any, nor are there keys in "
            f"{HOST_KEYS} or in the file that HOLDOVER_STORAGE_CREDENTIALS names."
        )
    return store, settings


SAYS = {
    Mode.DIGESTS: "Files are verified here by their SHA-256.",
    Mode.SIZE: "Usable: files are verified here by their size, not by their SHA-256 ({names}).",
    Mode.REFUSED: "Not usable for files: {names}.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 usable, 1 refused, 7 storage cannot be reached."""
    parser = argparse.ArgumentParser(prog="holdover storage doctor")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(argv)
    try:
        store, settings = open_store(os.environ)
        findings = trio.run(
            Doctor(store, settings.server.public_url or "http://127.0.0.1:8780").examine
        )
    except StorageUnavailable as error:
        print(f"holdover: {error}", file=sys.stderr)
        return 7
    except SettingsError as error:
        print(f"holdover: {error}", file=sys.stderr)
        return 1
    mode, names = verdict(findings)
    means = {one.name: one.means for one in PROPERTIES}
    for finding in findings:
        if options.json:
            print(json.dumps(asdict(finding)))
            continue
        word = {True: "holds", False: "FAILS", None: "?"}[finding.holds]
        detail = f" ({finding.detail})" if finding.detail and not finding.holds else ""
        print(f"{word:<6} {finding.name:<20} {means[finding.name]}{detail}")
    if options.json:
        print(json.dumps({"mode": mode.value, "because": names}))
    else:
        print(SAYS[mode].format(names=", ".join(names)))
    return 1 if mode is Mode.REFUSED else 0


if __name__ == "__main__":
    sys.exit(main())
