"""`holdover account`: the Unix users that agents run as, on this host. As root."""

import click

from holdover.commands.options import json_option, print_json
from holdover.exits import CommandError, Exit
from holdover.host import as_root
from holdover.render import table


@click.group(short_help="Say as which Unix users agents may run here.")
def account() -> None:
    """Say as which Unix users agents may run on this host.

    An agent has the rights, keys and logins of its account and no others: accounts are what keeps
    people's agents apart. Give each person one, and bind a token's owner to it.
    """


@account.command(
    epilog="Example: holdover account add alice && holdover token new --name alice --owner alice "
    "--account alice",
    short_help="Let agents run as a Unix user.",
)
@click.argument("name")
def add(name: str) -> None:
    """Let agents run as the Unix user NAME, who is made where there is none.

    Makes a socket and a service for its agents and opens the socket; the daemon goes on running.
    May be repeated.
    """
    with as_root() as tools:
        user, created, warnings = tools.accounts.add(name)
    for warning in warnings:
        click.echo(f"Warning: {warning}.", err=True)
    made = "made with it" if created else "an existing user"
    click.echo(
        f"Agents may run as {name} now (uid {user.uid}, {made}, home {user.home}).", err=True
    )
    click.echo(
        f"A token for it: holdover token new --name {name} --owner {name} --account {name}",
        err=True,
    )


@account.command(name="ls")
@json_option
def list_all(as_json: bool) -> None:
    """List the accounts, and how many agents each has just now."""
    with as_root() as tools:
        found = tools.accounts.list_all()
    if as_json:
        for one in found:
            print_json(
                {
                    "account": one.name,
                    "uid": one.uid,
                    "home": one.home,
                    "open": one.open,
                    "agents": list(one.agents),
                }
            )
        return
    rows = [
        [
            one.name,
            "gone" if one.uid is None else str(one.uid),
            one.home or "-",
            "open" if one.open else "closed",
            str(len(one.agents)),
        ]
        for one in found
    ]
    click.echo(table(["ACCOUNT", "UID", "HOME", "SOCKET", "AGENTS"], rows))


@account.command()
@click.argument("name")
@click.option("--end-agents", is_flag=True, help="End its agents too; else they are in the way.")
def rm(name: str, end_agents: bool) -> None:
    """Let no more agents run as NAME. The user, its files and its sessions' logs stay."""
    with as_root() as tools:
        try:
            tools.accounts.remove(name, end_agents=end_agents)
        except tools.accounts.AccountInUseError as error:
            raise CommandError(str(error), Exit.CONFLICT) from error
