"""`holdover file`: files in storage, put, fetched, listed."""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import click

from holdover.client import Client, path_of
from holdover.commands.options import client_of, confirm, json_option, print_json, up_to
from holdover.exits import CommandError, Exit
from holdover.render import moment, one_line, table
from holdover.transfer import names
from holdover.transfer.names import Target, There

MANY = 1_000_000
SMALL_BYTES = 16 << 20
AT_A_TIME = 4


@click.group(short_help="Put files into storage, get, list and remove them.")
def file() -> None:
    """Put files into storage, get, list and remove them.

    Bytes go straight between this machine and storage. There a file is named by its id, by folder
    and name (reports/may.pdf) or by a pattern in quotes ('reports/*.pdf', 'logs/**'); a folder by
    its name with a slash (reports/). What breaks off is gone on with by the same command.
    """


# --- put ----------------------------------------------------------------------------------------


@file.command(epilog="Example: holdover file put --to reports/ may.pdf 'logs/*.gz' results/")
@click.option(
    "--to",
    metavar="PLACE",
    help="Folder (with a slash at its end) there, or folder and name for a single file.",
)
@click.option("--name", metavar="NAME", help="What to call what comes from standard input.")
@click.option("--content-type", metavar="TYPE", help="Kept with the file. Default: not known.")
@click.option(
    "--no-checksum",
    is_flag=True,
    help="Do not compute the SHA-256 beforehand: the file is read once, and only its size is checked.",
)
@json_option
@click.argument("sources", nargs=-1, required=True, metavar="FILE...")
@click.pass_context
def put(
    ctx: click.Context,
    to: str | None,
    name: str | None,
    content_type: str | None,
    no_checksum: bool,
    as_json: bool,
    sources: tuple[str, ...],
) -> None:
    """Put each FILE into storage: a file, a folder with all in it, a pattern, or - for stdin.

    Prints the id and the name of each.
    """
    for one, _ in put_all(
        client_of(ctx), sources, to, name=name, content_type=content_type, checksum=not no_checksum
    ):
        if as_json:
            print_json(one)
        else:
            click.echo(f"{one['id']}  {one_line(names.full_name(one), 300)}")


def put_all(
    client: Client,
    sources: Sequence[str],
    to: str | None,
    *,
    name: str | None = None,
    content_type: str | None = None,
    checksum: bool = True,
) -> Iterator[tuple[dict[str, Any], Target]]:
    """Put files, each yielded when it is there; small ones several at a time.

    What fails is told at the end: the first failure is raised once all others are through.
    """
    from concurrent.futures import ThreadPoolExecutor, as_completed

    from holdover.transfer.bar import bar
    from holdover.transfer.lane import Stop
    from holdover.transfer.sending import Progress, Sender, Source

    targets = find_targets(sources, to, name)
    stop = Stop()
    sender = Sender(client, stop)
    failed: CommandError | None = None

    with ExitStack() as stack:
        copies = {
            at: stack.enter_context(_copy_of_stdin())
            for at, target in enumerate(targets)
            if target.local == "-"
        }
        sizes = [
            os.fstat(copies[at].fileno()).st_size if at in copies else _size(target.local)
            for at, target in enumerate(targets)
        ]

        def send(at: int, progress: Progress) -> dict[str, Any]:
            target = targets[at]
            key = None if at in copies else os.path.abspath(target.local)
            fd = os.dup(copies[at].fileno()) if at in copies else _open(target.local)
            try:
                return sender.send(
                    Source(fd, key, target.path, target.name, content_type, checksum), progress
                )
            finally:
                os.close(fd)

        label = targets[0].name if len(targets) == 1 else f"{len(targets)} files"
        with bar(label, sum(sizes)) as progress:
            small = [at for at, size in enumerate(sizes) if size <= SMALL_BYTES]
            large = [at for at, size in enumerate(sizes) if size > SMALL_BYTES]
            pool = stack.enter_context(ThreadPoolExecutor(AT_A_TIME))
            try:
                running = {pool.submit(send, at, progress): at for at in small}
                for done in as_completed(running):
                    try:
                        yield done.result(), targets[running[done]]
                    except CommandError as error:
                        failed = failed or error
                for at in large:
                    try:
                        yield send(at, progress), targets[at]
                    except CommandError as error:
                        failed = failed or error
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    if failed is not None:
        raise failed


