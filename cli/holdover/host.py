"""Commands that change this host: they run as root and start units, or ask `holdover up`."""

import contextlib
import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from holdover.exits import CommandError, Exit
from holdover.places import SUPERVISOR_SOCKET, admin_sockets


def up_runtime(env: Mapping[str, str]) -> Path | None:
    """The runtime folder of the `holdover up` that this terminal would talk to; else None."""
    first = next((socket for socket in admin_sockets(env) if socket.exists()), None)
    if first is None or not (first.parent / SUPERVISOR_SOCKET).exists():
        return None
    return first.parent


@contextlib.contextmanager
def on_up() -> Iterator[Any]:
    """The deploy's modules for `holdover up` (`uphost`, `outcome`), their errors as ours."""
    modules = deploy_modules("uphost", "outcome", "layout")
    try:
        yield modules
    except modules.layout.InstallError as error:
        raise CommandError(str(error)) from error


def deploy_modules(*names: str) -> SimpleNamespace:
    """`holdoverd.deploy`'s modules by name. Raises CommandError where the daemon is not installed."""
    try:
        modules = {name: importlib.import_module(f"holdoverd.deploy.{name}") for name in names}
    except ImportError as error:
        raise CommandError(
            "Only the command line is installed here, not the daemon; run this on the host itself."
        ) from error
    return SimpleNamespace(**modules)


@contextlib.contextmanager
def as_root() -> Iterator[Any]:
    """The deploy's modules (`layout`, `releases`, `accounts` and so on), their errors as ours.

    Raises CommandError where this is not root, or no systemd host with the daemon's part.
    """
    if os.geteuid() != 0:
        raise CommandError("This changes the host: run it as root (sudo).", Exit.NOT_ALLOWED)
    deploy = deploy_modules("layout", "releases", "hosts", "run", "outcome", "accounts")
    if not deploy.layout.systemd_runs() or not deploy.layout.OPT.is_dir():
        raise CommandError(
            "Holdover is not installed on a running systemd here (`holdover host install`)."
        )
    try:
        yield deploy
    except deploy.layout.InstallError as error:
        raise CommandError(str(error)) from error
