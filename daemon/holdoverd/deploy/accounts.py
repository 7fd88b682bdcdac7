"""Accounts of a systemd host: Unix users, each with a socket and a service for its agents.

An account is there when its socket's unit file is: nothing else remembers it, so that nothing can
disagree. The units come from the release that boots and are written anew when another is made
permanent. Shared by `packaging/install`, hence the standard library alone.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from holdoverd.callers import ACCOUNT_NAME
from holdoverd.deploy import layout
from holdoverd.deploy.layout import InstallError, call, render, systemctl, write_if_changed

DEFAULT_ACCOUNT = "holdover-agent"
"""Made by the install itself; agents of owners that are bound to no other account run as it."""

DAEMON_USER = "holdover"
LOGINS = Path("/etc/holdover/credentials")
"""Root's alone; a file for each account that `holdover agent login` was told one of."""

ADMIN_GROUP = "holdover-admin"

# It stands in a unit file: no blank, no quote, no `%`, which systemd would read as something else.
_HOME = re.compile(r"/[A-Za-z0-9/._+@-]*")


@dataclass(frozen=True, slots=True)
class User:
    """What decides whether agents may run as a user. `mode` of its home; None: it has none."""

    name: str
    uid: int
    home: str
    mode: int | None
    groups: frozenset[str]


@dataclass(frozen=True, slots=True)
class Account:
    """One account as `holdover account ls` shows it. `uid` None: its user is gone.

    `agents`: its agents' units that are there just now.
    """

    name: str
    uid: int | None
    home: str
    open: bool
    agents: tuple[str, ...]


# --- Rules: no file is touched below ------------------------------------------------------------


def agent_units(templates: Path, *, release_dir: str, account: str, home: str) -> dict[str, str]:
    """{unit file name: its text} of the account's sockets and services: for agents, for processors."""
    values = {"RELEASE_DIR": release_dir, "ACCOUNT": account, "HOME": home}
    units = {}
    for template in sorted(templates.glob("holdover-*-ACCOUNT*.in")):
        name = template.name.removesuffix(".in").replace("ACCOUNT", account)
        units[name] = render(template.read_text(), values)
    return units


def accounts_of(unit_files: Iterable[str]) -> list[str]:
    """The accounts whose sockets are among these names of unit files."""
    found = (re.fullmatch(r"holdover-agent-(.+)\.socket", name) for name in unit_files)
    return sorted(match[1] for match in found if match and ACCOUNT_NAME.fullmatch(match[1]))


def socket_unit(account: str) -> str:
    return f"holdover-agent-{account}.socket"


def check_name(name: str) -> None:
    """Raises InstallError for what cannot be a user whose agents we run, whoever it may be."""
    if not ACCOUNT_NAME.fullmatch(name):
        raise InstallError(
            f"{name[:40]!r} is no user's name: use 1 to 32 letters, digits and _ . -, beginning "
            "with a letter or _"
        )
    if name == DAEMON_USER:
        raise InstallError(
            f"{name} is the daemon's own user: its agents could read everybody's sessions; "
            "choose another name"
        )


def check_user(user: User) -> list[str]:
    """What people should know of the user before agents run as it. Raises InstallError."""
    if user.uid == 0:
        raise InstallError(f"{user.name} is root: agents run as users that may not do everything")
    if user.mode is None:
        raise InstallError(
            f"{user.name} has no home folder ({user.home}), and agents begin there; make it, then "
            "try again"
        )
    if not _HOME.fullmatch(user.home):
        raise InstallError(
            f"{user.name}'s home {user.home!r} has characters that cannot stand in a unit file; "
            "move it to a plain path (`usermod --move-home --home`), then try again"
        )
    warnings = []
    if user.mode & 0o077:
        warnings.append(
            f"others may look into {user.home} (mode {user.mode:04o}), agents of other accounts "
            f"too; `chmod 700 {user.home}` closes it"
        )
    if ADMIN_GROUP in user.groups:
        warnings.append(
            f"{user.name} is in the group {ADMIN_GROUP}: its agents may open the admin door and do "
            "everything there; take it out of the group unless that is meant"
        )
    return warnings


# --- Steps --------------------------------------------------------------------------------------


def installed() -> list[str]:
    """The names of this host's accounts, the default one too."""
    return accounts_of(path.name for path in layout.UNITS.glob("holdover-agent-*.socket"))


