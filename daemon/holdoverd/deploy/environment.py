"""A release made of the environment that this program runs in: as pipx, uv or venv left it.

Its files are copied into a release's own environment, nothing is downloaded or built: what was tried
as a user is what the host runs. The standard library alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath

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

# Nothing is ever added to a release, so what adds things is no part of it; nor is what says where
# else to look (pipx shares its pip so), or what was made from the rest.
LEFT_OUT = (
    *("pip", "pip-*", "setuptools", "setuptools-*", "wheel", "wheel-*", "_distutils_hack"),
    *("uv", "uv-*", "*.pth", "__pycache__", "*.pyc"),
)
# An environment has these by itself; a release gets its own.
OWN_PROGRAMS = ("python*", "[aA]ctivate*", "pip*", "wheel", "uv", "uvx", "deactivate*")

# Of these no unit may see anything: ProtectHome=, and the modes of homes.
_HOMES = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108


@dataclass(frozen=True, slots=True)
class Part:
    """A file of the environment. `path`: ``bin/weed``, or beginning with ``site-packages/``."""

    path: str
    source: Path


# --- Rules: no file is touched below ------------------------------------------------------------


def belongs(path: PurePath) -> bool:
    """Whether a file of this path, as a `Part` has it, is part of a release."""
    top, *below = path.parts
    if top == "bin":
        return not any(fnmatch(path.name, pattern) for pattern in OWN_PROGRAMS)
    # Of the first name only: a library may have a folder `wheel` of its own somewhere inside.
    names = (below[0], *(part for part in below if part == "__pycache__"), path.suffix)
    return not any(fnmatch(name, pattern) for name in names for pattern in (*LEFT_OUT, ".pyc"))


def check_interpreter(executable: str) -> None:
    """Raises InstallError: the daemon's unit could not run it."""
    if executable.startswith(_HOMES):
        raise InstallError(
            f"this environment stands on {executable}, which the daemon's unit may not see; "
            "install Holdover upon the system's Python: `pipx install --python /usr/bin/python3 …` "
            "or `uv tool install --python /usr/bin/python3 …`, then try again"
        )


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


def find_parts() -> list[Part]:
    """The files of this environment, in order. Raises InstallError: it cannot be a release."""
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
    return [
        *_below(_site_packages(top), "site-packages"),
        *(part for part in _below(top / "bin", "bin") if not part.source.is_symlink()),
    ]


def _below(folder: Path, name: str) -> Iterator[Part]:
    for source in sorted(folder.rglob("*")):
        path = PurePath(name) / source.relative_to(folder)
        if belongs(path) and source.is_file():
            yield Part(str(path), source)


def _site_packages(top: Path) -> Path:
    """lib64, where there is one, is a link to lib."""
    (folder,) = {path.resolve() for path in top.glob("lib*/python3*/site-packages")}
    return folder


def _content(part: Part, python: str) -> bytes:
    content = part.source.read_bytes()
    return renamed_interpreter(content, python) if part.path.startswith("bin/") else content


def digest_of(parts: Iterable[Part], python: str) -> str:
    """Of names and contents; where the environment lies does not matter."""
    digest = hashlib.sha256(f"{python}\n".encode())
    for part in parts:
        content = _content(part, "python")
        digest.update(f"{part.path}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def build() -> str:
    """Make this environment a release, under the install's lock; its name."""
    # The interpreter beneath the environment: python3 may be another one after an upgrade.
    interpreter = os.path.realpath(sys.executable)
    check_interpreter(interpreter)
    parts = find_parts()
    version = holdoverd.__version__
    name, there = choose_release(version, digest_of(parts, interpreter), installed_releases())
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
    site = _site_packages(target)
    for part in parts:
        top, _, below = part.path.partition("/")
        to = (site if top == "site-packages" else target / top) / below
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(_content(part, f"{target}/bin/python"))
        to.chmod(0o755 if part.source.stat().st_mode & 0o111 else 0o644)
    call(target / "bin/python", "-I", "-m", "compileall", "-q", "-j", "0", site, what="compiling")
    record = Release(name, version, digest_of(parts, interpreter), interpreter)
    write_if_changed(target / "release.json", json.dumps(asdict(record), indent=1) + "\n")
    return name
