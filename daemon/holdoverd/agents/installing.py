"""Agent programs that Holdover installs: side by side by version, one of each kind in use.

    FOLDER/claude/2.1.330/claude      complete or not there at all, never changed
    FOLDER/bin/claude                 a link to the one in use; agents have FOLDER/bin on their PATH

An agent that runs keeps its program, whatever the link says later. Standard library alone; npm
does the fetching, since it knows this machine's registry, proxy and authorities, and verifies what
it gets.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HOST_FOLDER = Path("/opt/holdover/agents")
KINDS = {"claude": "@anthropic-ai/claude-code"}  # {kind: its npm package}

_MACHINES = {"x86_64": "x64", "aarch64": "arm64"}
# What may be asked for: a version, or one of npm's names for versions. Never a path, a URL or a flag.
_WANTED = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,63}")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+){2}([.+-][0-9A-Za-z.+-]{1,40})?")
NPM_S = 900.0


class AgentInstallError(Exception):
    """Says what is missing or was refused, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Installed:
    """One program. `used`: the one that a bare name finds."""

    kind: str
    version: str
    program: Path
    used: bool


# --- Rules: no file is touched below ------------------------------------------------------------


def parse_wanted(text: str) -> tuple[str, str]:
    """(kind, version or npm's name for one) of ``claude`` or ``claude@VERSION``."""
    kind, _, wanted = text.partition("@")
    wanted = wanted or "latest"
    if kind not in KINDS:
        raise AgentInstallError(
            f"there is no agent {kind[:40]!r} to install; known are {', '.join(KINDS)}. Any other "
            "program can be named in [agents.NAME] of the configuration"
        )
    if not _WANTED.fullmatch(wanted):
        raise AgentInstallError(f"{wanted[:40]!r} is no version; write {kind}@2.1.330, or {kind}")
    return kind, wanted


def platform_package(package: str, machine: str, *, glibc: bool) -> str:
    """The package that holds the native program for this machine."""
    if machine not in _MACHINES:
        raise AgentInstallError(
            f"{package} brings no program for {machine}, only for {' and '.join(_MACHINES)}"
        )
    return f"{package}-linux-{_MACHINES[machine]}{'' if glibc else '-musl'}"


def newest_of(answer: object, what: str) -> str:
    """The version in what ``npm view … version --json`` said: one, or the last of a list."""
    found = answer[-1] if isinstance(answer, list) and answer else answer
    if not isinstance(found, str) or not _VERSION.fullmatch(found):
        raise AgentInstallError(f"npm knows no version of {what}; look at `npm view {what}`")
    return found


# --- Steps --------------------------------------------------------------------------------------


def installed(folder: Path) -> list[Installed]:
    """What is there, by kind, oldest version first."""
    found = []
    for kind in KINDS:
        used = None
        with contextlib.suppress(OSError):
            used = Path(os.path.normpath(folder / "bin" / os.readlink(folder / "bin" / kind)))
        programs = [
            program
            for program in folder.glob(f"{kind}/*/{kind}")
            if _VERSION.fullmatch(program.parent.name) and os.access(program, os.X_OK)
        ]
        for program in sorted(programs, key=lambda path: _order(path.parent.name)):
            found.append(Installed(kind, program.parent.name, program, program == used))
    return found


def install(folder: Path, text: str) -> Installed:
    """Have ``claude[@VERSION]`` in `folder` and in use from the next launch on.

    Raises AgentInstallError. What was in use before stays installed.
    """
    kind, wanted = parse_wanted(text)
    package = KINDS[kind]
    platform = platform_package(
        package, os.uname().machine, glibc=bool(os.confstr("CS_GNU_LIBC_VERSION"))
    )
    known = {one.version: one for one in installed(folder) if one.kind == kind}
    version = wanted if wanted in known else _resolve(f"{package}@{wanted}")
    if version not in known:
        _fetch(f"{platform}@{version}", kind, folder / kind / version)
    use(folder, kind, version)
    return next(one for one in installed(folder) if (one.kind, one.used) == (kind, True))


def use(folder: Path, kind: str, version: str) -> None:
    """Point the kind's link to an installed version, in one rename."""
    link = folder / "bin" / kind
    link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    draft = link.with_name(f".{kind}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(f"../{kind}/{version}/{kind}")
    draft.replace(link)


def _order(version: str) -> list[tuple[int, str]]:
    """2.1.9 comes before 2.1.10."""
    parts = re.findall(r"\d+|[A-Za-z]+", version)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _resolve(spec: str) -> str:
    said = _npm(["view", spec, "version", "--json"], f"asking for {spec}")
    try:
        answer = json.loads(said)
    except ValueError:
        answer = None
    return newest_of(answer, spec)


def _fetch(spec: str, kind: str, target: Path) -> None:
    """The package's program as TARGET/KIND."""
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename.
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        _npm(["pack", spec, f"--pack-destination={scratch}"], f"fetching {spec}")
        packed = list(scratch.glob("*.tgz"))
        if len(packed) != 1:
            raise AgentInstallError(f"npm left no package of {spec}; try `npm pack {spec}`")
        made = scratch / "made"
        made.mkdir(mode=0o755)
        with tarfile.open(packed[0]) as archive:
            try:
                member = archive.getmember(f"package/{kind}")
                content = archive.extractfile(member) if member.isreg() else None
            except KeyError:
                content = None
            if content is None:
                raise AgentInstallError(
                    f"{spec} holds no program `{kind}`: this Holdover is too old for it"
                )
            with content, (made / kind).open("wb") as program:
                shutil.copyfileobj(content, program, 1 << 20)
                os.fsync(program.fileno())
        (made / kind).chmod(0o755)
        if target.exists():  # a folder without a program, left by hand
            shutil.rmtree(target)
        made.rename(target)
    except (OSError, tarfile.TarError) as error:
        raise AgentInstallError(f"{spec} could not be unpacked: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _npm(arguments: Sequence[str], what: str) -> str:
    npm = shutil.which("npm")
    if npm is None:
        raise AgentInstallError("npm is missing; install it (Debian: apt-get install npm)")
    with tempfile.TemporaryDirectory(prefix="holdover-npm-") as cache:
        quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier")
        try:
            done = subprocess.run(
                [npm, *arguments, f"--cache={cache}", *quiet],
                cwd=cache,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=NPM_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise AgentInstallError(f"{what} failed: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("npm")]
        said = "; ".join(lines[:3]) or done.stderr.strip()[-300:]
        raise AgentInstallError(f"{what} failed: {said or f'npm exited {done.returncode}'}")
    return done.stdout
