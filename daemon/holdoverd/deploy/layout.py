"""A systemd host with Holdover on it: where releases, generations and their units are.

Shared by `packaging/install`, which runs from a checkout before anything is installed, and by the
deploy, which runs from a release; so the standard library alone. A release, once complete, is never
written again; a generation's number is never used again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

OPT = Path("/opt/holdover")
RELEASES = OPT / "releases"
# Not in the daemon's own folder, where root had better write no file through a name; and kept by
# uninstall, since the catalogue, which is kept too, knows instances by these numbers.
LAST_GENERATION = OPT / "last-generation"
UNITS = Path("/etc/systemd/system")
STATE = Path("/var/lib/holdover")
RUNTIME = Path("/run/holdover")
COMMAND = Path("/usr/local/bin/holdover")
# The Debian package's command is dpkg's file, and leads to a link that a deploy may move.
PACKAGED_COMMAND = Path("/usr/bin/holdover")
PACKAGED_LINK = OPT / "command"
HISTORY = OPT / "history"
LAST_DEPLOY = OPT / "last-deploy.json"

COMMAND_S = 60.0

KEPT_GENERATIONS = 10
"""Units that stay of generations gone by, for `systemctl status` and those who look into one."""


class InstallError(Exception):
    """Says what is wrong with this host or tree, and what to do about it."""


@dataclass(frozen=True)
class Release:
    """One installed release, as its own `release.json` tells."""

    name: str
    """Its folder's name: the version, or the version and `+n` for the n-th changed tree."""
    version: str
    digest: str
    """Of the tree it was made from."""
    python: str
    """The interpreter its environment stands on."""


def next_generation(last_recorded: int, unit_files: Iterable[str]) -> int:
    """The next number, never used before even if units or records were removed by hand."""
    numbers = [last_recorded]
    for unit in unit_files:
        if match := re.fullmatch(r"holdoverd@(\d{1,9})\.service", unit):
            numbers.append(int(match[1]))
    return max(numbers) + 1


def forgotten(unit_files: Iterable[str], *, newest: int, needed: Iterable[int]) -> list[str]:
    """Units of generations that nobody comes back to: a deploy writes new ones, a rollback too.

    `needed`: the generation that boots, and those that live.
    """
    kept = set(needed)
    found = []
    for unit in unit_files:
        match = re.fullmatch(r"(?:holdoverd|holdover-deploy)@(\d{1,9})\.service", unit)
        if match and int(match[1]) <= newest - KEPT_GENERATIONS and int(match[1]) not in kept:
            found.append(unit)
    return sorted(found)


def render(text: str, values: Mapping[str, str]) -> str:
    """Fill a unit template. A placeholder without a value, or one unknown, is a defect."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise InstallError(
                f"a unit template asks for @{match[1]}@, which nothing here provides"
            )
        return values[match[1]]

    return re.sub(r"@([A-Z_]+)@", value, text)


def generation_units(
    templates: Path, *, release_dir: str, generation: int, version: str
) -> dict[str, str]:
    """{unit file name: its text} of one generation: the daemon, and its deploy.

    Releases from before the deploy bring no unit for it.
    """
    values = {"RELEASE_DIR": release_dir, "GENERATION": str(generation), "VERSION": version}
    return {
        name.replace("@", f"@{generation}"): render((templates / f"{name}.in").read_text(), values)
        for name in ("holdoverd@.service", "holdover-deploy@.service")
        if (templates / f"{name}.in").exists()
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def call(*command: str | Path, what: str) -> None:
    """Run a command; when it fails, its output is the user's to read."""
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-30:])
        raise InstallError(f"{what} failed: `{' '.join(map(str, command))}` says\n{tail}")