def find_targets(sources: Sequence[str], to: str | None, name: str | None) -> list[Target]:
    """What is to be put, and where; raises before anything is sent."""
    found: list[Target] = []
    several = len(sources) > 1
    for source in sources:
        if source == "-":
            if name is None and (to is None or to.endswith("/")):
                raise CommandError(
                    "What comes from standard input needs a name: add --name NAME.", Exit.USAGE
                )
            path, own = names.place(name or "-", to, several=name is not None)
            found.append(Target("-", path, name or own))
        elif os.path.isdir(source):
            found += _tree(source, to)
        elif os.path.exists(source):
            path, own = names.place(source, to, several=several)
            found.append(Target(source, path, own))
        else:
            # The shell has left the pattern to us, or there was nothing for it.
            import glob

            matched = sorted(glob.glob(source, recursive=True))
            if not matched:
                raise CommandError(f"There is no file {source!r} here.", Exit.NOT_FOUND)
            for local in matched:
                if os.path.isfile(local):
                    path, own = names.place(local, to, several=True)
                    found.append(Target(local, path, own))
    if not found:
        raise CommandError("There is no file in what was named.", Exit.NOT_FOUND)
    for target in found:
        try:
            target.name.encode()
            target.path.encode()
        except UnicodeEncodeError as error:
            raise CommandError(
                f"{target.local!r} has a name that is not UTF-8; rename it, or put it by --to.",
                Exit.USAGE,
            ) from error
    return found


def _tree(root: str, to: str | None) -> list[Target]:
    found = []
    for folder, folders, files in os.walk(root):
        folders.sort()
        relative = Path(folder).relative_to(root).parts
        found += [
            names.place_tree(root, [*relative, one], to)
            for one in sorted(files)
            if os.path.isfile(os.path.join(folder, one))
        ]
    return found


def _copy_of_stdin() -> IO[bytes]:
    """All of standard input, in a file without a name: an upload declares its size beforehand."""
    import shutil

    copy = tempfile.TemporaryFile()  # noqa: SIM115  the caller's to close
    shutil.copyfileobj(sys.stdin.buffer, copy, 1 << 20)
    copy.flush()
    return copy


def _size(local: str) -> int:
    try:
        return os.stat(local).st_size
    except OSError as error:
        raise _unreadable(local, error) from error


