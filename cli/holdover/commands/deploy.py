"""`holdover deploy`, `rollback`, `drain`, `stop`: replacing what runs on this host."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from holdover.client import Client
from holdover.commands.options import client_of
from holdover.exits import CommandError, Exit
from holdover.host import as_root, on_up, up_runtime

FOLLOW_S = 0.1


@click.command(
    short_help="Replace the running daemon by another release, gently.",
    epilog="Example: holdover release install ./holdover && holdover deploy",
)
@click.argument("release", required=False)
def deploy(release: str | None) -> None:
    """Replace the running daemon by RELEASE (default: the one installed last), gently.

    The new daemon is started beside the old, tried over connections that nobody else sees, then
    accepts new ones while the old one hands over what it serves; after [deploy] bake_s seconds of
    probes it is permanent. Whatever goes wrong before, the old one goes on, and the reason is
    printed and kept for `holdover status`. Ctrl-C leaves the deploy to itself: it is a unit.

    Under `holdover up` RELEASE is the folder of a checkout or an environment, by default the one
    that `up` runs from, with its code as it is now.
    """
    if (runtime := up_runtime(os.environ)) is not None and release is not None:
        _deploy_up(runtime, "deploy", _say, python=str(_interpreter(Path(release))))
    elif release is not None:
        with as_root() as tools:
            _deploy(tools, release, _say)
    else:
        deploy_newest(_say)


@click.command(short_help="Deploy the release before the present one again.")
def rollback() -> None:
    """Deploy the release before the present one again, as a new generation: forward, and gently."""
    if (runtime := up_runtime(os.environ)) is not None:
        _deploy_up(runtime, "rollback", _say)
        return
    with as_root() as tools:
        history = tools.layout.committed()
        earlier = [name for name in history if name != history[-1]]
        if not earlier:
            raise CommandError("No earlier release was ever permanent here.", Exit.CONFLICT)
        _deploy(tools, earlier[-1], _say)


def deploy_newest(say: Callable[[str], None]) -> None:
    """Deploy what was installed last, or what `holdover up` runs from; `say` gets its sentences."""
    if (runtime := up_runtime(os.environ)) is not None:
        _deploy_up(runtime, "deploy", say)
        return
    with as_root() as tools:
        _deploy(tools, tools.releases.newest().name, say)


def deploy_present(say: Callable[[str], None]) -> None:
    """Deploy the release that is permanent once more: its new daemon reads the configuration anew."""
    if (runtime := up_runtime(os.environ)) is not None:
        _deploy_up(runtime, "deploy", say)
        return
    with as_root() as tools:
        history = tools.layout.committed()
        if not history:
            raise CommandError(
                "No release was ever permanent here; `holdover deploy` makes one.", Exit.CONFLICT
            )
        _deploy(tools, history[-1], say)


def _say(sentence: str) -> None:
    click.echo(f"  {sentence}", err=True)


def _interpreter(folder: Path) -> Path:
    """The Python of an environment's folder, or of a checkout's own environment."""
    for python in (folder / "bin/python", folder / ".venv/bin/python"):
        if python.exists():
            return python.absolute()
    raise CommandError(
        f"{folder} has no environment: under `holdover up` a release is a folder with bin/python "
        "or .venv/bin/python (`make run` in a checkout makes that).",
        Exit.NOT_FOUND,
    )


def _deploy_up(runtime: Path, op: str, say: Callable[[str], None], **fields: str) -> None:
    with on_up() as tools:
        generation = tools.uphost.ask(runtime, op, **fields)
        host = tools.uphost.UpHost(runtime)
        click.echo(f"Deploying generation {generation}.", err=True)
        outcome = _follow(
            tools, host, generation, say, lambda: bool(tools.uphost.ask(runtime, "deploying"))
        )
    _tell(outcome, generation)


def _deploy(tools: Any, name: str, say: Callable[[str], None]) -> None:
    tools.releases.find(name)
    host = tools.hosts.SystemdHost()
    with tools.run.deploy_lock(host.lock_path(), 0):
        generation = tools.releases.prepare(name)
    host.progress_path(generation).unlink(missing_ok=True)
    unit = f"holdover-deploy@{generation}.service"
    click.echo(f"Deploying release {name} as generation {generation} ({unit}).", err=True)
    tools.layout.call("systemctl", "start", "--no-block", unit, what=f"starting {unit}")
    started = time.monotonic()
    outcome = _follow(
        tools, host, generation, say, lambda: time.monotonic() - started < 2 or _unit_runs(unit)
    )
    _tell(outcome, generation)


def _tell(outcome: Any, generation: int) -> None:
    if outcome is None:
        raise CommandError(
            f"The deploy of generation {generation} did not come to an end; see the journal, then "
            "deploy again."
        )
    if outcome.state != "committed":
        raise CommandError(f"Generation {generation} was taken back: {outcome.reason}")
    click.echo(f"Generation {generation}, release {outcome.release}, is permanent.", err=True)


def _follow(
    tools: Any,
    host: Any,
    generation: int,
    say: Callable[[str], None],
    runs: Callable[[], bool],
) -> Any:
    """Repeat what the deploy says until it is over; its outcome, None where it left none."""
    told = 0
    progress: Path = host.progress_path(generation)
    while True:
        # In this order: what has come to an end has said before how.
        still = runs()
        outcome = tools.outcome.Outcome.read(host.outcome_path())
        lines = progress.read_text().splitlines() if progress.exists() else []
        for line in lines[told:]:
            say(line)
        told = len(lines)
        if outcome is not None and outcome.generation == generation and outcome.state != "running":
            return outcome
        if not still:
            return None
        time.sleep(FOLLOW_S)


def _unit_runs(unit: str) -> bool:
    """Whether the deploy's unit is at it, or will be again."""
    done = subprocess.run(
        ["systemctl", "is-active", unit], check=False, capture_output=True, text=True
    )
    return done.stdout.strip() not in ("inactive", "failed")


