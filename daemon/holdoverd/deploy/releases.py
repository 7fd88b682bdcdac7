"""Releases on a systemd host: made once, complete or not at all, and never written again."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from holdoverd.deploy import layout
from holdoverd.deploy.layout import InstallError, Release

LOCK = "holdoverd/requirements.lock"
"""In a wheel: what it needs, with hashes; the same file that a checkout is installed from."""

_VERSION = re.compile(r"[0-9][0-9A-Za-z.]*(\+[0-9]+)?\Z")


class InUseError(InstallError):
    """Somebody runs from the release, or would at the next boot or launch."""


def find(name: str) -> Release:
    """Raises InstallError where it is not installed."""
    known = {release.name: release for release in layout.installed_releases()}
    if name not in known:
        raise InstallError(
            f"Release {name} is not installed; installed are {', '.join(sorted(known)) or 'none'}. "
            "`holdover release install` takes a checkout, a wheel or a version."
        )
    return known[name]


def newest() -> Release:
    """The release that was installed last. Raises InstallError where there is none."""
    releases = layout.installed_releases()
    if not releases:
        raise InstallError("No release is installed; `holdover release install` makes one.")
    return max(releases, key=lambda r: (layout.RELEASES / r.name / "release.json").stat().st_mtime)


def install(what: str) -> str:
    """Make a release of a checkout's folder, a wheel, or a version from the package index."""
    path = Path(what)
    if path.is_dir():
        script = path / "packaging/hostinstall.py"
        if not script.is_file():
            raise InstallError(f"{path} is no checkout of Holdover: {script} is missing.")
        done = subprocess.run(
            [sys.executable, "-I", str(script), "build"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise InstallError(f"{path} could not be made a release; see above.")
        return done.stdout.strip()
    if path.suffix == ".whl" and path.is_file():
        version = path.name.split("-")[1]
        return _from_wheel(path.absolute(), version)
    if _VERSION.match(what):
        with tempfile.TemporaryDirectory(prefix="holdover-release-") as scratch:
            return _from_wheel(_downloaded(what, Path(scratch)), what)
    raise InstallError(f"{what} is no folder, no wheel and no version.")


def _downloaded(version: str, folder: Path) -> Path:
    """The wheel of a version of ours, from the package index."""
    tools = _tools(folder)
    layout.call(
        *(tools / "bin/python", "-I", "-m", "pip", "--quiet", "--disable-pip-version-check"),
        *("download", "--no-deps", "--only-binary=:all:", "--dest", folder, f"holdover=={version}"),
        what=f"downloading holdover {version}",
    )
    (wheel,) = folder.glob("holdover-*.whl")
    return wheel


def _tools(folder: Path) -> Path:
    """An environment that has pip; the release's own has none, so that nobody changes it."""
    tools = folder / "tools"
    layout.call(sys.executable, "-I", "-m", "venv", tools, what="making an environment")
    return tools


def _from_wheel(wheel: Path, version: str) -> str:
    """Make a release of a wheel, and of exactly what its own lock file names, by its hashes."""
    digest = sha256(wheel.read_bytes()).hexdigest()
    with layout.one_at_a_time():
        for release in layout.installed_releases():
            if release.digest == digest:
                return release.name
        lock = _lock_of(wheel)
        name, n = version, 0
        while (layout.RELEASES / name / "release.json").exists():
            n += 1
            name = f"{version}+{n}"
        target = layout.RELEASES / name
        shutil.rmtree(target, ignore_errors=True)
        layout.RELEASES.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="holdover-release-") as scratch:
            tools = _tools(Path(scratch))
            named = Path(scratch) / "requirements.lock"
            named.write_bytes(lock)
            layout.call(
                *(sys.executable, "-I", "-m", "venv", "--without-pip", target),
                what="making the release's environment",
            )
            pip = (
                *(tools / "bin/python", "-I", "-m", "pip", "--quiet"),
                *("--disable-pip-version-check", "--python", target / "bin/python", "install"),
            )
            layout.call(
                *(*pip, "--only-binary=:all:", "--require-hashes", "-r", named),
                what=f"installing what {wheel.name} needs",
            )
            layout.call(*pip, "--no-deps", wheel, what=f"installing {wheel.name}")
        record = Release(name=name, version=version, digest=digest, python=sys.executable)
        layout.write_if_changed(
            target / "release.json", json.dumps(asdict(record), indent=1) + "\n"
        )
    return name


def _lock_of(wheel: Path) -> bytes:
    """Raises InstallError where it carries none."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(LOCK)
    except KeyError:
        raise InstallError(
            f"{wheel.name} does not carry {LOCK}, so nobody could say what it was tested with. "
            "Install its checkout instead."
        ) from None
    except (OSError, zipfile.BadZipFile) as error:
        raise InstallError(f"{wheel} is no wheel: {error}.") from error


def uses(name: str) -> list[str]:
    """Who uses a release, which cannot be removed then: instances, what boots, keepers, the units
    of agents and of storage."""
    folder = layout.RELEASES / name
    found = [
        f"generation {generation}, which lives"
        for generation in layout.active_generations()
        if layout.release_of_generation(generation) == name
    ]
    current = layout.current_generation()
    if layout.release_of_generation(current) == name:
        found.append(f"generation {current}, which boots")
    found += [f"process {pid}" for pid in _processes(folder)]
    for unit in sorted(layout.UNITS.glob("holdover-agent-*@.service")):
        if f"{folder}/" in unit.read_text():
            found.append(f"{unit.name}, which starts agents with it")
    storage = layout.UNITS / "holdover-storage.service"
    if storage.is_file() and f"{folder}/" in storage.read_text():
        found.append(f"{storage.name}, which runs storage from it")
    return found


def remove(name: str) -> None:
    """Raises InstallError where the release is in use, or not there."""
    with layout.one_at_a_time():
        find(name)
        in_use = uses(name)
        if in_use:
            raise InUseError(
                f"Release {name} is in use by {'; '.join(in_use[:5])}. It can go "
                "once these are gone."
            )
        units = [
            unit
            for unit in layout.UNITS.glob("holdover*@*.service")
            if f"{layout.RELEASES}/{name}/" in unit.read_text()
        ]
        for unit in units:
            unit.unlink()
        # Incomplete from the first moment on: an install that finds it makes it anew.
        (layout.RELEASES / name / "release.json").unlink()
        shutil.rmtree(layout.RELEASES / name)
    if units and layout.systemd_runs():
        layout.call("systemctl", "daemon-reload", what="telling systemd of the units")


def _processes(folder: Path) -> list[int]:
    """Processes that were started from a release: keepers, above all, which outlive deploys."""
    mark = os.fsencode(f"{folder}/bin/")
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if Path(entry.path, "cmdline").read_bytes().startswith(mark):
                    found.append(int(entry.name))
    return sorted(found)


def prepare(name: str) -> int:
    """Write the units of a new generation of a release; its number."""
    folder = layout.RELEASES / find(name).name
    with layout.one_at_a_time():
        generation = layout.new_generation(folder, layout.templates_of(folder), name)
    layout.call("systemctl", "daemon-reload", what="telling systemd of the units")
    if not (layout.UNITS / f"holdover-deploy@{generation}.service").exists():
        raise InstallError(
            f"Release {name} is from before deploys: it brings no unit for one. Go back to it by "
            f"`systemctl stop holdover.target`, a `current` of {generation}, and a start."
        )
    return generation
