"""`holdover release`: what is installed on this host. As root."""

import click

from holdover.commands.options import json_option, print_json
from holdover.exits import CommandError, Exit
from holdover.host import as_root
from holdover.render import table


@click.group(short_help="Install, list and remove releases on this host.")
def release() -> None:
    """Install, list and remove releases on this host.

    A release is an installed version with an environment of its own. It is never changed, so a
    running daemon never sees its code change; `holdover deploy` moves from one to another.
    """


@release.command(
    epilog="Example: holdover release install ./holdover && holdover deploy", short_help="Make one."
)
@click.argument("what", metavar="FOLDER|WHEEL|VERSION")
def install(what: str) -> None:
    """Make a release of a checkout, a wheel, or a version from the package index.

    Prints its name. Nothing is started; a release that is there already is left as it is.
    """
    with as_root() as deploy:
        click.echo(deploy.releases.install(what))


@release.command(name="ls")
@json_option
def list_all(as_json: bool) -> None:
    """List the installed releases, and who uses each."""
    with as_root() as deploy:
        found = [
            {"release": one.name, "uses": deploy.releases.uses(one.name)}
            for one in deploy.layout.installed_releases()
        ]
    if as_json:
        for item in found:
            print_json(item)
        return
    rows = [[str(one["release"]), "; ".join(map(str, one["uses"])) or "-"] for one in found]
    click.echo(table(["RELEASE", "IN USE BY"], rows))


@release.command()
@click.argument("name")
def rm(name: str) -> None:
    """Remove a release; refused while an instance, a keeper or an agents' unit uses it."""
    with as_root() as deploy:
        try:
            deploy.releases.remove(name)
        except deploy.releases.InUseError as error:
            raise CommandError(str(error), Exit.CONFLICT) from error
