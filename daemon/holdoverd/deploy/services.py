"""Holdover's units on a systemd host as a whole: which there are, starting a generation, stopping.

Shared by `packaging/install` and the Debian package; the standard library alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from holdoverd.deploy import workers
from holdoverd.deploy.accounts import DEFAULT_ACCOUNT, socket_unit
from holdoverd.deploy.layout import (
    LAST_DEPLOY,
    RELEASES,
    RUNTIME,
    STATE,
    UNITS,
    InstallError,
    active_generations,
    call,
    commit,
    is_packaged,
    render,
    systemd_runs,
)
from holdoverd.deploy.outcome import Outcome

FIXED_UNITS = (
    "holdover.target",
    "holdover.slice",
    "holdover-agents.slice",
    "holdover.socket",
    "holdover-admin.socket",
    "holdover-boot.service",
    "holdover-s3.socket",
    "holdover-s3.service",
    workers.SOCKET,
)
ENABLED = (
    "holdover.target",
    "holdover.socket",
    "holdover-admin.socket",
    "holdover-boot.service",
    workers.SOCKET,
)
# Once only: where people have disabled them, another S3 is used.
STORAGE_ENABLED = ("holdover-storage.service", "holdover-s3.socket")
# A deploy writes the rest with its release: not dpkg's, which would be beneath them.
PACKAGED_UNITS = tuple(name for name in FIXED_UNITS if name != workers.SOCKET)
STORAGE_KEYS = Path("/etc/holdover/storage-keys.json")


def storage_unit(templates: Path, *, release_dir: str) -> dict[str, str]:
    """{unit file name: its text}."""
    text = (templates / "holdover-storage.service.in").read_text()
    return {"holdover-storage.service": render(text, {"RELEASE_DIR": release_dir})}


def enable(*, storage: bool) -> None:
    """Have the doors opened and the daemon started at every boot. Works in an image too.

    `storage`: this host's own too.
    """
    units = (*ENABLED, socket_unit(DEFAULT_ACCOUNT), *(STORAGE_ENABLED if storage else ()))
    call("systemctl", "--quiet", "enable", *units, what="enabling the units")


def start(generation: int) -> None:
    """Start this generation: beside whoever serves, by a deploy; else simply.

    Only a daemon that is READY becomes the current one; until then a reboot boots the old.
    """
    call(
        "systemctl",
        "start",
        f"holdover-agent-{DEFAULT_ACCOUNT}.socket",
        what="opening the agents' socket",
    )
    if any(number != generation for number in active_generations()):
        unit = f"holdover-deploy@{generation}.service"
        try:
            call("systemctl", "start", unit, what=f"the deploy (see `journalctl -u {unit}`)")
        except InstallError as error:
            outcome = Outcome.read(LAST_DEPLOY)
            if outcome is None or outcome.generation != generation or not outcome.reason:
                raise
            raise InstallError(
                f"generation {generation} was taken back, the one before serves on: "
                f"{outcome.reason} (see `journalctl -u {unit}`)"
            ) from error
        return
    unit = f"holdoverd@{generation}.service"
    try:
        # Brings both doors along, and returns when the daemon is READY.
        call("systemctl", "start", unit, what=f"starting {unit} (see `journalctl -u {unit}`)")
    except InstallError:
        call("systemctl", "stop", unit, what=f"stopping {unit}")
        # Nobody would ever answer behind them.
        call("systemctl", "stop", "holdover*.socket", what="closing the doors")
        raise
    commit(generation)


def stop_all() -> None:
    """Close the doors, then end daemons and agents, and forget what failed."""
    if not systemd_runs():
        return
    # The doors first, or a knock would start the daemon again; agents last. Patterns: to stop by
    # name what is not there is an error.
    call("systemctl", "stop", "holdover*.target", "holdover*.socket", what="closing")
    call("systemctl", "stop", "holdover*.service", "holdover*.slice", what="stopping")
    # A deploy that was taken back stays failed, for people to see, until here.
    call("systemctl", "reset-failed", "holdover*", what="forgetting failed units")


def take_down() -> None:
    """End everything and remove what an install or a deploy has made; the data stays."""
    units = sorted(path.name for path in UNITS.glob("holdover*") if path.is_file())
    stop_all()
    known = (*ENABLED, *STORAGE_ENABLED)
    wanted = {unit for unit in units if unit in known or unit.endswith(".socket")}
    if is_packaged():
        wanted.update(known)
    if wanted:
        call("systemctl", "--quiet", "disable", *sorted(wanted), what="disabling the units")
    for unit in units:
        (UNITS / unit).unlink()
    if systemd_runs():
        call("systemctl", "daemon-reload", what="telling systemd")
    for folder in (RELEASES, RUNTIME):
        shutil.rmtree(folder, ignore_errors=True)
    (STATE / "current").unlink(missing_ok=True)