@click.command(short_help="Have older daemons hand over what they still serve.")
@click.option("--migrate", is_flag=True, help="Hand everything over now, mid-turn too.")
@click.option(
    "--deadline",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Wait so long for sessions to finish, then hand over the rest.",
)
@click.pass_context
def drain(ctx: click.Context, migrate: bool, deadline: float | None) -> None:
    """Have older daemons hand over what they still serve, and wait until they are gone.

    Without options they are only waited for: each ends by itself once its last session has
    finished or rests.
    """
    drain_older(client_of(ctx), deadline_s=0 if migrate else deadline)
    click.echo("Nothing is left to drain.", err=True)


def drain_older(client: Client, deadline_s: float | None = 0) -> None:
    """Wait until the older instances are gone; after `deadline_s` have them hand over the rest."""
    started = time.monotonic()
    asked = False
    while older := _older(client):
        late = deadline_s is not None and time.monotonic() - started >= deadline_s
        if late and not asked:
            asked = True
            for one in older:
                client.post("/v1/admin/drain", {"generation": one["generation"], "migrate": True})
        time.sleep(0.2)


def _older(client: Client) -> list[dict[str, Any]]:
    found = list(client.items("/v1/admin/instances", limit=500))
    newest = max((one["generation"] for one in found if one["state"] == "serving"), default=0)
    return [one for one in found if one["generation"] < newest]


@click.command(short_help="Stop Holdover on this host; agents run on.")
@click.option("--agents", is_flag=True, help="End the agents too; their sessions can be resumed.")
def stop(agents: bool) -> None:
    """Stop the doors and the daemons of this host. Agents run on, unless --agents ends them.

    `systemctl start holdover.target` starts it again; what agents said meanwhile is not lost.
    """
    with as_root() as tools:
        call = tools.layout.call
        # The target alone would have the rest stopped, and not wait for it.
        doors = ("holdover.target", "holdover.socket", "holdover-admin.socket")
        call("systemctl", "stop", *doors, "holdoverd@*.service", what="stopping Holdover")
        if agents:
            call("systemctl", "stop", "holdover-agent-*.service", what="ending the agents")
