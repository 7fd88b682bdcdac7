"""`holdover storage`: what holds the bytes of files."""

import importlib
import re

import click

from holdover.commands.options import client_of, json_option, print_json
from holdover.exits import CommandError
from holdover.render import one_line, size_text, table

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _quota(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> int | str | None:
    """Bytes; 0 for no limit, "default" for that of all, None where nothing was said."""
    if value is None or value == "default":
        return value
    if value == "none":
        return 0
    found = re.fullmatch(r"(\d{1,15})([KMGT]?)(iB|B)?", value, re.IGNORECASE)
    if found is None or int(found[1]) == 0:
        raise click.BadParameter(f'{value!r} is no size like 500M or 20G, "none" or "default"')
    return int(found[1]) * UNITS[found[2].upper()]


def _quota_text(quota: int | None) -> str:
    """An owner's own, in a table."""
    return "-" if quota is None else str(quota) if quota else "none"


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
            _quota_text(item["quota_bytes"]),
        ]
        for item in found["owners"]
    ]
    if rows:
        click.echo()
        click.echo(table(["OWNER", "FILES", "BYTES", "QUOTA"], rows))


@storage.command(
    epilog="Example: holdover storage quota alice 20G",
    short_help="Say how much an owner's files may hold, or change it.",
)
@click.argument("owner")
@click.argument("size", required=False, callback=_quota)
@click.pass_context
def quota(ctx: click.Context, owner: str, size: int | str | None) -> None:
    """Say how much the files of OWNER may hold in all, or let it be SIZE from now on.

    SIZE is a number of bytes, or of K, M, G or T (of 1024 each); "none" is no limit, and "default"
    what [storage] quota_bytes says for all. Files being uploaded count. What is there already stays,
    however much it is: only what would be more is refused.
    """
    client = client_of(ctx)
    if size is not None:
        given = None if size == "default" else size
        client.post("/v1/admin/storage/quota", {"owner": owner, "quota_bytes": given})
    found = client.get("/v1/admin/storage")
    row = next((one for one in found["owners"] if one["owner"] == owner), None)
    own, held = (row["quota_bytes"], row["bytes"]) if row is not None else (None, 0)
    limit = found["quota_bytes"] if own is None else own
    allowed = size_text(limit) if limit else "as much as there is room for"
    source = " ([storage] quota_bytes)" if own is None else ""
    click.echo(f"{one_line(owner, 200)} holds {size_text(held)} and may hold {allowed}{source}.")


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
