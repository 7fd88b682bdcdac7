"""`holdover storage`: what holds the bytes of files."""

import click

from holdover.commands.options import client_of, json_option, print_json
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
