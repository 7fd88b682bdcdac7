"""Install the real Claude Code that the tests run, and print the path of its binary.

    python3 tests/claude/install.py [--older]

There are two: the newest when the tests were last gone through, and an older one that people may
still have. Versions and digests stand in package.json and package-lock.json, here and in older/.
Runs ``npm ci``; without npm, and as root, npm is installed from the distribution first. Does nothing
when the locked version is there already.
"""

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / ".build"
FOLDER = BUILD / "claude"
LOCKS = {FOLDER: HERE, BUILD / "claude-older": HERE / "older"}  # {where it is installed: its lock}
PACKAGE = "@anthropic-ai/claude-code"
MACHINES = {"x86_64": "x64", "aarch64": "arm64"}


class InstallError(Exception):
    """Claude Code cannot be installed here; the message says what is missing."""


def locked_version(folder: Path) -> str:
    lock = json.loads((LOCKS[folder] / "package-lock.json").read_text())
    return str(lock["packages"][f"node_modules/{PACKAGE}"]["version"])


def binary(folder: Path) -> Path:
    """Where the native program lies: in the platform's package, not in the one of its name."""
    machine = os.uname().machine
    if machine not in MACHINES:
        raise InstallError(f"there is no Claude Code for {machine}; run these tests elsewhere")
    libc = "" if os.confstr("CS_GNU_LIBC_VERSION") else "-musl"
    platform = f"{PACKAGE}-linux-{MACHINES[machine]}{libc}"
    return folder / "node_modules" / platform / "claude"


def installed(folder: Path) -> Path | None:
    """The binary in `folder`, if it is of the locked version."""
    program = binary(folder)
    try:
        version = json.loads((program.parent / "package.json").read_text())["version"]
    except (OSError, ValueError, KeyError):
        return None
    return program if version == locked_version(folder) and os.access(program, os.X_OK) else None


def npm() -> str:
    if found := shutil.which("npm"):
        return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise InstallError("npm is missing; install it (Debian: apt-get install npm) and try again")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (
        ["update", "-q"],
        ["install", "-q", "-y", "--no-install-recommends", "npm", "ca-certificates"],
    ):
        subprocess.run(["apt-get", *arguments], env=quiet, stdout=sys.stderr, check=True)
    return shutil.which("npm") or "npm"


def install(folder: Path = FOLDER) -> Path:
    """Install the locked version into `folder` unless it is there; returns the binary's path.

    One at a time: two workers of one run may both ask for it first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return installed(folder) or _install(folder)


def _install(folder: Path) -> Path:
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(LOCKS[folder] / name, folder / name)
    # Its install script only links the binary under another name; we run it where it lies.
    command = [npm(), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        subprocess.run(command, cwd=folder, stdout=sys.stderr, check=True, timeout=900)
    except (OSError, subprocess.SubprocessError) as error:
        raise InstallError(f"npm could not install Claude Code into {folder}: {error}") from error
    if found := installed(folder):
        return found
    raise InstallError(f"npm left no {binary(folder)}; its optional packages may be switched off")


def main() -> int:
    parser = argparse.ArgumentParser(description="Install Claude Code for tests.")
    parser.add_argument("--older", action="store_true", help="the older of the two")
    newest, older = LOCKS
    try:
        print(install(older if parser.parse_args().older else newest))
    except (InstallError, subprocess.CalledProcessError) as error:
        print(f"install.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
