"""Where things lie: the admin sockets, the saved login, the folders of `holdover up`.

`holdover up` takes its folders from here too, so that both sides agree.
"""

import os
from collections.abc import Mapping
from pathlib import Path

HOST_RUNTIME = Path("/run/holdover")
HOST_PROGRAMS = Path("/opt/holdover/agents")
HOST_LOGINS = Path("/etc/holdover/credentials")
OWN_LOGIN = "login"
"""The one login of `holdover up`; a host's are called by their accounts."""

SUPERVISOR_SOCKET = "supervisor.sock"
"""Beside the admin socket of `holdover up`: what changes the host there goes through it."""


def home(env: Mapping[str, str]) -> Path:
    """The home folder; ``HOME`` first, so that tests and services can say."""
    return Path(env.get("HOME") or os.path.expanduser("~"))


def state_dir(env: Mapping[str, str]) -> Path:
    """What `holdover up` keeps: the catalogue, the spools, its login."""
    if chosen := env.get("HOLDOVER_STATE_DIR"):
        return Path(chosen).absolute()
    return home(env) / ".local" / "state" / "holdover"


def programs_dir(env: Mapping[str, str]) -> Path:
    """Where `agent install` puts programs for `holdover up`."""
    base = env.get("XDG_DATA_HOME")
    return (Path(base) if base else home(env) / ".local" / "share") / "holdover" / "agents"


def logins_dir(env: Mapping[str, str]) -> Path:
    """Where `agent login` keeps the login for `holdover up`."""
    return state_dir(env) / "credentials"


def runtime_dir(env: Mapping[str, str]) -> Path:
    """Where `holdover up` puts its sockets.

    A state folder of one's own brings its own runtime folder, or two of them would meet in
    ``$XDG_RUNTIME_DIR``.
    """
    if chosen := env.get("HOLDOVER_RUNTIME_DIR"):
        return Path(chosen).absolute()
    if (shared := env.get("XDG_RUNTIME_DIR")) and not env.get("HOLDOVER_STATE_DIR"):
        return Path(shared) / "holdover"
    return state_dir(env) / "run"


def admin_sockets(env: Mapping[str, str]) -> list[Path]:
    """Admin sockets in the order in which they are tried.

    A folder that was named wins; else the host's own, then that of `holdover up`. The last two
    differ when one terminal has ``XDG_RUNTIME_DIR`` and the other has not.
    """
    if env.get("HOLDOVER_RUNTIME_DIR") or env.get("HOLDOVER_STATE_DIR"):
        folders = [runtime_dir(env)]
    else:
        folders = [HOST_RUNTIME, runtime_dir(env), state_dir(env) / "run"]
    return list(dict.fromkeys(folder / "admin.sock" for folder in folders))


def login_file(env: Mapping[str, str]) -> Path:
    """The login that `holdover login` saves."""
    base = env.get("XDG_CONFIG_HOME")
    return (Path(base) if base else home(env) / ".config") / "holdover" / "login.json"
