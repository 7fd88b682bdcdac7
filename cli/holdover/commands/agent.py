"""`holdover agent`: the programs that sessions run, and their logins. On the machine itself."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from holdover import places
from holdover.commands.options import json_option, print_json
from holdover.exits import CommandError, Exit
from holdover.render import table

_PREFIXES = {"sk-ant-oat": "CLAUDE_CODE_OAUTH_TOKEN", "sk-ant-api": "ANTHROPIC_API_KEY"}


@dataclass(frozen=True)
class _Here:
    """Whose agents are meant: the host's, as root; else those of this user's `holdover up`."""

    host: bool
    programs: Path
    logins: Path

    @property
    def whose(self) -> str:
        return "this host" if self.host else "`holdover up` of this user"


def _here() -> _Here:
    # As `host.as_root` knows a host; this works without being root, too.
    host = Path("/run/systemd/system").is_dir() and Path("/opt/holdover").is_dir()
    if host and os.geteuid() == 0:
        return _Here(True, places.HOST_PROGRAMS, places.HOST_LOGINS)
    return _Here(False, places.programs_dir(os.environ), places.logins_dir(os.environ))


@click.group(short_help="Install agents' programs, list them, log them in.")
def agent() -> None:
    """Install agents' programs, list them, log them in; on the machine itself.

    As root on a host where Holdover is installed, this is about the host; otherwise about your own
    `holdover up`.
    """


@agent.command(name="ls")
@click.option("--account", metavar="NAME", help="As this account finds them. Default: the default.")
@json_option
def list_all(account: str | None, as_json: bool) -> None:
    """List the agents that sessions can have, the default one, and whether each can be started."""
    from holdoverd.agents import installing
    from holdoverd.errors import SettingsError
    from holdoverd.settings import load_default

    here = _here()
    try:
        settings = load_default(os.environ)
    except SettingsError as error:
        raise CommandError(str(error)) from error
    name = account or (settings.sessions.default_account if here.host else None)
    found = installing.installed(here.programs)
    items: list[dict[str, Any]] = []
    for one in settings.agents.values():
        program, problem = _program(here, one.command[0], name)
        version = next((i.version for i in found if program == str(i.program)), None)
        items.append(
            {
                "agent": one.name,
                "default": one.name == settings.sessions.default_agent,
                "program": program,
                "version": version,
                "installed": [i.version for i in found if i.kind == one.preset],
                "problem": problem,
                "login": _has_login(here, name) if one.preset == "claude" else None,
            }
        )
    if as_json:
        for item in items:
            print_json(item)
        return
    rows = [
        [
            str(item["agent"]),
            "default" if item["default"] else "",
            str(item["version"] or ""),
            "" if item["login"] is None else "yes" if item["login"] else "no",
            str(item["program"] or "cannot be started"),
        ]
        for item in items
    ]
    click.echo(table(["AGENT", "", "VERSION", "LOGIN", "PROGRAM"], rows))
    for other in found:
        if not other.used:
            click.echo(f"Also installed: {other.kind} {other.version} ({other.program})", err=True)
    for item in items:
        if item["problem"]:
            click.echo(f"{item['agent']}: {item['problem']}.", err=True)


@agent.command(
    epilog="Example: holdover agent install claude, or claude@2.1.330", short_help="Install one."
)
@click.argument("what", metavar="AGENT[@VERSION]")
def install(what: str) -> None:
    """Install an agent's program from its npm package and use it from the next launch on.

    Versions stay side by side, so that a version installed before is used again at once. Agents
    that run keep the program they have.
    """
    from holdoverd.agents import installing

    here = _here()
    os.umask(0o022)
    click.echo(f"Installing {what} for {here.whose} ...", err=True)
    try:
        done = installing.install(here.programs, what)
    except (installing.AgentInstallError, OSError) as error:
        raise CommandError(str(error)) from error
    click.echo(str(done.program))
    click.echo(
        f"{done.kind} {done.version} is used by {here.whose} from the next launch on.", err=True
    )


@agent.command(short_help="Keep a login for an account's agents.")
@click.option("--account", metavar="NAME", help="Whose agents. Default: the default account.")
@click.option(
    "--kind",
    type=click.Choice(["oauth-token", "api-key"]),
    help="What it is. Default: what its beginning says.",
)
@click.option("--remove", is_flag=True, help="Forget the login instead.")
def login(account: str | None, kind: str | None, remove: bool) -> None:
    """Keep a login for the Claude Code agents of an account: a token or an API key.

    `claude setup-token` prints a token for a subscription; a console gives out API keys. It is asked
    for, or read from standard input; never given as an argument, which others could see. Agents
    that run keep the login they started with.
    """
    here = _here()
    name = _login_name(here, account)
    path = here.logins / name
    if remove:
        with suppress(FileNotFoundError):
            path.unlink()
        click.echo(f"The login of {name} is forgotten; running agents still have it.", err=True)
        return
    if sys.stdin.isatty():
        secret = click.prompt("Token or API key (not shown)", hide_input=True, err=True).strip()
    else:
        secret = sys.stdin.readline().strip()
    variable = {
        "oauth-token": "CLAUDE_CODE_OAUTH_TOKEN",
        "api-key": "ANTHROPIC_API_KEY",
        None: next((v for prefix, v in _PREFIXES.items() if secret.startswith(prefix)), None),
    }[kind]
    if variable is None:
        raise CommandError(
            "What this is cannot be told from its beginning: say --kind oauth-token or api-key.",
            Exit.USAGE,
        )
    from holdoverd.keeper import credentials

    try:
        text = credentials.render(variable, secret)
    except ValueError as error:
        raise CommandError(
            "That is no token and no key: one line without blanks is wanted.", Exit.USAGE
        ) from error
    with _told():
        here.logins.mkdir(mode=0o700, parents=True, exist_ok=True)
        here.logins.chmod(0o700)
        draft = path.with_name(f".{name}.{os.getpid()}")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
        draft.replace(path)
    click.echo(f"Kept for the agents of {name} ({variable}), from the next launch on.", err=True)


def _login_name(here: _Here, account: str | None) -> str:
    """The name of the login's file: the account's; of `holdover up` there is one."""
    if not here.host:
        if account is not None:
            raise CommandError(
                "Accounts are the host's: run this as root, or leave --account out for your own "
                "`holdover up`.",
                Exit.USAGE,
            )
        return places.OWN_LOGIN
    from holdover.host import as_root

    with as_root() as tools:
        name = account or str(tools.accounts.DEFAULT_ACCOUNT)
        if name not in tools.accounts.installed():
            raise CommandError(
                f"There is no account {name}; `holdover account ls` lists them.", Exit.NOT_FOUND
            )
    return name


def _has_login(here: _Here, account: str | None) -> bool:
    return (here.logins / (account if here.host and account else places.OWN_LOGIN)).is_file()


def _program(here: _Here, command: str, account: str | None) -> tuple[str | None, str | None]:
    """(the program's path, None), or (None, why there is none), as a keeper would find it."""
    import pwd

    from holdoverd.errors import LaunchError
    from holdoverd.keeper.account import DEFAULT_PATH, expand_home, resolve_program

    try:
        entry = pwd.getpwnam(account) if account else pwd.getpwuid(os.getuid())
    except KeyError:
        return None, f"there is no user {account or os.getuid()}"
    home = entry.pw_dir if here.host else str(places.home(os.environ))
    path = f"{home}/.local/bin:{DEFAULT_PATH}" if here.host else os.environ.get("PATH", "")
    env = {"PATH": f"{here.programs}/bin:{path}", "USER": entry.pw_name}
    try:
        found = resolve_program(command, env, expand_home(home, home))
    except LaunchError as error:
        return None, str(error)
    # A link of ours stands for the version behind it.
    return os.path.realpath(found) if found.startswith(f"{here.programs}/") else found, None


@contextmanager
def _told() -> Iterator[Any]:
    try:
        yield
    except OSError as error:
        raise CommandError(f"{error.filename} cannot be written: {error.strerror}.") from error
