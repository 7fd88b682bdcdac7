"""Behind nginx, with TLS, on another name and port: the way people elsewhere reach an instance."""

import http.client
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

from tests.files.house import open_house, sha256
from tests.files.put import Answer
from tests.needs import needs_nginx

pytestmark = [pytest.mark.slow, needs_nginx]

NAME = "holdover.test"

CONFIG = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        server_name {name};
        ssl_certificate {folder}/cert.pem;
        ssl_certificate_key {folder}/key.pem;
        # Signed is what the client sees: the Host has to arrive as it was sent.
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto https;
        client_max_body_size 0;
        proxy_request_buffering off;
        location / {{ proxy_pass http://127.0.0.1:{holdover}; }}
        location /{bucket}/ {{ proxy_pass {storage}; }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, **values: object) -> Iterator[None]:
    folder.mkdir()
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, name=NAME, **values))
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    program = shutil.which("nginx", path=path) or "nginx"
    process = subprocess.Popen([program, "-p", folder, "-c", config])
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Tls(http.client.HTTPSConnection):
    """Connects to loopback whatever the name, and checks the certificate for the name."""

    def connect(self) -> None:
        sock = socket.create_connection(("127.0.0.1", self.port), 30)
        context: ssl.SSLContext = self._context  # type: ignore[attr-defined]
        self.sock = context.wrap_socket(sock, server_hostname=self.host)


async def ask(
    trust: Path, method: str, url: str, body: bytes | None = None, **headers: str
) -> Answer:
    def blocking() -> Answer:
        parts = urlsplit(url)
        context = ssl.create_default_context(cafile=str(trust))
        connection = Tls(parts.netloc, context=context)
        try:
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            connection.request(method, target, body=body, headers=headers)
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, named, response.read())
        finally:
            connection.close()

    return await trio.to_thread.run_sync(blocking)


async def test_put_get_and_share_through_nginx(weed: str, bucket: str, tmp_path: Path) -> None:
    port, inner = free_port(), free_port()
    base = f"https://{NAME}:{port}"
    data = bytes(range(256)) * 1000
    async with open_house(
        weed,
        tmp_path,
        bucket=bucket,
        public_endpoint=base,
        context={"public_url": base, "trusted_proxies": ["127.0.0.1"]},
    ) as house:
        listeners = await trio.open_tcp_listeners(inner, host="127.0.0.1")
        await house.doors.serve_also({"public": listeners})
        token, _ = await house.doors.token("ann", ("read", "files"))
        bearer = {"Authorization": f"Bearer {token}"}
        folder = tmp_path / "nginx"
        with nginx(folder, port=port, holdover=inner, bucket=bucket, storage=weed):
            trust = folder / "cert.pem"
            with trio.fail_after(20):
                while True:
                    try:
                        assert (await ask(trust, "GET", f"{base}/healthz")).status == 200
                        break
                    except OSError:
                        await trio.sleep(0.05)

            async def call(method: str, path: str, body: object = None) -> Answer:
                raw = None if body is None else json.dumps(body).encode()
                answer = await ask(trust, method, base + path, raw, **bearer)
                assert answer.status < 400, answer
                return answer

            new = {"name": "a.bin", "size": len(data), "sha256": sha256(data)}
            made = json.loads((await call("POST", "/v1/files", new)).body)
            (part,) = made["upload"]["parts"]
            assert part["url"].startswith(f"{base}/{bucket}/f/")
            put = await ask(trust, "PUT", part["url"], data, **part["headers"])
            assert put.status == 200, put
            flipped = await ask(trust, "PUT", part["url"], data[:-1] + b"?", **part["headers"])
            assert flipped.status == 400
            named = {"parts": [{"number": 1, "etag": put.headers["etag"]}]}
            path = f"/v1/uploads/{made['upload']['id']}/complete"
            file = json.loads((await call("POST", path, named)).body)["file"]
            assert file["verified"] == "sha256"
            got = await call("GET", f"/v1/files/{file['id']}/download")
            assert (await ask(trust, "GET", got.headers["location"])).body == data
            link = json.loads((await call("POST", f"/v1/files/{file['id']}/links", {})).body)
            assert link["url"].startswith(f"{base}/l/")
            followed = await ask(trust, "GET", link["url"])
            shared = await ask(trust, "GET", followed.headers["location"])
            assert (shared.status, shared.body) == (200, data)
        rows = await house.call("GET", "/v1/audit?action=link.used")
        assert rows["items"][0]["details"]["address"] == "127.0.0.1"
