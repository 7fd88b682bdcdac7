"""The entry of `holdover`: the table of its commands, and how errors become exit codes.

Importing this module imports click and nothing else that is slow: `holdover --help` must answer in
about a tenth of a second, so a command's module is loaded when the command is called.
"""

import importlib
import os
import sys
from typing import Any

import click

from holdover.exits import CommandError, Exit

COMMANDS = {  # {name: (module, one line of help)}
    "up": ("holdover.commands.up", "Run Holdover here, in the foreground."),
    "login": ("holdover.commands.login", "Save the address of a server and a token for it."),
    "logout": ("holdover.commands.login", "Forget the saved address and token."),
    "session": ("holdover.commands.session", "Talk to agent sessions, list and end them."),
    "agent": ("holdover.commands.agent", "Install agents' programs, list them, log them in."),
    "file": ("holdover.commands.file", "Put files into storage, get, list and remove them."),
    "share": ("holdover.commands.share", "Put a file and print a link to it."),
    "link": ("holdover.commands.share", "Make, list and revoke links to files."),
    "upload-link": (
        "holdover.commands.share",
        "Make, list and revoke links by which files are sent.",
    ),
    "storage": (
        "holdover.commands.storage",
        "Say where the bytes of files are, and try whether that is any good.",
    ),
    "job": ("holdover.commands.job", "Have files processed by programs beside the daemon."),
    "skill": ("holdover.commands.skill", "See, add, version and undo what agents know."),
    "marketplace": ("holdover.commands.skill", "Say where plugins come from."),
    "token": ("holdover.commands.token", "Make, list and revoke tokens."),
    "account": ("holdover.commands.account", "Say as which Unix users agents may run here."),
    "status": ("holdover.commands.status", "What runs, and how many sessions in which state."),
    "release": ("holdover.commands.release", "Install, list and remove releases on this host."),
    "deploy": (
        "holdover.commands.deploy",
        "Replace the running daemon by another release, gently.",
    ),
    "rollback": ("holdover.commands.deploy", "Deploy the release before the present one again."),
    "drain": ("holdover.commands.deploy", "Have older daemons hand over what they still serve."),
    "rehearse": (
        "holdover.commands.rehearse",
        "Deploy and kill the daemon under demo sessions, and count what they lose.",
    ),
    "stop": ("holdover.commands.deploy", "Stop Holdover on this host; agents run on."),
    "doctor": (
        "holdover.commands.doctor",
        "Look for what is wrong here, and say what to do about it.",
    ),
    "db": ("holdover.commands.db", "Look at the catalogue, back it up, restore it."),
    "host": ("holdover.commands.host", "Install Holdover onto this systemd host, or take it off."),
    "config": (
        "holdover.commands.config",
        "Show, check and apply the configuration of this machine.",
    ),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and help from `COMMANDS` and loads one on call."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            ctx.fail(f"There is no command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: holdover up, then in another terminal: holdover session new --attach 'hello'",
)
@click.option(
    "--url",
    metavar="URL",
    envvar="HOLDOVER_URL",
    show_envvar=True,
    help="Talk to this server, with the token in HOLDOVER_TOKEN or the one saved for it. "
    "Default: the admin socket of this machine when it may be used, else the saved login.",
)
@click.version_option(package_name="holdover", prog_name="holdover")
@click.pass_context
def cli(ctx: click.Context, url: str | None) -> None:
    """Keep coding-agent sessions alive while everything around them is replaced.

    Data goes to stdout, everything else to stderr; --json prints one object a line. Exit codes:
    0 done, 1 failed, 2 misuse, 3 not found, 4 not allowed, 5 conflict, 6 damaged data, 7 storage
    unavailable, 8 no daemon reached, 130 interrupted.
    """
    ctx.obj = url


def run(args: list[str] | None = None) -> int:
    """Run one command line and return its exit code; everything has been printed."""
    try:
        result: Any = cli.main(args=args, prog_name="holdover", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        click.echo("Interrupted.", err=True)
        return Exit.INTERRUPTED
    except CommandError as error:
        from holdover.render import sanitise

        click.echo(f"holdover: {sanitise(error.message)}", err=True)
        return error.exit_code
    except BrokenPipeError:
        # The reader (`head`, a pager) has seen enough. Python would complain once more at exit,
        # when it flushes what is left; nowhere is a good place for that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    return result if isinstance(result, int) else Exit.OK


def main() -> None:
    """The console script."""
    sys.exit(run())
