"""A real Ceph of one node for tests: Debian's monitor, one OSD that keeps all in memory, a RADOS gateway.

Without a manager, without authentication between them, pools of one copy; some 16 seconds to start.
Everything listens on loopback and lies in one folder.
"""

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.files.weed import KEYS

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "ceph", "monmaptool", "radosgw-admin")
START_S = 180.0
OSD_TRIES = 5

# The older wire protocol, v1: with v2 and no authentication the gateway is refused (-13).
CONFIG = """
[global]
fsid = {fsid}
mon host = [v1:127.0.0.1:{port}]
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
auth supported = none
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
mon max pg per osd = 1000
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 1073741824
public addr = 127.0.0.1
run dir = {folder}
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
mon data = {folder}/mon
osd data = {folder}/osd
mon cluster log file = {folder}/cluster.log
"""


def missing() -> str | None:
    """The reason to skip; None where all of it is installed."""
    lacking = [one for one in PROGRAMS if shutil.which(one) is None]
    return f"needs {', '.join(lacking)}, not found on this machine" if lacking else None


@contextmanager
def running_ceph(folder: Path) -> Iterator[str]:
    """A gateway that knows `KEYS`; its S3 endpoint. `folder` has a short name, for its sockets."""
    port, s3 = _free_ports(2)
    fsid = str(uuid.uuid4())
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    config = folder / "ceph.conf"
    config.write_text(CONFIG.format(fsid=fsid, port=port, folder=folder))
    started: list[subprocess.Popen[bytes]] = []
    # Also outside of systemd, and for whoever runs the tests.
    env = {**os.environ, "CEPH_CONF": str(config)}
    with (folder / "output").open("ab") as output:

        def run(*command: str) -> None:
            done = subprocess.run(
                command, env=env, stdout=output, stderr=output, check=False, timeout=START_S
            )
            assert done.returncode == 0, (command, (folder / "output").read_text()[-2000:])

        def start(*command: str) -> subprocess.Popen[bytes]:
            started.append(subprocess.Popen(command, env=env, stdout=output, stderr=output))
            return started[-1]

        try:
            monmap = str(folder / "monmap")
            address = f"[v1:127.0.0.1:{port}]"
            run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
            run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
            start("ceph-mon", "-i", "a", "-f")
            osd = str(uuid.uuid4())
            run("ceph", "--connect-timeout", "60", "osd", "new", osd)
            run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
            run("ceph", "osd", "crush", "add", "osd.0", "1.0", "host=x", "root=default")
            # It gives up where it happens to ask before it has the monitor's map ("wrong fsid").
            for _ in range(OSD_TRIES):
                if _becomes_active(start("ceph-osd", "-i", "0", "-f"), folder / "osd.0.log"):
                    break
            run(
                *("radosgw-admin", "user", "create", "--uid=holdover", "--display-name=holdover"),
                *(f"--access-key={KEYS.access_key}", f"--secret={KEYS.secret_key}"),
            )
            gateway = start(
                *("radosgw", "-f", "-n", "client.admin", f"--rgw-data={folder / 'rgw'}"),
                *(f"--rgw-frontends=beast endpoint=127.0.0.1:{s3}", "--keyring=/dev/null"),
            )
            _wait_for(s3, gateway, folder / "output")
            yield f"http://127.0.0.1:{s3}"
        finally:
            for process in reversed(started):
                process.kill()
                process.wait()


def _becomes_active(osd: "subprocess.Popen[bytes]", log: Path) -> bool:
    """Whether the OSD is up; False: it has ended."""
    until = time.monotonic() + START_S
    while osd.poll() is None and time.monotonic() < until:
        if log.exists() and "booting -> active" in log.read_text(errors="replace"):
            return True
        time.sleep(0.2)
    return False


def _wait_for(port: int, process: "subprocess.Popen[bytes]", output: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        assert process.poll() is None, output.read_text()[-2000:]
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            contextlib.closing(
                http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            ) as connection,
        ):
            connection.request("GET", "/")
            if connection.getresponse().status < 500:
                return
        time.sleep(0.2)
    raise AssertionError(f"no answer in {START_S} s: {output.read_text()[-2000:]}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        return [
            held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for _ in range(count)
        ]
