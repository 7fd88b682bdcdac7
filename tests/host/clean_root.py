"""Clean Debian 12 roots, made once and kept in `.build/roots`.

A root is the read-only lower layer of machines and never changes; delete the folder (`make clean`)
to make it anew. What it takes from this machine are the package sources and the authorities that
it trusts: nothing else could be reached from behind this machine's network.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.host.machine import SOURCE, MachineError

ROOTS = SOURCE / ".build/roots"
# mmdebstrap takes about half a minute; a slow mirror may need many times that.
BUILD_TIMEOUT_S = 900

# What the README asks of a fresh machine before its two commands.
FRESH = ("git", "make", "python3", "ca-certificates")
# A host to install on runs systemd; a Python that makes environments is what the installer names.
HOST = (*FRESH, "python3-venv", "systemd", "systemd-sysv", "dbus", "procps", "iproute2")

AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")


def debian(packages: Sequence[str]) -> Path:
    """The root with these packages on a minimal Debian 12, from the cache or made now."""
    sources = [str(SOURCES)] if SOURCES.is_file() and "bookworm" in SOURCES.read_text() else []
    recipe = "\n".join([*packages, *(Path(name).read_text() for name in sources)])
    root = ROOTS / f"debian12-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if root.is_dir():
        return root
    ROOTS.mkdir(parents=True, exist_ok=True)
    # Made under another name: a root that is there is complete.
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=ROOTS))
    try:
        make = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
        done = subprocess.run(
            [*make, "bookworm", str(unfinished / "root"), *sources],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise MachineError(f"mmdebstrap failed:\n{done.stderr[-4000:]}")
        if AUTHORITIES.is_file():
            shutil.copyfile(AUTHORITIES, unfinished / "root" / AUTHORITIES.relative_to("/"))
        (unfinished / "root").rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


def trust_environment() -> dict[str, str]:
    """The variables by which this machine's programs find its authorities, for use inside."""
    trusted = {str(AUTHORITIES), str(AUTHORITIES.parent)}
    found = {name: value for name, value in os.environ.items() if value in trusted}
    return {"PIP_CERT": str(AUTHORITIES), **found}
