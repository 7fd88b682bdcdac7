"""`holdover token`: who may talk to the daemon over the network."""

import click

from holdover.client import one_by_prefix, path_of
from holdover.commands.options import client_of, json_option, print_all_json, print_json
from holdover.render import moment, one_line, table

SCOPES = ["read", "sessions", "files", "jobs", "skills", "admin"]


@click.group(short_help="Make, list and revoke tokens.")
def token() -> None:
    """Make, list and revoke tokens.

    A token lets a program or another machine in, as an owner and with scopes. Only its hash is
    kept: it is shown once.
    """


@token.command(epilog="Example: holdover token new --name laptop --owner alice --account alice")
@click.option("--name", required=True, metavar="TEXT", help="What it is for, to find it again.")
@click.option("--owner", metavar="NAME", help="Whose sessions it sees. Default: default.")
@click.option(
    "--account",
    metavar="NAME",
    help="The Unix user that a new owner's agents run as (see `holdover account`). Default: the "
    "daemon's default account.",
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    default=["read", "sessions"],
    show_default=True,
    help="May be repeated; admin implies all.",
)
@click.option(
    "--expires-in-s",
    type=click.IntRange(1),
    metavar="SECONDS",
    help="How long it is good for. Default: until it is revoked.",
)
@json_option
@click.pass_context
def new(
    ctx: click.Context,
    name: str,
    owner: str | None,
    account: str | None,
    scopes: tuple[str, ...],
    expires_in_s: int | None,
    as_json: bool,
) -> None:
    """Make a token and print it, this once."""
    body: dict[str, object] = {"name": name, "scopes": list(scopes)}
    if owner is not None:
        body["owner"] = owner
    if account is not None:
        body["account"] = account
    if expires_in_s is not None:
        body["expires_in_s"] = expires_in_s
    made = client_of(ctx).post("/v1/tokens", body)
    if as_json:
        print_json(made)
        return
    click.echo(made["token"])
    click.echo(
        f"Token {made['id']} for {one_line(made['owner'])}; it is not shown again.", err=True
    )


@token.command()
@json_option
@click.pass_context
def ls(ctx: click.Context, as_json: bool) -> None:
    """List tokens, without their secrets."""
    items = list(client_of(ctx).items("/v1/tokens", limit=10_000))
    if as_json:
        print_all_json(items)
        return
    rows = [
        [
            item["id"],
            one_line(item["owner"], 24),
            ",".join(item["scopes"]),
            moment(item["expires_at"]) if item["expires_at"] else "never",
            one_line(item["name"], 60),
        ]
        for item in items
    ]
    if rows:
        click.echo(table(["ID", "OWNER", "SCOPES", "EXPIRES", "NAME"], rows))
    else:
        click.echo("No tokens. Make one: holdover token new --name laptop", err=True)


@token.command()
@click.argument("id")
@click.pass_context
def revoke(ctx: click.Context, id: str) -> None:  # noqa: A002  the word for it
    """Revoke token ID at once; streams opened with it close."""
    client = client_of(ctx)
    whole = id.startswith("t_") and len(id) == 18
    known = [] if whole else [item["id"] for item in client.items("/v1/tokens", limit=10_000)]
    client.delete(path_of("tokens", id if whole else one_by_prefix(id, known, "token", "t_")))
