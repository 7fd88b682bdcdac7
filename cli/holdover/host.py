"""Commands that change this host: they run as root, here, and start units."""

import contextlib
import importlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from holdover.exits import CommandError, Exit


@contextlib.contextmanager
def as_root() -> Iterator[Any]:
    """The deploy's modules (`layout`, `releases`, `accounts` and so on), their errors as ours.

    Raises CommandError where this is not root, or no systemd host with the daemon's part.
    """
    if os.geteuid() != 0:
        raise CommandError("This changes the host: run it as root (sudo).", Exit.NOT_ALLOWED)
    try:
        names = ("layout", "releases", "hosts", "run", "outcome", "accounts")
        modules = {name: importlib.import_module(f"holdoverd.deploy.{name}") for name in names}
    except ImportError as error:
        raise CommandError(
            "Only the command line is installed here, not the daemon; run this on the host itself."
        ) from error
    deploy = SimpleNamespace(**modules)
    if not deploy.layout.systemd_runs() or not deploy.layout.OPT.is_dir():
        raise CommandError("Holdover is not installed on a running systemd here (`make install`).")
    try:
        yield deploy
    except deploy.layout.InstallError as error:
        raise CommandError(str(error)) from error