def look_up(name: str) -> User | None:
    """The Unix user of that name; None when there is none."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    mode = None
    with contextlib.suppress(OSError):
        found = os.stat(entry.pw_dir)
        mode = stat.S_IMODE(found.st_mode) if stat.S_ISDIR(found.st_mode) else None
    groups = set()
    for gid in os.getgrouplist(entry.pw_name, entry.pw_gid):
        with contextlib.suppress(KeyError):
            groups.add(grp.getgrgid(gid).gr_name)
    return User(entry.pw_name, entry.pw_uid, entry.pw_dir, mode, frozenset(groups))


def write_units(release_dir: Path, name: str, home: str) -> bool:
    """The account's units, as `release_dir` brings them; tells whether a file had to change."""
    templates = layout.templates_of(release_dir)
    units = agent_units(templates, release_dir=str(release_dir), account=name, home=home)
    changed = [write_if_changed(layout.UNITS / file, text) for file, text in units.items()]
    return any(changed)


def renew(release_dir: Path) -> bool:
    """Bring every account's units to this release; tells whether any changed (then reload).

    Units of an account whose user is gone stay as they are: they start nothing any more.
    """
    changed = False
    for name in installed():
        user = look_up(name)
        if user is not None:
            changed |= write_units(release_dir, name, user.home)
    return changed


def add(name: str) -> tuple[User, bool, list[str]]:
    """Let agents run as `name`: (its user, whether that was made now, warnings). May be repeated.

    Raises InstallError. The daemon needs no restart: it finds the socket when it next launches.
    """
    check_name(name)
    release = layout.release_of_generation(layout.current_generation())
    if release is None:
        raise InstallError(
            "no release is permanent here yet; install and start Holdover first (`make install`)"
        )
    with layout.one_at_a_time():
        user = look_up(name)
        created = user is None
        if user is None:
            call(
                *("useradd", "--create-home", "--user-group", "--shell", "/bin/bash"),
                *("--key", "HOME_MODE=0700", "--comment", "Holdover account", name),
                what=f"making the user {name}",
            )
            user = look_up(name)
            if user is None:
                raise InstallError(f"the user {name} was made and cannot be found; see `id {name}`")
        warnings = check_user(user)
        changed = write_units(layout.RELEASES / release, name, user.home)
        if changed:
            call("systemctl", "daemon-reload", what="telling systemd of the units")
        unit = socket_unit(name)
        call("systemctl", "--quiet", "enable", unit, what=f"enabling {unit}")
        call("systemctl", "start", unit, what=f"opening {unit}")
    return user, created, warnings


def list_all() -> list[Account]:
    accounts = []
    for name in installed():
        user = look_up(name)
        accounts.append(
            Account(
                name,
                user.uid if user else None,
                user.home if user else "",
                _is_active(socket_unit(name)),
                running_agents(name),
            )
        )
    return accounts


def remove(name: str, *, end_agents: bool) -> None:
    """Take the account's socket, service and login away; its user, home and sessions stay.

    Raises InstallError when it is not there, is the default one, or has agents that are not to end.
    """
    check_name(name)
    if name == DEFAULT_ACCOUNT:
        raise InstallError(
            f"{name} is the default account, which every install makes; it cannot be removed"
        )
    with layout.one_at_a_time():
        if name not in installed():
            raise InstallError(
                f"there is no account {name}; `holdover account ls` lists {', '.join(installed())}"
            )
        running = running_agents(name)
        if running and not end_agents:
            raise AccountInUseError(
                f"{len(running)} agents of {name} run; end their sessions, or remove it with "
                "--end-agents"
            )
        unit = socket_unit(name)
        # The socket first, or a launch could come between. --now would wait for neither.
        call("systemctl", "stop", unit, what=f"closing {unit}")
        call("systemctl", "--quiet", "disable", unit, what=f"disabling {unit}")
        if running:
            call("systemctl", "stop", f"holdover-agent-{name}@*.service", what="ending the agents")
        # Its jobs cannot run any more; their workers say so.
        call("systemctl", "stop", f"holdover-processor-{name}@*.service", what="ending its jobs")
        for kind in ("agent", "processor"):
            for ending in (".socket", "@.service"):
                file = layout.UNITS / f"holdover-{kind}-{name}{ending}"
                file.unlink(missing_ok=True)
        (LOGINS / name).unlink(missing_ok=True)
        call("systemctl", "daemon-reload", what="telling systemd of the units")


class AccountInUseError(InstallError):
    """Agents run as the account."""


def running_agents(name: str) -> tuple[str, ...]:
    """The units of the account's agents that are there just now."""
    listing = systemctl(
        *("list-units", "--plain", "--no-legend", f"holdover-agent-{name}@*.service"), check=False
    )
    return tuple(line.split()[0] for line in listing.splitlines() if line.strip())


def _is_active(unit: str) -> bool:
    return systemctl("is-active", unit, check=False).strip() == "active"
