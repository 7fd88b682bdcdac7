"""`holdover status`: what runs."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import click

from holdover.client import Client
from holdover.commands.options import SESSION_STATES, client_of, json_option, print_json
from holdover.exits import Exit, RefusedError
from holdover.host import up_runtime
from holdover.render import moment, one_line, table

LAST_DEPLOY = Path("/opt/holdover/last-deploy.json")


@click.command(short_help="What runs, and how many sessions in which state.")
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """What runs, and how many sessions are in which state.

    Exits 0 when the daemon can serve. With --json one object: {"door", "health", "instances",
    "deploy", "sessions": {state: count}}.
    """
    client = client_of(ctx)
    health = client.get("/healthz")
    instances = _instances(client)
    up = up_runtime(os.environ)
    deploy = last_deploy(LAST_DEPLOY if up is None else up / "last-deploy.json")
    counts = Counter(item["state"] for item in client.items("/v1/sessions", limit=10_000))
    if as_json:
        print_json(
            {
                "door": str(client.door),
                "health": health,
                "instances": instances,
                "deploy": deploy,
                "sessions": {state: counts[state] for state in SESSION_STATES},
            }
        )
        return
    click.echo(
        f"{one_line(health['status'])}: generation {health['generation']}, release "
        f"{one_line(health['release'])}, reached through {client.door}"
    )
    if instances:
        heads = ["GENERATION", "RELEASE", "STATE", "SESSIONS", "CONNECTIONS", "MEMORY", "SINCE"]
        click.echo(table(heads, _rows(instances)))
    if deploy:
        click.echo(_deploy_in_words(deploy))
    shown = [f"{counts[state]} {state}" for state in SESSION_STATES if counts[state]]
    click.echo("Sessions: " + (", ".join(shown) or "none"))


def _instances(client: Client) -> list[dict[str, Any]] | None:
    """The living instances; None when this token may not see them or the daemon does not tell."""
    try:
        return list(client.items("/v1/admin/instances", limit=500))
    except RefusedError as error:
        if error.exit_code in {Exit.NOT_ALLOWED, Exit.NOT_FOUND}:
            return None
        raise


def last_deploy(path: Path) -> dict[str, Any] | None:
    """How the last deploy of this host ended, or that it is under way; None where none was."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _deploy_in_words(deploy: dict[str, Any]) -> str:
    what = f"Last deploy: generation {deploy.get('generation')}, release {deploy.get('release')}"
    state = one_line(str(deploy.get("state")))
    reason = f": {one_line(str(deploy['reason']))}" if deploy.get("reason") else ""
    return f"{one_line(what)}, {state} {moment(int(deploy.get('at') or 0))}{reason}"


def _rows(instances: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            str(item["generation"]),
            one_line(item["release"]),
            one_line(item["state"]),
            str(item["sessions"]),
            str(item.get("connections", "")),
            f"{item.get('memory_bytes', 0) / 2**20:.0f} MiB",
            moment(item["since_at"]),
        ]
        for item in instances
    ]
