"""`holdover up`: the daemon, its agents and their keepers in the foreground."""

import os
from pathlib import Path

import click

from holdover.exits import CommandError


@click.command(short_help="Run Holdover here, in the foreground.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    help="Public port; 0 takes any. Default: 8780, or what [server] listen says.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where sessions and logs are kept (also HOLDOVER_STATE_DIR). Default: ~/.local/state/holdover.",
)
@click.option(
    "--agent-command",
    metavar="COMMAND",
    help="Run this as Claude Code, with its arguments; quoted as for a shell.",
)
@click.option(
    "--no-storage",
    is_flag=True,
    help="Run no storage: files cannot be put or shared, and 120 MB of memory stay free.",
)
@click.pass_context
def up(
    ctx: click.Context,
    port: int | None,
    state_dir: Path | None,
    agent_command: str | None,
    no_storage: bool,
) -> None:
    """Run Holdover here, in the foreground, without systemd and without root.

    Prints an address, a login and the next line to type. The daemon is started again whenever it
    dies; agents do not notice. Ctrl-C stops the daemon and the agents, the sessions are kept and
    resume with the next prompt after the next `up`. For a server use `make install`: what is not
    protected here is printed at the start.
    """
    if state_dir is not None:
        os.environ["HOLDOVER_STATE_DIR"] = str(state_dir.absolute())
    try:
        from holdoverd.supervisor import UpOptions, run_up
    except ModuleNotFoundError as error:
        raise CommandError(
            f"`holdover up` needs the daemon's libraries ({error.name} is missing): install them "
            "with `pip install 'holdover[daemon]'`."
        ) from error
    from holdoverd.errors import HoldoverError

    try:
        options = UpOptions(port=port, agent_command=agent_command, storage=not no_storage)
        code = run_up(options, os.environ)
    except HoldoverError as error:
        raise CommandError(str(error)) from error
    ctx.exit(code)
