"""`holdover db`: the catalogue of this machine: looking at it, copying it, bringing it back."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from holdover import places
from holdover.commands.options import client_of, confirm, json_option, print_json
from holdover.exits import CommandError, Exit
from holdover.host import as_root
from holdover.render import counted, moment, size_text

if TYPE_CHECKING:
    from holdoverd.catalogue.backup import Note

HOST_STATE = Path("/var/lib/holdover")
DAEMON_USER = "holdover"


@dataclass(frozen=True)
class _Here:
    """Whose catalogue is meant: the host's, as root; else that of this user's `holdover up`."""

    host: bool
    state: Path
    catalogue: Path

    @property
    def spools(self) -> Path:
        return self.state / "spool"

    def run(
        self,
        *arguments: str,
        module: str = "holdoverd.catalogue.backup",
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        stdout: IO[bytes] | int = subprocess.PIPE,
    ) -> bytes:
        """What a child prints that works on the catalogue as the user it belongs to."""
        command = [sys.executable, "-I", "-m", module, *arguments]
        folders = {
            "STATE_DIRECTORY": str(self.state),
            "HOLDOVER_RUNTIME_DIR": str(
                places.HOST_RUNTIME if self.host else places.runtime_dir(os.environ)
            ),
        }
        if self.host:
            settings = [f"{name}={value}" for name, value in folders.items()]
            command = ["runuser", "-u", DAEMON_USER, "--", "env", *settings, *command]
        done = subprocess.run(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={**os.environ, **folders},
            cwd="/",
            check=False,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise CommandError(said[-1] if said else f"{module} failed.", Exit.FAILED)
        return done.stdout or b""


def _here() -> _Here:
    try:
        from holdoverd.catalogue.backup import path_of
        from holdoverd.errors import CatalogueError, SettingsError
        from holdoverd.settings import load_default
    except ImportError as error:
        raise CommandError(
            "Only the command line is installed here, not the daemon; run this on the host itself."
        ) from error
    named = os.environ.get("HOLDOVER_STATE_DIR")
    host = not named and Path("/opt/holdover").is_dir() and HOST_STATE.is_dir()
    if host and os.geteuid() != 0:
        raise CommandError(
            "The host's catalogue is the daemon's alone: run this as root (sudo). For your own "
            "`holdover up` set HOLDOVER_STATE_DIR to its folder.",
            Exit.NOT_ALLOWED,
        )
    state = HOST_STATE if host else places.state_dir(os.environ)
    try:
        url = load_default(os.environ).catalogue.resolve(state)
        return _Here(host, state, path_of(url))
    except (SettingsError, CatalogueError) as error:
        raise CommandError(str(error)) from error


@click.group(short_help="Look at the catalogue, back it up, restore it.")
def db() -> None:
    """Look at the catalogue of this machine, back it up, restore it. As root on a host.

    The catalogue holds sessions, messages, owners and tokens. What a backup of it does not hold is
    said by `holdover db backup`, with the command for each.
    """


@db.command(short_help="Where the catalogue is, its schema, size and contents.")
@click.option("--check", is_flag=True, help="Read every page, and say what is damaged.")
@json_option
def status(check: bool, as_json: bool) -> None:
    """Show where the catalogue is, its schema, its size and how much it holds."""
    here = _here()
    if not here.catalogue.exists():
        raise CommandError(
            f"There is no catalogue at {here.catalogue} yet; a daemon makes it when it first starts.",
            Exit.NOT_FOUND,
        )
    found: dict[str, Any] = json.loads(
        here.run("status", str(here.catalogue), *(["--check"] if check else []))
    )
    if as_json:
        print_json(found)
    else:
        click.echo(f"Catalogue: {found['path']}")
        click.echo(f"Schema:    {found['schema']}, this release's is {found['release_schema']}")
        click.echo(
            f"Size:      {size_text(found['bytes'])}, and {size_text(found['wal_bytes'])} of log"
        )
        click.echo(
            f"Holds:     {counted(found['sessions'], 'session')}, {found['live']} with an agent; "
            f"{counted(found['messages'], 'message')}"
        )
        if check:
            click.echo("Check:     " + ("; ".join(found["damage"]) or "sound"))
    if found.get("damage"):
        raise CommandError(
            f"{found['path']} is damaged. Restore a backup: `holdover db restore FILE`.",
            Exit.INTEGRITY,
        )


@db.command(short_help="Bring the catalogue to this release's schema.")
def upgrade() -> None:
    """Bring the catalogue to this release's schema. A daemon does so by itself when it starts."""
    here = _here()
    here.run("--migrate", module="holdoverd")
    found = json.loads(here.run("status", str(here.catalogue)))
    click.echo(f"The catalogue has schema {found['schema']}.", err=True)


