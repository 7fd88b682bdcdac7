"""A release made of the environment that this program runs in: as pipx, uv or venv left it.

The files that its distributions have on record are copied into a release's own environment, nothing
is downloaded or built: what was tried as a user is what the host runs. The standard library alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

import holdoverd
from holdoverd.deploy.installing import choose_release
from holdoverd.deploy.layout import (
    RELEASES,
    InstallError,
    Release,
    call,
    installed_releases,
    say,
    write_if_changed,
)

NOT_PARTS = frozenset({"pip", "setuptools", "wheel", "uv", "pipx"})
"""Nothing is ever added to a release, so what adds things is no part of it."""

# Of these no unit may see anything: ProtectHome=, and the modes of homes.
_HOMES = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108


@dataclass(frozen=True, slots=True)
class Part:
    """A file of the environment. `path` relative to its top: ``bin/weed``, ``lib/python3…``."""

    path: str
    source: Path


# --- Rules: no file is touched below ------------------------------------------------------------


def check_interpreter(executable: str) -> None:
    """Raises InstallError: the daemon's unit could not run it."""
    if executable.startswith(_HOMES):
        raise InstallError(
            f"this environment stands on {executable}, which the daemon's unit may not see; "
            "install Holdover upon the system's Python: `pipx install --python /usr/bin/python3 …` "
            "or `uv tool install --python /usr/bin/python3 …`, then try again"
        )


def digest_of(parts: Iterable[tuple[str, str]], python: str) -> str:
    """`parts`: (distribution and version, digest of its record). In any order."""
    lines = [python, *(f"{name} {record}" for name, record in sorted(parts))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def renamed_interpreter(script: bytes, python: str) -> bytes:
    """A script with another interpreter in its first line; what is none stays as it is."""
    if not script.startswith(b"#!"):
        return script
    first, _, rest = script.partition(b"\n")
    if b"python" not in first and b"/bin/sh" not in first:
        return script
    if first == b"#!/bin/sh":  # the way out of a path too long for a first line: 'exec' in the next
        lines = rest.split(b"\n", 2)
        if len(lines) < 3 or not lines[0].startswith(b"'''exec'"):
            return script
        rest = lines[2]
    return f"#!{python}\n".encode() + rest


# --- Steps --------------------------------------------------------------------------------------


def find_parts() -> tuple[list[Part], str]:
    """The files of this environment, and their digest. Raises InstallError: it cannot be copied."""
    top = Path(sys.prefix)
    if sys.prefix == sys.base_prefix:
        raise InstallError(
            "this `holdover` is not in an environment of its own; install it by "
            "`pipx install 'holdover[daemon]'` or `uv tool install 'holdover[daemon]'`, then try "
            "again"
        )
    if top.is_relative_to(RELEASES):
        raise InstallError(
            f"this `holdover` is release {top.name} itself; run that of pipx or uv, by its path "
            "(often ~/.local/bin/holdover), or `holdover release install` another"
        )
    if not (Path(holdoverd.__file__).parent / "units").is_dir():
        raise InstallError("this `holdover` runs from a checkout; there it is `sudo make install`")
    found: list[Part] = []
    records: list[tuple[str, str]] = []
    for distribution in distributions(path=[*_site_packages(top)]):
        name = distribution.metadata["Name"].lower()
        if name not in NOT_PARTS:
            found += _files(distribution, top)
            record = hashlib.sha256((distribution.read_text("RECORD") or "").encode()).hexdigest()
            records.append((f"{name} {distribution.version}", record))
    return found, digest_of(records, f"{sys.implementation.cache_tag} {_interpreter()}")


def _site_packages(top: Path) -> list[str]:
    return [str(folder) for folder in sorted(top.glob("lib*/python3*/site-packages"))]


def _files(distribution: Distribution, top: Path) -> list[Part]:
    files = distribution.files
    if files is None:
        raise InstallError(
            f"{distribution.metadata['Name']} has no record of its files; make the environment anew"
        )
    found = []
    for file in files:
        source = Path(os.path.normpath(str(file.locate())))
        if not source.is_relative_to(top):
            continue  # it laid something elsewhere: no part of an environment
        if source.suffix != ".pyc" and source.is_file():
            found.append(Part(str(source.relative_to(top)), source))
    return found


def _interpreter() -> str:
    """The interpreter beneath the environment."""
    return os.path.realpath(sys.executable)


def build() -> str:
    """Make this environment a release, under the install's lock; its name."""
    interpreter = _interpreter()
    check_interpreter(interpreter)
    parts, digest = find_parts()
    version = holdoverd.__version__
    name, there = choose_release(version, digest, installed_releases())
    if there:
        return name
    target = RELEASES / name
    say(f"Copying {len(parts)} files into release {name} ...")
    RELEASES.mkdir(mode=0o755, parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)  # left by one that broke off
    call(
        *(interpreter, "-I", "-m", "venv", "--without-pip", target),
        what="making the release's environment",
    )
    site = _site_packages(target)[0]  # lib64, where there is one, is a link to lib
    for part in parts:
        _copy(part, target, site)
    call(
        *(target / "bin/python", "-I", "-m", "compileall", "-q", "-j", "0", site), what="compiling"
    )
    record = Release(name, version, digest, interpreter)
    write_if_changed(target / "release.json", json.dumps(asdict(record), indent=1) + "\n")
    return name


def _copy(part: Part, target: Path, site: str) -> None:
    inside = part.path.partition("site-packages/")[2]
    to = Path(site) / inside if inside else target / part.path
    to.parent.mkdir(parents=True, exist_ok=True)
    if part.path.startswith("bin/"):
        to.write_bytes(renamed_interpreter(part.source.read_bytes(), f"{target}/bin/python"))
        to.chmod(0o755)
    else:
        shutil.copyfile(part.source, to)
        to.chmod(0o755 if os.access(part.source, os.X_OK) and _is_program(part.source) else 0o644)


def _is_program(path: Path) -> bool:
    """Not only root's right to run anything: somebody has said that it is one."""
    return bool(path.stat().st_mode & 0o111)
