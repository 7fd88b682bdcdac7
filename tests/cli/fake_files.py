"""The contract's Files, in memory: the daemon's answers, and a storage that can be made to fail.

Storage is a server of its own on loopback. What is to go wrong with it a test puts into `faults`: each
takes the next request that it fits.
"""

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Json = dict[str, Any]
PART = 16 << 20


@dataclass
class Fault:
    """What happens to the next request of this method: answered `status`, or cut after `cut` bytes."""

    method: str
    status: int = 0
    code: str = ""
    cut: int | None = None


class FakeFiles:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.part_size = PART
        self.files: dict[str, Json] = {}
        self.uploads: dict[str, Json] = {}
        self.links: dict[str, Json] = {}
        self.upload_links: dict[str, Json] = {}
        self.bytes: dict[str, bytes] = {}  # {file id: content}
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str, int]] = []  # (method, what, bytes), of storage
        self.down_after: int | None = None  # so many parts pass, all others are answered 503
        self.first_page_is_empty = False  # as of a search that has looked for long in vain
        self.now = 2_000_000_000_000
        self.signed = 0
        self.storage = ""

    # -- the daemon's side -----------------------------------------------------------------------

    def answer(self, method: str, path: list[str], query: Json, body: Any) -> tuple[int, Any]:
        with self.lock:
            return self._answer(method, path, query, body)

    def _answer(self, method: str, path: list[str], query: Json, body: Any) -> tuple[int, Any]:
        match (method, *path[1:]):
            case ("POST", "files"):
                return 201, self._create(body)
            case ("GET", "files"):
                if self.first_page_is_empty and "cursor" not in query:
                    return 200, {"items": [], "next": "c"}
                return 200, {"items": self._listed(query), "next": None}
            case ("GET", "files", one):
                return 200, self.files[one]
            case ("PATCH", "files", one):
                self.files[one].update(body)
                return 200, self.files[one]
            case ("DELETE", "files", one):
                del self.files[one]
                return 204, None
            case ("GET", "files", one, "download"):
                file = self.files[one]
                url = self._sign("o", one)
                answer = {"url": url, "expires_at": 0}
                return 200, answer | {key: file[key] for key in ("sha256", "size")}
            case ("POST", "files", one, "links"):
                link = {"id": f"l_{len(self.links):016d}", "file": one, "downloads": 0,
                        "max_downloads": body.get("max_downloads"), "revoked_at": None,
                        "password": "password" in body, "expires_at": self.now}  # fmt: skip
                self.links[link["id"]] = link
                return 201, link | {"url": "http://holdover.example/l/tok"}
            case ("GET", "links"):
                return 200, {"items": [*self.links.values()], "next": None}
            case ("DELETE", "links", one):
                del self.links[one]
                return 204, None
            case ("POST", "upload-links"):
                link = {"id": f"ul_{len(self.upload_links):016d}", "used_bytes": 0,
                        "revoked_at": None, "expires_at": self.now, **body}  # fmt: skip
                self.upload_links[link["id"]] = link
                return 201, link | {"url": "http://holdover.example/u/tok"}
            case ("GET", "upload-links"):
                return 200, {"items": [*self.upload_links.values()], "next": None}
            case ("DELETE", "upload-links", one):
                del self.upload_links[one]
                return 204, None
            case ("GET", "uploads", one):
                return 200, self._shown(self.uploads[one])
            case ("POST", "uploads", one, "parts"):
                upload = self.uploads[one]
                if upload["digests"]:
                    upload["known"].update(body.get("sha256", {}))
                    assert all(str(n) in upload["known"] for n in body["numbers"])
                return 200, {"parts": [self._part(upload, n) for n in body["numbers"]]}
            case ("POST", "uploads", one, "complete"):
                return self._complete(self.uploads[one], body)
        return 404, {"error": {"code": "not_found", "message": f"There is no {path}."}}

    def _create(self, body: Json) -> Json:
        number = f"{len(self.files):016d}"
        file = {"id": f"f_{number}", "owner": "default", "name": body["name"],
                "path": body.get("path", ""), "size": body["size"], "sha256": body.get("sha256"),
                "verified": None, "content_type": body.get("content_type"), "state": "uploading",
                "created_at": self.now + len(self.files)}  # fmt: skip
        count = max(1, -(-file["size"] // self.part_size))
        upload = {"id": f"u_{number}", "file": file["id"], "part_size": self.part_size,
                  "count": count, "digests": file["sha256"] is not None and count > 1,
                  "known": {}, "state": "open", "parts": {}}  # fmt: skip
        self.files[file["id"]] = file
        self.uploads[upload["id"]] = upload
        numbers = [] if upload["digests"] else range(1, min(count, 64) + 1)
        parts = [self._part(upload, n) for n in numbers]
        return {
            "file": dict(file),
            "upload": {
                "id": upload["id"],
                "part_size": self.part_size,
                "parts": parts,
                "more": len(parts) < count,
            },
        }

    def _part(self, upload: Json, number: int) -> Json:
        size = self.files[upload["file"]]["size"]
        length = min(self.part_size, size - (number - 1) * self.part_size)
        return {
            "number": number,
            "method": "PUT",
            "url": self._sign("p", upload["id"], str(number)),
            "headers": {"content-length": str(length)},
            "expires_at": 4_000_000_000_000,
        }

    def _sign(self, *what: str) -> str:
        self.signed += 1
        return f"{self.storage}/{'/'.join(what)}?X-Amz-Signature=secret{self.signed}"

    def _shown(self, upload: Json) -> Json:
        held = [
            {"number": n, "size": len(data), "etag": etag_of(data)}
            for n, data in sorted(upload["parts"].items())
        ]
        return {
            "id": upload["id"],
            "state": upload["state"],
            "part_size": upload["part_size"],
            "file": self.files[upload["file"]],
            "parts": held,
        }

    def _complete(self, upload: Json, body: Json) -> tuple[int, Any]:
        file = self.files[upload["file"]]
        if upload["state"] == "completed":
            return 200, {"file": file}
        missing = [n for n in range(1, upload["count"] + 1) if n not in upload["parts"]]
        if missing:
            error = {"code": "conflict", "message": "Parts are missing.", "missing": missing}
            return 409, {"error": error}
        for part in body["parts"]:
            assert part["etag"] == etag_of(upload["parts"][part["number"]])
        upload["state"] = "completed"
        file["state"] = "ready"
        self.bytes[file["id"]] = b"".join(data for _, data in sorted(upload["parts"].items()))
        return 200, {"file": file}

    def _listed(self, query: Json) -> list[Json]:
        def wanted(item: Json) -> bool:
            path = query.get("path")
            in_folder = path is None or item["path"] == path
            if path is not None and query.get("recursive") == "true":
                in_folder |= item["path"].startswith(f"{path}/")
            return (
                in_folder
                and query.get("name") in {None, item["name"]}
                and query.get("state") in {None, item["state"]}
            )

        newest_first = sorted(self.files.values(), key=lambda item: -item["created_at"])
        return [item for item in newest_first if wanted(item)][: int(query["limit"])]

    # -- storage's side --------------------------------------------------------------------------

    @contextmanager
    def serve(self) -> Iterator[None]:
        server = _Server(("127.0.0.1", 0), _Storage)
        server.fake = self
        self.storage = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join(10)

    def fault(self, method: str) -> Fault | None:
        with self.lock:
            for one in self.faults:
                if one.method == method:
                    self.faults.remove(one)
                    return one
            if self.down_after is not None:
                if self.down_after == 0:
                    return Fault(method, 503, "SlowDown")
                self.down_after -= 1
        return None


def etag_of(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    fake: FakeFiles

    def handle_error(self, *_: object) -> None:
        """Clients that are cut off are what is tested."""


class _Storage(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Tests read `seen`."""

    def do_PUT(self) -> None:
        fake: FakeFiles = self.server.fake
        length = int(self.headers["Content-Length"])
        what = urlsplit(self.path).path
        fault = fake.fault("PUT")
        if fault is not None and fault.cut is not None:
            self.rfile.read(fault.cut)
            self.close_connection = True
            return
        data = self.rfile.read(length)
        if len(data) < length:  # whoever sent it has died
            self.close_connection = True
            return
        if fault is not None:
            self._fail(fault)
            return
        _, _, upload, number = what.split("/")
        with fake.lock:
            fake.seen.append(("PUT", what, length))
            fake.uploads[upload]["parts"][int(number)] = data
        self._send(200, b"", {"ETag": f'"{etag_of(data)}"'})

    def do_GET(self) -> None:
        fake: FakeFiles = self.server.fake
        parts = urlsplit(self.path)
        assert dict(parse_qsl(parts.query))["X-Amz-Signature"].startswith("secret")
        fault = fake.fault("GET")
        if fault is not None and fault.cut is None:
            self._fail(fault)
            return
        data = fake.bytes[parts.path.rpartition("/")[2]]
        etag = f'"{etag_of(data)}-1"'
        if self.headers.get("If-Match") not in {None, etag}:
            self._fail(Fault("GET", 412, "PreconditionFailed"))
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        assert found is not None
        part = data[int(found[1]) : int(found[2]) + 1]
        with fake.lock:
            fake.seen.append(("GET", found[0], len(part)))
        if fault is not None:
            self.send_response(206)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("ETag", etag)
            self.end_headers()
            self.wfile.write(part[: fault.cut])
            self.close_connection = True
            return
        self._send(206, part, {"ETag": etag})

    def _fail(self, fault: Fault) -> None:
        text = f"<Error><Code>{fault.code}</Code></Error>".encode()
        self._send(fault.status, text, {})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
