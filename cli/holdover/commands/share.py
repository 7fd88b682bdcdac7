"""`holdover share`, `link`, `upload-link`: letting people in who have no token."""

import os
import sys
from typing import Any

import click

from holdover.client import Client, one_by_prefix, path_of
from holdover.commands.file import find_one, put_all
from holdover.commands.options import client_of, json_option, print_all_json, print_json
from holdover.exits import CommandError, Exit
from holdover.render import moment, one_line, table

DAY_S = 86_400


def terms(function: Any) -> Any:
    """The options of a link's terms."""
    for option in (
        click.option("--password", is_flag=True, help="Ask for a password, which visitors need."),
        click.option(
            "--max-downloads",
            type=click.IntRange(1),
            metavar="N",
            help="How often it may be used. Default: as often as they like.",
        ),
        click.option(
            "--expires-in-s",
            type=click.IntRange(1),
            default=7 * DAY_S,
            metavar="SECONDS",
            show_default=True,
            help="How long it is good for.",
        ),
    ):
        function = option(function)
    return function


@click.command(
    short_help="Put a file and print a link to it.",
    epilog="Example: holdover share --expires-in-s 3600 --max-downloads 1 report.pdf",
)
@terms
@click.option("--no-qr", is_flag=True, help="Draw no QR code.")
@json_option
@click.argument("name", metavar="FILE")
@click.pass_context
def share(
    ctx: click.Context,
    expires_in_s: int,
    max_downloads: int | None,
    password: bool,
    no_qr: bool,
    as_json: bool,
    name: str,
) -> None:
    """Put FILE into storage and print a link to it, on a terminal with a QR code.

    Whoever has the link may get the file, and nothing else. A FILE that is not here is looked for in
    storage.
    """
    client = client_of(ctx)
    if name == "-" or os.path.exists(name):
        if os.path.isdir(name):
            raise CommandError(
                f"{name} is a folder; a link leads to one file. Pack it first.", Exit.USAGE
            )
        ((one, _),) = put_all(client, [name], None, name="stdin" if name == "-" else None)
    else:
        one = find_one(client, name)
    made = _link(client, one, expires_in_s, max_downloads, password)
    if as_json:
        print_json({**made, "file": one})
        return
    click.echo(made["url"])
    _say(made)
    if not no_qr and sys.stdout.isatty():
        _draw(made["url"])


def _link(
    client: Client,
    one: dict[str, Any],
    expires_in_s: int,
    max_downloads: int | None,
    password: bool,
) -> dict[str, Any]:
    body: dict[str, object] = {"expires_in_s": expires_in_s}
    if max_downloads is not None:
        body["max_downloads"] = max_downloads
    if password:
        body["password"] = click.prompt("Password", hide_input=True, err=True)
    made: dict[str, Any] = client.post(path_of("files", one["id"], "links"), body)
    return made


def _say(made: dict[str, Any]) -> None:
    click.echo(
        f"Link {made['id']}, good until {moment(made['expires_at'])}; it is not shown again. "
        f"To end it: holdover link revoke {made['id']}",
        err=True,
    )


def _draw(url: str) -> None:
    """A QR code on the terminal, where the library for it is installed."""
    try:
        import segno
    except ImportError:
        return
    segno.make(url, micro=False).terminal(out=sys.stderr, compact=True)


# --- link ---------------------------------------------------------------------------------------


@click.group(short_help="Make, list and revoke links to files.")
def link() -> None:
    """Make, list and revoke links to files.

    A link lets people without a token get one file. Only its hash is kept: it is shown once.
    """


@link.command(epilog="Example: holdover link new --max-downloads 3 reports/may.pdf")
@terms
@json_option
@click.argument("name", metavar="FILE")
@click.pass_context
def new(
    ctx: click.Context,
    expires_in_s: int,
    max_downloads: int | None,
    password: bool,
    as_json: bool,
    name: str,
) -> None:
    """Make a link to the stored FILE and print it, this once."""
    client = client_of(ctx)
    made = _link(client, find_one(client, name), expires_in_s, max_downloads, password)
    if as_json:
        print_json(made)
        return
    click.echo(made["url"])
    _say(made)


