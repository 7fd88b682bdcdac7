"""`holdover status`: what runs."""

from collections import Counter
from typing import Any

import click

from holdover.client import Client
from holdover.commands.options import client_of, json_option, print_json
from holdover.exits import Exit, RefusedError
from holdover.render import moment, one_line, table

_STATES = ("starting", "working", "waiting", "idle", "dormant", "failed", "ended")


@click.command(short_help="What runs, and how many sessions in which state.")
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """What runs, and how many sessions are in which state.

    Exits 0 when the daemon can serve. With --json one object: {"door", "health", "instances",
    "sessions": {state: count}}.
    """
    client = client_of(ctx)
    health = client.get("/healthz")
    instances = _instances(client)
    counts = Counter(item["state"] for item in client.items("/v1/sessions", limit=10_000))
    if as_json:
        print_json(
            {
                "door": str(client.door),
                "health": health,
                "instances": instances,
                "sessions": {state: counts[state] for state in _STATES},
            }
        )
        return
    click.echo(
        f"{one_line(health['status'])}: generation {health['generation']}, release "
        f"{one_line(health['release'])}, reached through {client.door}"
    )
    if instances:
        click.echo(table(["GENERATION", "RELEASE", "STATE", "SESSIONS", "SINCE"], _rows(instances)))
    shown = [f"{counts[state]} {state}" for state in _STATES if counts[state]]
    click.echo("Sessions: " + (", ".join(shown) or "none"))


def _instances(client: Client) -> list[dict[str, Any]] | None:
    """The living instances; None when this token may not see them or the daemon does not tell."""
    try:
        return list(client.items("/v1/admin/instances", limit=500))
    except RefusedError as error:
        if error.exit_code in {Exit.NOT_ALLOWED, Exit.NOT_FOUND}:
            return None
        raise


def _rows(instances: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            str(item["generation"]),
            one_line(item["release"]),
            one_line(item["state"]),
            str(item["sessions"]),
            moment(item["since_at"]),
        ]
        for item in instances
    ]
