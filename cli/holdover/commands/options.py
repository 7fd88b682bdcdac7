"""What several commands share: --json, the client, printing objects."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import click

from holdover.client import Client, find_door
from holdover.exits import CommandError, Exit

MAX_PROMPT_BYTES = 10 << 20

SESSION_STATES = ("starting", "working", "waiting", "idle", "dormant", "failed", "ended")

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Item = TypeVar("_Item")


def json_option(function: _Function) -> _Function:
    """Add --json as the parameter `as_json`."""
    option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
    return option(function)


def client_of(ctx: click.Context) -> Client:
    """The client for the door that --url, or this machine, gives."""
    return Client(find_door(ctx.find_root().obj))


def up_to(limit: int, items: Iterable[_Item]) -> Iterator[_Item]:
    """The first `limit` of `items`; says on stderr when there are more."""
    for count, item in enumerate(items):
        if count == limit:
            click.echo(f"There are more than {limit}; --limit shows them.", err=True)
            return
        yield item


def confirm(done: str, question: str) -> None:
    """Have somebody at the terminal agree; aborts, or raises where nobody can be asked.

    `done` says what would be done: ``--purge deletes the log``.
    """
    if not sys.stdin.isatty():
        raise CommandError(f"{done}; add --yes when nobody can be asked.", Exit.USAGE)
    click.confirm(question, abort=True, err=True)


def print_json(item: Mapping[str, Any]) -> None:
    """One object, one line; escaped to ASCII, so no terminal sees a control character."""
    click.echo(json.dumps(item))


def print_all_json(items: Iterable[Mapping[str, Any]]) -> None:
    for item in items:
        print_json(item)


def read_text(given: str) -> str:
    """`given`, or standard input when it is ``-``; raises for what no prompt may be."""
    if given == "-":
        raw = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
        try:
            given = raw.decode()
        except UnicodeDecodeError as error:
            if len(raw) <= MAX_PROMPT_BYTES:
                raise CommandError(
                    f"Standard input is not UTF-8 text (byte {error.start}).", Exit.USAGE
                ) from error
            given = raw.decode(errors="replace")
    if len(given.encode(errors="surrogatepass")) > MAX_PROMPT_BYTES:
        raise CommandError(
            f"The prompt is larger than {MAX_PROMPT_BYTES} bytes: put it into a file beneath the "
            "session's folder and name the file instead.",
            Exit.USAGE,
        )
    if not given.strip():
        raise CommandError("The prompt is empty.", Exit.USAGE)
    return given