@link.command()
@json_option
@click.pass_context
def ls(ctx: click.Context, as_json: bool) -> None:
    """List links, without what opens them."""
    items = list(client_of(ctx).items("/v1/links", limit=10_000))
    if as_json:
        print_all_json(items)
        return
    rows = [
        [
            item["id"],
            item["file"],
            f"{item['downloads']}/{item['max_downloads'] or '∞'}",
            "yes" if item["password"] else "no",
            _until(item),
        ]
        for item in items
    ]
    if rows:
        click.echo(table(["ID", "FILE", "USED", "PASSWORD", "GOOD UNTIL"], rows))
    else:
        click.echo("No links. Make one: holdover share FILE", err=True)


def _until(item: dict[str, Any]) -> str:
    if item["revoked_at"]:
        return "revoked"
    return moment(item["expires_at"]) if item["expires_at"] else "revoked by hand"


@link.command()
@click.argument("id")
@click.pass_context
def revoke(ctx: click.Context, id: str) -> None:  # noqa: A002  the word for it
    """Revoke link ID at once; the file stays."""
    client = client_of(ctx)
    known = [item["id"] for item in client.items("/v1/links", limit=10_000)]
    client.delete(path_of("links", one_by_prefix(id, known, "link", "l_")))


# --- upload-link --------------------------------------------------------------------------------


@click.group(name="upload-link", short_help="Make, list and revoke links by which files are sent.")
def upload_link() -> None:
    """Make, list and revoke links by which files are sent.

    An upload link lets people without a token send files into one folder, and see nothing.
    """


@upload_link.command(
    "new", epilog="Example: holdover upload-link new --to inbox/ --max-bytes 1000000"
)
@click.option("--to", default="", metavar="FOLDER", help="Where files go. Default: no folder.")
@click.option(
    "--expires-in-s",
    type=click.IntRange(1),
    default=DAY_S,
    metavar="SECONDS",
    show_default=True,
    help="How long it is good for.",
)
@click.option(
    "--max-bytes",
    type=click.IntRange(1),
    default=1 << 30,
    metavar="BYTES",
    show_default=True,
    help="How much may come by it in all.",
)
@json_option
@click.pass_context
def new_upload_link(
    ctx: click.Context, to: str, expires_in_s: int, max_bytes: int, as_json: bool
) -> None:
    """Make an upload link and print it, this once."""
    body = {"path": to.strip("/"), "expires_in_s": expires_in_s, "max_bytes": max_bytes}
    made = client_of(ctx).post("/v1/upload-links", body)
    if as_json:
        print_json(made)
        return
    click.echo(made["url"])
    click.echo(f"Upload link {made['id']}; it is not shown again.", err=True)


@upload_link.command("ls")
@json_option
@click.pass_context
def list_upload_links(ctx: click.Context, as_json: bool) -> None:
    """List upload links, without what opens them."""
    items = list(client_of(ctx).items("/v1/upload-links", limit=10_000))
    if as_json:
        print_all_json(items)
        return
    rows = [
        [
            item["id"],
            f"{item['used_bytes']}/{item['max_bytes']}",
            _until(item),
            one_line(item["path"] or "/", 100),
        ]
        for item in items
    ]
    if rows:
        click.echo(table(["ID", "BYTES", "GOOD UNTIL", "FOLDER"], rows))
    else:
        click.echo("No upload links. Make one: holdover upload-link new", err=True)


@upload_link.command("revoke")
@click.argument("id")
@click.pass_context
def revoke_upload_link(ctx: click.Context, id: str) -> None:  # noqa: A002
    """Revoke upload link ID at once; what came by it stays."""
    client = client_of(ctx)
    known = [item["id"] for item in client.items("/v1/upload-links", limit=10_000)]
    client.delete(path_of("upload-links", one_by_prefix(id, known, "upload link", "ul_")))