def systemctl(*arguments: str, check: bool = True) -> str:
    """What it prints. Raises InstallError: it hangs, or (`check`) it failed."""
    try:
        done = subprocess.run(
            ["systemctl", "--no-pager", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_S,
        )
    except subprocess.TimeoutExpired as error:
        raise InstallError(
            f"`systemctl {' '.join(arguments)}` took over {COMMAND_S:.0f} s"
        ) from error
    if check and done.returncode:
        raise InstallError(f"`systemctl {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def write_if_changed(path: Path, text: str) -> bool:
    """Write a file whole or not at all; tell whether it had to be."""
    if path.is_file() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.chmod(0o644)
    temporary.replace(path)
    return True


def link(path: Path, target: str) -> bool:
    """Point a symlink at `target` in one rename; tell whether it had to be."""
    if path.is_symlink() and os.readlink(path) == target:
        return False
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)
    return True


def installed_releases() -> list[Release]:
    """Complete releases only: `release.json` is written last."""
    return [read_release(path) for path in sorted(RELEASES.glob("*/release.json"))]


def read_release(path: Path) -> Release:
    record = json.loads(path.read_text())
    return Release(**{key: str(record[key]) for key in Release.__annotations__})


def systemd_runs() -> bool:
    """As sd_booted(3) decides."""
    return Path("/run/systemd/system").is_dir()


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two installs at once would pick the same generation."""
    OPT.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (OPT / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InstallError(
                f"another install or uninstall holds {OPT}/.lock; wait until it is done"
            ) from None
        yield


def templates_of(release_dir: Path) -> Path:
    """The units that came with the release: units are versioned with their daemon."""
    (folder,) = release_dir.glob("lib/python3*/site-packages/holdoverd/units")
    return folder


def current_generation() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(os.readlink(STATE / "current"))
    return None


def release_of_generation(generation: int | None) -> str | None:
    """The release folder's name that a generation's unit runs."""
    with contextlib.suppress(OSError):
        text = (UNITS / f"holdoverd@{generation}.service").read_text()
        if match := re.search(rf"^ExecStart={RELEASES}/([^/\s]+)/bin/python ", text, re.MULTILINE):
            return match[1]
    return None


def new_generation(release_dir: Path, templates: Path, version: str) -> int:
    """Write the next generation's units, and remove those of generations long gone.

    The number is recorded first: used up even if we die. systemd is the caller's to tell.
    """
    last = int(LAST_GENERATION.read_text()) if LAST_GENERATION.is_file() else 0
    generation = next_generation(last, (path.name for path in UNITS.glob("holdoverd@*.service")))
    write_if_changed(LAST_GENERATION, f"{generation}\n")
    units = generation_units(
        templates, release_dir=str(release_dir), generation=generation, version=version
    )
    for name, text in units.items():
        write_if_changed(UNITS / name, text)
    living = active_generations() if systemd_runs() else []
    current = current_generation()
    needed = living if current is None else [*living, current]
    files = (path.name for path in UNITS.glob("holdover*@*.service"))
    for name in forgotten(files, newest=generation, needed=needed):
        (UNITS / name).unlink(missing_ok=True)
        number = name.partition("@")[2].removesuffix(".service")
        (RUNTIME / f"deploy-{number}.log").unlink(missing_ok=True)
    return generation


def is_packaged() -> bool:
    """Whether this host has Holdover from its Debian package."""
    with contextlib.suppress(OSError):
        return os.readlink(PACKAGED_COMMAND) == str(PACKAGED_LINK)
    return False


def commit(generation: int) -> None:
    """Make a generation the one that boots, and its release's command the one that is found."""
    if current_generation() != generation:
        link(STATE / "current", str(generation))
    release = release_of_generation(generation)
    command = PACKAGED_LINK if is_packaged() else COMMAND
    if release is not None and (command.is_symlink() or not command.exists()):
        command.parent.mkdir(parents=True, exist_ok=True)
        link(command, str(RELEASES / release / "bin/holdover"))
    history = committed()
    if release is not None and history[-1:] != [release]:
        write_if_changed(HISTORY, "".join(f"{name}\n" for name in [*history, release][-100:]))


def committed() -> list[str]:
    """Releases that were made permanent, the present one last; each once in a row."""
    return HISTORY.read_text().split() if HISTORY.is_file() else []


def active_generations() -> list[int]:
    listing = systemctl(
        *("list-units", "--plain", "--no-legend"),
        *("--state=active,activating,reloading,deactivating", "holdoverd@*.service"),
        check=False,
    )
    return sorted(
        int(n) for n in re.findall(r"^\s*holdoverd@(\d+)\.service", listing, re.MULTILINE)
    )
