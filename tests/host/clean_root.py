"""Clean Debian roots, made once and kept in `.build/roots`.

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


RELEASES = {"bookworm": 12, "trixie": 13}


def sources_of(suite: str) -> str:
    """This machine's package sources for `suite`; "" where it has none of Debian 12's."""
    text = SOURCES.read_text() if SOURCES.is_file() else ""
    return text.replace("bookworm", suite) if "bookworm" in text else ""


def debian(packages: Sequence[str], suite: str = "bookworm") -> Path:
    """The root with these packages on a minimal Debian, from the cache or made now."""
    text = sources_of(suite)
    recipe = "\n".join([*packages, *([text] if text else [])])
    root = ROOTS / f"debian{RELEASES[suite]}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if root.is_dir():
        return root
    ROOTS.mkdir(parents=True, exist_ok=True)
    # Made under another name: a root that is there is complete.
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=ROOTS))
    try:
        sources = []
        if text:
            sources = [str(unfinished / "debian.sources")]
            (unfinished / "debian.sources").write_text(text)
        make = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
        done = subprocess.run(
            [*make, suite, str(unfinished / "root"), *sources],
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
