"""The Debian package's part on a host: what its maintainer scripts have done.

    python -I -B -m holdoverd.deploy.package configure|remove

runs from the package's own copy of the release, `PAYLOAD`, which dpkg replaces at an upgrade and
nothing else runs from. `configure` lands it as a release beside the others, by hard links, and has
it take over by a deploy; so dpkg never touches what a daemon or a keeper runs from. Whatever becomes
of the deploy, the package is configured: a release that was taken back is `holdover status`'s to
explain, not dpkg's to trip over.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

from holdoverd.deploy import accounts, layout, releases, services, workers
from holdoverd.deploy.layout import InstallError, Release, call, say
from holdoverd.settings import SETTINGS
from holdoverd.storage.keys import ensure_keys

PAYLOAD = Path("/usr/lib/holdover/release")
POLICY = Path("/usr/sbin/policy-rc.d")
FORBIDDEN = 101
"""invoke-rc.d's word for a start that the administrator does not want."""

KEPT = 2
"""Packaged releases that stay: the permanent one, and the one to roll back to."""

Way = Literal["nothing", "boot", "start"]


# --- Rules: no file is touched below ------------------------------------------------------------


def choose(*, landed: str, current: str | None, may_start: bool, target_active: bool) -> Way:
    """What a configured package does with its release.

    ``boot``: it becomes the one that the next start brings up; ``start``: now, beside whoever
    serves, by a deploy. Somebody who stopped Holdover does not want it started by an upgrade.
    """
    if current == landed:
        return "nothing"
    if not may_start or (current is not None and not target_active):
        return "boot"
    return "start"


def to_prune(installed: list[str], committed: list[str], landed: str) -> list[str]:
    """Packaged releases that are not needed for a rollback any more."""
    recent: list[str] = []
    for name in reversed(committed):
        if name not in recent:
            recent.append(name)
    kept = {landed, *recent[:KEPT]}
    return [name for name in installed if "+deb" in name and name not in kept]


def next_lines(release: str, address: str) -> str:
    """What a first install says."""
    return f"""
Holdover {release.partition("+")[0]} serves on http://{address}. Three lines to go on with:
    holdover session new --agent demo --attach hello    talk to the built-in demo
    usermod -aG holdover-admin ALICE                     let ALICE use `holdover` without sudo
    holdover token new --name laptop                     a token, for `holdover login` elsewhere
`man holdover` has the rest; /etc/holdover/holdover.toml every setting.
"""


# --- Steps --------------------------------------------------------------------------------------


def may_start() -> bool:
    """Whether services may be started here: a systemd runs, and policy-rc.d does not object."""
    if not layout.systemd_runs():
        return False
    if not os.access(POLICY, os.X_OK):
        return True
    done = subprocess.run([POLICY, "holdover", "start"], check=False, capture_output=True)
    return done.returncode != FORBIDDEN


def land(payload: Path) -> Release:
    """Make the package's copy a release in its own folder; complete or not at all.

    Raises InstallError where a release of that name has other contents: it may be running.
    """
    record = layout.read_release(payload / "release.json")
    target = layout.RELEASES / record.name
    there = {release.name: release for release in layout.installed_releases()}.get(record.name)
    if there is not None:
        if there.digest != record.digest:
            raise InstallError(
                f"{target} is another build of {record.version}; releases are never changed. "
                "Deploy another release and remove that one (`holdover release rm "
                f"{record.name}`), or build the package with a higher version"
            )
        return there
    layout.RELEASES.mkdir(mode=0o755, parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
        payload,
        target,
        symlinks=True,
        copy_function=_link_or_copy,
        ignore=lambda folder, _: ["release.json"] if Path(folder) == payload else [],
    )
    # Written anew: when it was written tells which release was installed last.
    layout.write_if_changed(target / "release.json", (payload / "release.json").read_text())
    return record


def _link_or_copy(source: str, target: str) -> None:
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    try:
        os.link(source, target)
    except OSError:  # /opt is another filesystem
        shutil.copy2(source, target)


def take_over_from_checkout() -> None:
    """What `make install` wrote would hide the package's own files; its releases stay."""
    for name in services.PACKAGED_UNITS:
        (layout.UNITS / name).unlink(missing_ok=True)
    for path in ("/etc/sysusers.d/holdover.conf", "/etc/tmpfiles.d/holdover.conf"):
        Path(path).unlink(missing_ok=True)
    command = layout.COMMAND
    if command.is_symlink() and os.readlink(command).startswith(f"{layout.OPT}/"):
        command.unlink()


