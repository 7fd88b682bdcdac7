"""`holdover login` and `logout`: the address and the token that the other commands use."""

import contextlib
import json
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import click

from holdover.client import Client, Door, check_url
from holdover.commands.options import client_of, json_option, print_json
from holdover.exits import CommandError, Exit
from holdover.places import login_file
from holdover.render import moment

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@click.command(
    short_help="Save the address of a server and a token for it.",
    epilog="Example: holdover login https://agents.example.org < token.txt",
)
@click.argument("url", required=False)
@click.option("--qr", is_flag=True, help="Instead, show a code that logs a phone or browser in.")
@click.option("--owner", metavar="NAME", help="With --qr: whom it logs in. Default: who you are.")
@json_option
@click.pass_context
def login(ctx: click.Context, url: str | None, qr: bool, owner: str | None, as_json: bool) -> None:
    """Save the server URL and a token for it, after trying them.

    The token is asked for without showing it, or read from standard input when that is no
    terminal, or taken from HOLDOVER_TOKEN; never from the command line, which others can read.

    With --qr, for somebody who is logged in: a QR code that logs another device in, once, within
    five minutes. It gets the rights of whoever asks for it; for another owner, all but admin.
    """
    if qr:
        if url is not None:
            raise CommandError(
                "--qr shows a code of the server you are logged in to; leave URL out.", Exit.USAGE
            )
        _show_code(client_of(ctx), owner, as_json)
        return
    if url is None or owner is not None or as_json:
        raise CommandError(
            "Say which server: holdover login https://…, or --qr to log another device in.",
            Exit.USAGE,
        )
    url = check_url(url)
    parts = urlsplit(url)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        click.echo(f"Warning: {url} has no TLS; everybody on the way can read the token.", err=True)
    token = os.environ.get("HOLDOVER_TOKEN") or _ask()
    if not token or any(not 33 <= ord(char) <= 126 for char in token):
        raise CommandError(
            "That is no token: it is one word, as `token new` printed it.", Exit.USAGE
        )
    Client(Door(url=url, token=token)).get("/v1/sessions", limit=1)
    path = login_file(os.environ)
    _write_private(path, json.dumps({"url": url, "token": token}) + "\n")
    click.echo(f"Logged in to {url}; the token is in {path}.", err=True)


def _show_code(client: Client, owner: str | None, as_json: bool) -> None:
    made = client.post("/v1/login-codes", {} if owner is None else {"owner": owner})
    if as_json:
        print_json(made)
        return
    if sys.stdout.isatty():
        import segno

        # Light modules are drawn too: what a terminal's background is nobody knows.
        segno.make(made["url"], error="l", micro=False).terminal(sys.stdout, border=2, compact=True)
    click.echo(made["url"])
    click.echo(f"Good once, until {moment(made['expires_at'])}.", err=True)
    if urlsplit(made["url"]).hostname in _LOOPBACK:
        click.echo(
            "Warning: that address is this machine's own; set [server] public_url for others.",
            err=True,
        )


def _ask() -> str:
    if sys.stdin.isatty():
        answer: str = click.prompt("Token", hide_input=True, err=True)
        return answer.strip()
    return sys.stdin.readline(10_000).strip()


def _write_private(path: Path, text: str) -> None:
    """Replace `path` in one step by a file that only its owner can read."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.new")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        draft.replace(path)
    except OSError as error:
        raise CommandError(f"The login cannot be saved in {path}: {error.strerror}.") from error


@click.command()
def logout() -> None:
    """Forget the saved address and token.

    The token itself stays valid; revoke it with `holdover token revoke` where it was made.
    """
    path = login_file(os.environ)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        click.echo(f"Removed {path}; the token is still valid until it is revoked.", err=True)
