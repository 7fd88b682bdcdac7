"""`holdover storage`: what holds the bytes of files."""

import importlib

import click

from holdover.commands.options import client_of, json_option, print_json
from holdover.exits import CommandError
from holdover.render import one_line, table


@click.group(short_help="Say where the bytes of files are, and try whether that is any good.")
def storage() -> None:
    """Say where the bytes of files are, and try whether that is any good."""


@storage.command()
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Say which storage is used, whether it answers, and how much each owner has there."""
    found = client_of(ctx).get("/v1/admin/storage")
    if as_json:
        print_json(found)
        return
    if not found["configured"]:
        click.echo("No storage: [storage] endpoint or its keys are not configured.")
        return
    limit = found["quota_bytes"]
    shown = {
        "endpoint": found["endpoint"],
        "for clients": found["public_endpoint"],
        "bucket": found["bucket"],
        "answers": "yes" if found["reachable"] else "no",
        "quota": f"{limit} bytes an owner" if limit else "none",
    }
    for key, value in shown.items():
        click.echo(f"{key:<12} {one_line(value, 200)}")
    rows = [
        [
            one_line(item["owner"], 40),
            str(item["files"]),
            str(item["bytes"]),
            "-" if item["quota_bytes"] is None else str(item["quota_bytes"]),
        ]
        for item in found["owners"]
    ]
    if rows:
        click.echo()
        click.echo(table(["OWNER", "FILES", "BYTES", "QUOTA"], rows))


@storage.command(short_help="Prove against the configured storage what files lean on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Prove against the configured storage what files lean on, property by property.

    Runs where the daemon's settings and keys can be read: on a host as root, beside `holdover up` as
    yourself. It writes a few megabytes beneath doctor/ in the bucket and removes them. Says at the
    end whether files are verified there by SHA-256 or by size, or that the storage is not usable,
    and exits 1 then.
    """
    try:
        module = importlib.import_module("holdoverd.storage.doctor")
    except ImportError as error:
        raise CommandError(
            f"Only the command line is installed here ({error.name} is missing); run this where the "
            "daemon is."
        ) from error
    ctx.exit(module.main(["--json"] if as_json else []))