def configure() -> None:
    with layout.one_at_a_time():
        take_over_from_checkout()
        record = land(PAYLOAD)
        release_dir = layout.RELEASES / record.name
        current = layout.current_generation()
        way = choose(
            landed=record.name,
            current=layout.release_of_generation(current),
            may_start=may_start(),
            target_active=_is_active("holdover.target"),
        )
        if current is None:
            user = accounts.look_up(accounts.DEFAULT_ACCOUNT)
            assert user is not None, "systemd-sysusers has made it just before"
            accounts.write_units(release_dir, accounts.DEFAULT_ACCOUNT, user.home)
            workers.renew(release_dir)
        # Keys that were put there by hand are another S3's: none is run here then.
        storage_is_new = ensure_keys(services.STORAGE_KEYS)
        if storage_is_new:
            _write_storage_unit(release_dir)
        generation = current
        if way != "nothing":
            templates = layout.templates_of(release_dir)
            generation = layout.new_generation(release_dir, templates, record.name)
        if layout.systemd_runs():
            # Sockets and services that run go on as they are: a reload restarts nothing.
            call("systemctl", "daemon-reload", what="telling systemd of the units")
        services.enable(storage=storage_is_new)
    assert generation is not None
    match way:
        case "boot":
            accounts.renew(release_dir)
            workers.renew(release_dir)
            workers.want(release_dir)
            layout.commit(generation)
            say(
                f"Holdover {record.name} starts with `systemctl start holdover.target`, or at boot."
            )
        case "start":
            _start(generation, first=current is None, record=record)
        case "nothing":
            pass
    # Storage is not restarted; its next start is of the release that has become permanent.
    permanent = layout.release_of_generation(layout.current_generation())
    if permanent == record.name and _write_storage_unit(release_dir) and layout.systemd_runs():
        call("systemctl", "daemon-reload", what="telling systemd of storage's unit")
    _prune(record.name)


def _write_storage_unit(release_dir: Path) -> bool:
    units = services.storage_unit(layout.templates_of(release_dir), release_dir=str(release_dir))
    changed = [layout.write_if_changed(layout.UNITS / name, text) for name, text in units.items()]
    return any(changed)


def _start(generation: int, *, first: bool, record: Release) -> None:
    """Without the install's lock: a deploy makes itself permanent."""
    try:
        services.start(generation)
        call("systemctl", "start", "holdover.target", what="starting holdover.target")
    except InstallError as error:
        say(f"holdover: {error}\nThe package is installed; `holdover status` shows what serves.")
        return
    if first:
        listen = next(
            row.default for row in SETTINGS if (row.section, row.key) == ("server", "listen")
        )
        say(next_lines(record.name, str(listen)))
    else:
        say(f"Holdover {record.name} serves as generation {generation}.")


def _prune(landed: str) -> None:
    installed = [release.name for release in layout.installed_releases()]
    for name in to_prune(installed, layout.committed(), landed):
        with contextlib.suppress(releases.InUseError):  # a keeper of it may live for days
            releases.remove(name)


def _is_active(unit: str) -> bool:
    # In an image, where nobody answers, it would complain.
    command = ["systemctl", "is-active", "--quiet", unit]
    done = subprocess.run(command, check=False, capture_output=True)
    return done.returncode == 0


def remove() -> None:
    with layout.one_at_a_time():
        services.take_down()
        layout.PACKAGED_LINK.unlink(missing_ok=True)
    say(
        "Daemons and agents are ended. The data stays in /etc/holdover and /var/lib/holdover*, until "
        "`apt purge holdover`."
    )


def main(arguments: list[str]) -> int:
    try:
        match arguments:
            case ["configure"]:
                configure()
            case ["remove"]:
                remove()
            case _:
                say("usage: python -m holdoverd.deploy.package configure|remove")
                return 2
    except (InstallError, OSError) as error:
        say(f"holdover: {error}")
        return 1
    return 0


if __name__ == "__main__":
    os.umask(0o022)
    os.chdir("/")
    sys.exit(main(sys.argv[1:]))
