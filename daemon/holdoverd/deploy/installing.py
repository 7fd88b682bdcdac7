"""Puts a complete release onto a systemd host, and takes Holdover off again.

Shared by `packaging/install`, which builds the release from a checkout, and `holdover host install`,
which makes it of the environment that it runs in; so the standard library alone. Doing it twice
changes nothing. It owns the unit files, the system users, the documents and the `holdover` command.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
from collections.abc import Iterable
from pathlib import Path

from holdoverd.deploy import accounts, services, workers
from holdoverd.deploy.accounts import DEFAULT_ACCOUNT
from holdoverd.deploy.layout import (
    COMMAND,
    OPT,
    RELEASES,
    STATE,
    UNITS,
    InstallError,
    Release,
    call,
    commit,
    current_generation,
    is_packaged,
    link,
    new_generation,
    one_at_a_time,
    release_of_generation,
    say,
    systemd_runs,
    templates_of,
    write_if_changed,
)
from holdoverd.deploy.services import FIXED_UNITS, STORAGE_KEYS, storage_unit
from holdoverd.storage.keys import ensure_keys

SYSUSERS = Path("/etc/sysusers.d/holdover.conf")
TMPFILES = Path("/etc/tmpfiles.d/holdover.conf")
AGENT_HOME = Path("/var/lib/holdover-agent")
STORAGE_DATA = Path("/var/lib/holdover-storage")
CONFIG = Path("/etc/holdover")
DOCS = Path("/usr/local/share/doc/holdover")
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE")


def choose_release(version: str, digest: str, installed: Iterable[Release]) -> tuple[str, bool]:
    """The folder name for this tree, and whether that release is there already.

    The same version with other contents (a working tree) becomes `<version>+1`, `+2` and so on: a
    release that somebody may be running is never changed in place.
    """
    same_version = [release for release in installed if release.version == version]
    for release in same_version:
        if release.digest == digest:
            return release.name, True
    taken = {release.name for release in same_version}
    name, n = version, 0
    while name in taken:
        n += 1
        name = f"{version}+{n}"
    return name, False


def check_host(again: str, instead: str) -> None:
    """`again`: what to type as root; `instead`: what runs Holdover without systemd."""
    if os.geteuid() != 0:
        raise InstallError(f"only root can change what is installed on a host; try `{again}`")
    missing = [tool for tool in ("systemctl", "systemd-sysusers") if not shutil.which(tool)]
    if missing:
        raise InstallError(
            f"{' and '.join(missing)} not found: Holdover is installed onto systemd; "
            f"without it {instead} runs it in the foreground"
        )


def check_not_packaged(instead: str) -> None:
    if is_packaged():
        raise InstallError(f"Holdover is here as a Debian package; type `{instead}`")


def install_files(release_dir: Path, templates: Path, documents: Path) -> bool:
    """Users, folders, units, documents and the command; tells whether a unit file changed."""
    write_if_changed(SYSUSERS, (templates / "sysusers.d/holdover.conf").read_text())
    call("systemd-sysusers", SYSUSERS, what="making the system users")
    write_if_changed(TMPFILES, (templates / "tmpfiles.d/holdover.conf").read_text())
    call("systemd-tmpfiles", "--create", TMPFILES, what="making the folders")
    CONFIG.mkdir(mode=0o755, exist_ok=True)

    units = {name: (templates / name).read_text() for name in FIXED_UNITS}
    units |= storage_unit(templates, release_dir=str(release_dir))
    units |= workers.worker_units(templates, release_dir=str(release_dir))
    changed = [write_if_changed(UNITS / name, text) for name, text in sorted(units.items())]
    home = pwd.getpwnam(DEFAULT_ACCOUNT).pw_dir
    changed.append(accounts.write_units(release_dir, DEFAULT_ACCOUNT, home))
    changed.append(accounts.renew(release_dir))
    workers.want(release_dir)

    DOCS.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in DOCUMENTS:
        if (documents / name).is_file():
            write_if_changed(DOCS / name, (documents / name).read_text())
    COMMAND.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if COMMAND.exists() and not COMMAND.is_symlink():
        raise InstallError(f"{COMMAND} is not Holdover's link; move it away, then install again")
    link(COMMAND, str(release_dir / "bin/holdover"))
    return any(changed)


def put_into_service(name: str, *, documents: Path, start_it: bool) -> None:
    """Have the host run this release, under the install's lock: beside an older one, by a deploy.

    `documents`: the folder with `DOCUMENTS`. In an image, where no systemd runs, and without
    `start_it`, it is what boots.
    """
    release_dir = RELEASES / name
    templates = templates_of(release_dir)
    units_changed = install_files(release_dir, templates, documents)
    # Keys that were put there by hand are another S3's: none is run here then.
    storage_is_new = ensure_keys(STORAGE_KEYS)
    generation = current_generation()
    is_new = generation is None or release_of_generation(generation) != name
    if is_new:
        generation = new_generation(release_dir, templates, name)
    assert generation is not None
    starting = start_it and systemd_runs()
    if systemd_runs() and (is_new or units_changed):
        call("systemctl", "daemon-reload", what="telling systemd of the units")
    services.enable(storage=storage_is_new)
    if is_new and starting:
        services.start(generation)
    elif is_new:
        commit(generation)
    if starting:
        # Starts what is not running, and leaves alone what is.
        call("systemctl", "start", "holdover.target", what="starting holdover.target")
    if not is_new:
        say(f"Holdover {name} is already installed, as generation {generation}.")
    elif starting:
        say(f"Holdover {name} is installed and runs as generation {generation}.")
    elif systemd_runs():
        say(f"Holdover {name} is installed, not started: systemctl start holdover.target")
    else:
        say(f"Holdover {name} is installed; it starts when systemd boots here.")


def uninstall(*, purge: bool) -> None:
    check_not_packaged(f"apt-get {'purge' if purge else 'remove'} holdover")
    os.chdir("/")
    with one_at_a_time():
        services.take_down()
        if COMMAND.is_symlink() and os.readlink(COMMAND).startswith(f"{OPT}/"):
            COMMAND.unlink()
        for path in (SYSUSERS, TMPFILES):
            path.unlink(missing_ok=True)
        shutil.rmtree(DOCS, ignore_errors=True)
        if purge:
            for folder in (STATE, STORAGE_DATA, AGENT_HOME, CONFIG):
                shutil.rmtree(folder, ignore_errors=True)
            for user in ("holdover", "holdover-agent", "holdover-storage"):
                with contextlib.suppress(KeyError):
                    pwd.getpwnam(user)
                    call("userdel", user, what=f"removing the user {user}")
            with contextlib.suppress(KeyError):
                grp.getgrnam("holdover-admin")
                call("groupdel", "holdover-admin", what="removing the group holdover-admin")
            shutil.rmtree(OPT, ignore_errors=True)
    data = f"{STATE}, {STORAGE_DATA}, {AGENT_HOME} and {CONFIG}"
    kept = "" if purge else f" {data} are kept (--purge removes them)."
    say(f"Holdover is uninstalled.{kept}")
