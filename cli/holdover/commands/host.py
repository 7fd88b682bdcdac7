"""`holdover host`: have this systemd host run the Holdover of this environment, and undo that."""

import os
import sys
from pathlib import Path

import click

from holdover.exits import CommandError, Exit
from holdover.host import deploy_modules


@click.group(short_help="Install Holdover onto this systemd host, or take it off.")
def host() -> None:
    """Have systemd run the Holdover that pipx, uv or venv has put here; take it off again.

    For distributions other than Debian, which has a package.
    """


@host.command(
    epilog="Example: pipx install --python /usr/bin/python3 'holdover[daemon]' && sudo "
    "~/.local/bin/holdover host install",
    short_help="Make this environment a release, and have systemd run it.",
)
@click.option("--no-start", is_flag=True, help="Install and enable; start nothing yet.")
def install(no_start: bool) -> None:
    """Copy the environment that this command runs in to /opt/holdover, and have systemd run it.

    Makes the users holdover, holdover-agent and holdover-storage, the group holdover-admin, the
    units, and /usr/local/bin/holdover. Nothing is downloaded. Where Holdover runs already, this is a
    deploy: nothing is refused or closed, and a release that fails is taken back. Repeat it after
    every upgrade by pipx or uv. In an image without a running systemd all is there and starts at
    boot.
    """
    modules = deploy_modules("layout", "installing", "environment")
    try:
        modules.installing.check_host(f"sudo {sys.argv[0]} host install", "`holdover up`")
        modules.installing.check_not_packaged("apt-get install ./holdover_*.deb")
        os.umask(0o022)
        with modules.layout.one_at_a_time():
            name = modules.environment.build()
            modules.installing.put_into_service(
                name,
                documents=Path(modules.layout.__file__).parents[1] / "documents",
                start_it=not no_start,
            )
    except modules.layout.InstallError as error:
        raise CommandError(str(error), _exit_code()) from error


@host.command(short_help="Stop everything and take it off this host.")
@click.option("--purge", is_flag=True, help="Remove sessions, files, configuration and users, too.")
def uninstall(purge: bool) -> None:
    """Stop daemons and agents, and remove units, releases and the command; the data stays.

    What pipx or uv has installed stays, too.
    """
    modules = deploy_modules("layout", "installing")
    try:
        modules.installing.check_host(f"sudo {sys.argv[0]} host uninstall", "`holdover up`")
        os.chdir("/")
        modules.installing.uninstall(purge=purge)
    except modules.layout.InstallError as error:
        raise CommandError(str(error), _exit_code()) from error


def _exit_code() -> Exit:
    return Exit.FAILED if os.geteuid() == 0 else Exit.NOT_ALLOWED