@db.command(
    short_help="Copy the catalogue into FILE while it is in use.",
    epilog="Example: holdover db backup /srv/backup/holdover-$(date +%F).db",
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def backup(file: Path) -> None:
    """Copy the catalogue into FILE, as it is at one moment, while everybody works on.

    FILE is made, readable by you alone: it holds all that was said, and digests of tokens.
    """
    from holdoverd.catalogue.backup import read_note
    from holdoverd.errors import CatalogueError

    here = _here()
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        fd = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(fd, "wb") as target:
                here.run("copy", str(here.catalogue), socket.gethostname(), stdout=target)
                os.fsync(target.fileno())
            note = read_note(draft)
            # Whole or not at all, and never over one that is there.
            os.link(draft, file)
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError as error:
        raise CommandError(f"{file} is there already; give another name.", Exit.CONFLICT) from error
    except (OSError, CatalogueError) as error:
        raise CommandError(f"The backup could not be made: {error}") from error
    click.echo(
        f"{file}: {counted(note.sessions, 'session')}, {counted(note.messages, 'message')}, "
        f"{size_text(file.stat().st_size)}.",
        err=True,
    )
    click.echo("Not in it:", err=True)
    for what, command in _beside(here):
        click.echo(f"    {what}\n        {command}", err=True)


def _beside(here: _Here) -> list[tuple[str, str]]:
    """What a backup does not hold, and a command that copies it."""
    if not here.host:
        home = here.state.parent
        return [
            ("agents' transcripts and workspaces, in your home", "tar -czf homes.tar.gz ~/.claude"),
            ("storage's bytes, and its keys", f"tar -czf state.tar.gz -C {home} {here.state.name}"),
        ]
    return [
        (
            "the configuration, with storage's keys and agents' logins",
            "tar -czf etc.tar.gz /etc/holdover",
        ),
        (
            "the bytes of files: everything in the bucket of [storage]",
            "tar -czf storage.tar.gz /var/lib/holdover-storage  (`systemctl stop holdover-storage` first)",
        ),
        (
            "agents' homes with their transcripts and workspaces, of every account",
            "tar -czf homes.tar.gz /var/lib/holdover-agent  (`holdover account ls` names the others)",
        ),
    ]


@db.command(
    short_help="Put a backup in the catalogue's place.",
    epilog="Example: holdover db restore /srv/backup/holdover-2026-11-28.db",
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--yes", is_flag=True, help="Do not ask.")
def restore(file: Path, yes: bool) -> None:
    """Put the backup FILE in the catalogue's place. Ends what runs: doors, daemons and agents.

    Sessions come back as they were then, at rest, and go on with their next prompt; where their
    agent's transcript is not here, the agent begins afresh. The present catalogue is kept beside.
    Every session gets a new epoch, so that clients with cursors from later start over by themselves.
    """
    from holdoverd.catalogue.backup import read_note
    from holdoverd.errors import CatalogueError

    here = _here()
    try:
        note = read_note(file)
    except CatalogueError as error:
        raise CommandError(str(error), Exit.INTEGRITY) from error
    click.echo(_in_words(file, note), err=True)
    if not yes:
        confirm("This ends all agents here", "End all agents here, and go back to that?")
    with _stopped(here), file.open("rb") as source:
        kept = here.run(
            *("restore", str(here.catalogue), str(here.spools), socket.gethostname()),
            stdin=source,
        )
    click.echo(
        f"Restored. {counted(note.live, 'session')} had an agent then, which the next prompt resumes.",
        err=True,
    )
    if name := kept.decode().strip():
        click.echo(f"What was here before is {name}.", err=True)
    click.echo("Tokens that were revoked since are valid again: see `holdover token ls`.", err=True)


def _in_words(file: Path, note: "Note") -> str:
    return (
        f"{file} was made {moment(note.at)} on {note.host} by release {note.release}: "
        f"{counted(note.sessions, 'session')}, {counted(note.messages, 'message')}."
    )


@contextlib.contextmanager
def _stopped(here: _Here) -> Iterator[None]:
    """Nothing runs within the block; on a host what ran before runs again after it."""
    if not here.host:
        if _answers(os.environ):
            raise CommandError(
                "`holdover up` runs here: stop it (Ctrl-C) and restore then.", Exit.CONFLICT
            )
        here.spools.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield
        return
    with as_root() as tools:
        call = tools.layout.call
        target = "holdover.target"
        ran = subprocess.run(["systemctl", "is-active", "--quiet", target], check=False)
        # The doors first, or a knock would start the daemon again.
        doors = (target, "holdover.socket", "holdover-admin.socket")
        call("systemctl", "stop", *doors, "holdoverd@*.service", what="stopping Holdover")
        call("systemctl", "stop", "holdover-agent-*.service", what="ending the agents")
        try:
            yield
        finally:
            if ran.returncode == 0:
                call("systemctl", "start", target, what="starting Holdover")


def _answers(env: Mapping[str, str]) -> bool:
    """Whether somebody serves at the admin socket of this user's `holdover up`."""
    path = places.runtime_dir(env) / "admin.sock"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        probe.connect(str(path))
        return True
    return False


_RETAINED = {  # {what is counted: (its setting, in words)}
    "sessions": ("ended_sessions_days", "sessions that have ended"),
    "jobs": ("finished_jobs_days", "jobs that have finished"),
    "audit": ("audit_days", "rows of the audit"),
}


@db.command(
    epilog="Example: holdover db prune && holdover db prune --now",
    short_help="Say what is kept for too long, or remove it now.",
)
@click.option("--now", is_flag=True, help="Remove it; without this, it is only counted.")
@json_option
@click.pass_context
def prune(ctx: click.Context, now: bool, as_json: bool) -> None:
    """Say how much is older than [retention] in the configuration lets it become.

    The daemon removes that by itself once an hour, in small pieces; by default nothing. Asks the
    daemon, unlike the other commands here.
    """
    found = client_of(ctx).post("/v1/admin/retention", {"dry_run": not now})
    if as_json:
        print_json(found)
        return
    for what, (setting, words) in _RETAINED.items():
        days = found["days"][setting]
        if not days:
            click.echo(f"{words:<26} kept for good")
        else:
            done = "removed" if now else "to be removed"
            click.echo(f"{words:<26} kept for {days:g} days: {found['removed'][what]} {done}")