def _open(local: str) -> int:
    try:
        return os.open(local, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(local, error) from error


def _unreadable(local: str, error: OSError) -> CommandError:
    return CommandError(f"{local} cannot be read: {error.strerror or error}.")


# --- get ----------------------------------------------------------------------------------------


@file.command(epilog="Example: holdover file get --to backup/ 'reports/**'")
@click.option(
    "--to",
    metavar="PLACE",
    help="A folder here (with a slash at its end, or one that exists), a file's name, or - for "
    "standard output. Default: this folder.",
)
@click.option("--force", is_flag=True, help="Replace files that are here with other content.")
@json_option
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.pass_context
def get(
    ctx: click.Context, to: str | None, force: bool, as_json: bool, files: tuple[str, ...]
) -> None:
    """Get each FILE out of storage; a - at the end writes it to standard output.

    What is fetched lies in NAME.part until all of it is there and its SHA-256 is right.
    """
    from holdover.transfer.bar import bar
    from holdover.transfer.fetching import Fetcher
    from holdover.transfer.lane import Stop

    if len(files) > 1 and files[-1] == "-":
        to, files = "-", files[:-1]
    client = client_of(ctx)
    asked = [names.parse(text) for text in files]
    found = [(one, there) for there in asked for one in find(client, there)]
    stop = Stop()
    fetcher = Fetcher(client, stop)
    total = sum(one["size"] for one, _ in found)
    label = found[0][0]["name"] if len(found) == 1 else f"{len(found)} files"
    with bar(label, total) as progress:
        try:
            if to == "-":
                for one, _ in found:
                    fetcher.stream(one, sys.stdout.buffer.write, progress)
                sys.stdout.buffer.flush()
                return
            several = len(found) > 1 or asked[0].folder or asked[0].pattern is not None
            for one, there in found:
                target = _landing(one, there, to, several=several)
                if _is_here(target, one, force=force):
                    progress.moved(one["size"])
                else:
                    fetcher.fetch(one, target, progress)
                if as_json:
                    print_json({**one, "local": str(target)})
                else:
                    click.echo(str(target))
        except BaseException:
            stop.set()
            raise


def _landing(one: names.Json, there: There, to: str | None, *, several: bool) -> Path:
    folder = to is None or several or to.endswith("/") or os.path.isdir(to)
    if folder:
        return Path(to or ".", names.landing(one, there))
    assert to is not None, "without --to it is a folder"
    return Path(to)


def _is_here(target: Path, one: names.Json, *, force: bool) -> bool:
    """Whether the same content is here already; raises for another, unless `force`."""
    if not target.exists() or force:
        return False
    if target.is_file() and target.stat().st_size == one["size"] and one["sha256"] is not None:
        import hashlib

        with target.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() == one["sha256"]:
                return True
    raise CommandError(
        f"{target} is here already, with other content; --force replaces it.", Exit.CONFLICT
    )


def find(client: Client, there: There) -> list[dict[str, Any]]:
    """The files that `there` names, the newest of each name; raises where there is none."""
    if there.id is not None:
        one: dict[str, Any] = client.get(path_of("files", there.id))
        return [one]
    query: dict[str, object] = {"state": "ready", "path": there.path or None}
    if there.name is not None:
        query["name"] = there.name
    else:
        query["recursive"] = True if there.path else None
    listed = client.items("/v1/files", limit=MANY, **query)
    found = names.newest_of_each(item for item in listed if there.matches(item))
    if not found:
        said = f"There is no file {there.text!r} in storage"
        if there.name is not None and _is_folder(client, there):
            said += f", but a folder: name it with a slash, {there.text + '/'!r}"
        raise CommandError(f"{said}.", Exit.NOT_FOUND)
    return [dict(item) for item in found]


def _is_folder(client: Client, there: There) -> bool:
    path = "/".join(filter(None, (there.path, there.name)))
    query = {"state": "ready", "path": path, "recursive": True}
    return any(True for _ in client.items("/v1/files", limit=1, **query))


def find_one(client: Client, text: str) -> dict[str, Any]:
    """The one file that `text` names."""
    found = find(client, names.parse(text))
    if len(found) > 1:
        raise CommandError(
            f"{text!r} names {len(found)} files; this takes one of them.", Exit.USAGE
        )
    return found[0]


# --- the rest -----------------------------------------------------------------------------------


@file.command()
@click.option("--search", "query", metavar="WORDS", help="Only those with these words in the name.")
@click.option("--limit", type=click.IntRange(1, MANY), default=100, show_default=True)
@json_option
@click.argument("where", required=False)
@click.pass_context
def ls(ctx: click.Context, query: str | None, limit: int, as_json: bool, where: str | None) -> None:
    """List files, the newest first; with WHERE those in a folder, of a name or of a pattern."""
    client = client_of(ctx)
    there = names.parse(where or "")
    asked: dict[str, object] = {"q": query, "path": there.path or None}
    if there.path:
        asked["recursive"] = True
    whole = there.folder and not there.path
    listed = client.items("/v1/files", limit=limit + 1 if whole else MANY, **asked)
    rows: list[list[str]] = []
    for item in up_to(limit, (item for item in listed if whole or there.lists(item))):
        if as_json:
            print_json(item)
        state = "" if item["state"] == "ready" else f" ({item['state']})"
        rows.append(
            [
                item["id"],
                str(item["size"]),
                moment(item["created_at"]),
                one_line(names.full_name(item), 200) + state,
            ]
        )
    if rows and not as_json:
        click.echo(table(["ID", "SIZE", "CREATED", "NAME"], rows))
    elif not as_json:
        nothing = f"Nothing in storage goes by {where!r}." if where else "No files."
        click.echo(f"{nothing} Put one: holdover file put FILE", err=True)


@file.command()
@click.option("--yes", is_flag=True, help="Do not ask before several are removed.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.pass_context
def rm(ctx: click.Context, yes: bool, files: tuple[str, ...]) -> None:
    """Remove each FILE from storage, with its links; a folder (reports/) or pattern, all it names.

    This cannot be undone.
    """
    client = client_of(ctx)
    found = [one for text in files for one in find(client, names.parse(text))]
    asked_for_many = len(found) > len(files)
    if asked_for_many and not yes:
        confirm(f"That names {len(found)} files", f"Remove {len(found)} files?")
    for one in found:
        client.delete(path_of("files", one["id"]))


@file.command(epilog="Example: holdover file mv may.pdf reports/2026-05.pdf")
@click.argument("source")
@click.argument("destination")
@click.pass_context
def mv(ctx: click.Context, source: str, destination: str) -> None:
    """Give SOURCE another name or folder; a DESTINATION with a slash at its end is a folder.

    Nothing is copied, and its links stay good.
    """
    client = client_of(ctx)
    found = find(client, names.parse(source))
    if len(found) > 1 and not destination.endswith("/"):
        raise CommandError(
            f"{source!r} names {len(found)} files: they can go into a folder only (with a slash).",
            Exit.USAGE,
        )
    for one in found:
        path, name = names.place(one["name"], destination, several=destination.endswith("/"))
        client.patch(path_of("files", one["id"]), {"path": path, "name": name})


@file.command()
@json_option
@click.argument("name", metavar="FILE")
@click.pass_context
def stat(ctx: click.Context, as_json: bool, name: str) -> None:
    """Show one FILE: its size, its SHA-256, and how far storage has proved it."""
    one = find_one(client_of(ctx), name)
    if as_json:
        print_json(one)
        return
    proved = {
        "sha256": "storage has checked the SHA-256 of the whole",
        "parts": "storage has checked the SHA-256 of each part",
        "size": "storage has checked the size",
    }
    shown = {
        "id": one["id"],
        "name": names.full_name(one),
        "size": one["size"],
        "sha256": one["sha256"],
        "verified": proved.get(one["verified"]),
        "type": one["content_type"],
        "state": one["state"],
        "owner": one["owner"],
        "created": moment(one["created_at"]),
    }
    for key, value in shown.items():
        if value is not None:
            click.echo(f"{key:<10} {one_line(value, 300)}")
