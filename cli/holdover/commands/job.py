"""`holdover job`: have a processor do something with files, and see what came of it."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from holdover.client import Client, one_by_prefix, path_of
from holdover.commands.file import find_one
from holdover.commands.options import client_of, json_option, print_json, up_to
from holdover.exits import CommandError, Exit
from holdover.render import moment, one_line, sanitise, table
from holdover.transfer.names import FILE_ID

Job = dict[str, Any]
ENDED = ("done", "dead", "cancelled")
STATES = ["ready", "running", *ENDED]
# Soon at first, for jobs of a second; then as often as a person looks.
FIRST_LOOK_S = 0.1
LOOK_S = 1.0


@click.group(short_help="Have files processed by programs beside the daemon.")
def job() -> None:
    """Have files processed by programs beside the daemon.

    A job gives files to a processor: checksum, extract-text, analyze (Claude Code reads the file),
    or one from the configuration. It is tried again when it fails, and goes on whatever is
    restarted meanwhile. Wherever an ID is asked for, any beginning that only one job has will do.
    """


@job.command(
    epilog="Example: holdover job submit analyze in/bill.pdf --param 'prompt=What is owed?' --wait"
)
@click.argument("processor")
@click.argument("files", metavar="FILE...", nargs=-1)
@click.option(
    "--param",
    "-p",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="For the processor; may be repeated. VALUE is JSON where it can be read as that, else text.",
)
@click.option(
    "--session",
    metavar="ID",
    envvar="HOLDOVER_SESSION_ID",
    show_envvar=True,
    help="A session that gets a notice of the job's end.",
)
@click.option("--wait", is_flag=True, help="Wait for the end, show progress, print the result.")
@json_option
@click.pass_context
def submit(
    ctx: click.Context,
    processor: str,
    files: tuple[str, ...],
    pairs: tuple[str, ...],
    session: str | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Give each FILE in storage, by id or name, to PROCESSOR; print the new job's ID.

    With --wait, print what came of it instead: its text, or the ids of the files it made. The exit
    code is 1 when it ended otherwise than done.
    """
    params = read_params(pairs)
    client = client_of(ctx)
    ids = [text if FILE_ID.match(text) else find_one(client, text)["id"] for text in files]
    body: Job = {"processor": processor, "files": ids, "params": params}
    if session is not None:
        body["session"] = session
    made = client.post("/v1/jobs", body)
    if wait:
        show = _progress_line() if sys.stderr.isatty() else None
        made = wait_for_end(client, made["id"], show)
        if not as_json:
            print_result(made)
            return
    print_json(made) if as_json else click.echo(made["id"])
    if wait and made["state"] != "done":
        ctx.exit(Exit.FAILED)


@job.command()
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--processor", metavar="NAME", help="Only those of this processor.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@json_option
@click.pass_context
def ls(
    ctx: click.Context, state: str | None, processor: str | None, limit: int, as_json: bool
) -> None:
    """List jobs, newest first."""
    listed = client_of(ctx).items("/v1/jobs", limit=limit + 1, state=state, processor=processor)
    rows = []
    for item in up_to(limit, listed):
        if as_json:
            print_json(item)
        rows.append(
            [
                item["id"],
                item["state"],
                one_line(item["processor"], 24),
                f"{item['attempt']}/{item['max_attempts']}",
                moment(item["created_at"]),
                one_line(progress_of(item) or item["error"] or "", 60),
            ]
        )
    if rows and not as_json:
        head = ["ID", "STATE", "PROCESSOR", "ATTEMPT", "CREATED", ""]
        click.echo(table(head, rows))
    elif not rows:
        click.echo("No jobs. Make one: holdover job submit checksum FILE", err=True)


@job.command()
@click.argument("id")
@json_option
@click.pass_context
def show(ctx: click.Context, id: str, as_json: bool) -> None:  # noqa: A002  the word for it
    """Show job ID: how far it is, what it made, why it failed."""
    client = client_of(ctx)
    found = client.get(path_of("jobs", resolve_job(client, id)))
    if as_json:
        print_json(found)
        return
    lines = {
        "job": found["id"],
        "owner": found["owner"],
        "processor": found["processor"],
        "files": " ".join(found["files"]),
        "params": json.dumps(found["params"]),
        "state": found["state"],
        "attempt": f"{found['attempt']} of {found['max_attempts']}",
        "progress": progress_of(found),
        "worker": found["worker"],
        "created": moment(found["created_at"]),
        "started": found["started_at"] and moment(found["started_at"]),
        "finished": found["finished_at"] and moment(found["finished_at"]),
        "error": found["error"],
        "made": " ".join((found["result"] or {}).get("files", ())),
    }
    for name, value in lines.items():
        if value:
            click.echo(f"{name:<10}{one_line(value, 2000)}")
    text = (found["result"] or {}).get("text")
    if text:
        click.echo("\n" + sanitise(text).rstrip("\n"))


@job.command()
@click.argument("id")
@click.option("--attempt", type=click.IntRange(1), help="Of this attempt. Default: the last one.")
@json_option
@click.pass_context
def log(ctx: click.Context, id: str, attempt: int | None, as_json: bool) -> None:  # noqa: A002
    """Print what the processor of job ID said on stderr, its beginning and its end."""
    client = client_of(ctx)
    found = client.get(path_of("jobs", resolve_job(client, id), "log"), attempt=attempt)
    if as_json:
        print_json(found)
    elif found["text"]:
        click.echo(sanitise(found["text"]).rstrip("\n"))
    else:
        click.echo("It said nothing.", err=True)


@job.command()
@click.argument("id")
@click.pass_context
def cancel(ctx: click.Context, id: str) -> None:  # noqa: A002  the word for it
    """Cancel job ID; what runs of it is killed."""
    client = client_of(ctx)
    client.delete(path_of("jobs", resolve_job(client, id)))


@job.command()
@click.argument("id")
@click.option("--wait", is_flag=True, help="Wait for the end, show progress, print the result.")
@click.pass_context
def retry(ctx: click.Context, id: str, wait: bool) -> None:  # noqa: A002  the word for it
    """Try job ID again, which is dead or was cancelled."""
    client = client_of(ctx)
    made = client.post(path_of("jobs", resolve_job(client, id), "retry"), {})
    if wait:
        show_line = _progress_line() if sys.stderr.isatty() else None
        print_result(wait_for_end(client, made["id"], show_line))


def resolve_job(client: Client, given: str) -> str:
    """The full id of the job `given` names; a whole id is not looked up."""
    if given.startswith("j_") and len(given) == 18:
        return given
    listed = client.items("/v1/jobs", limit=10_000)
    return one_by_prefix(given, [item["id"] for item in listed], "job", "j_")


def read_params(pairs: tuple[str, ...]) -> Job:
    """{name: value} of ``NAME=VALUE``s; raises for what is none."""
    params: Job = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise CommandError(f"--param {pair!r} is not NAME=VALUE.", Exit.USAGE)
        try:
            params[name] = json.loads(text)
        except ValueError:
            params[name] = text
    return params


def wait_for_end(client: Client, job_id: str, show: Callable[[Job], None] | None) -> Job:
    """The job once it has ended; `show` gets it at every look. A restarted daemon is waited for."""
    delay_s = FIRST_LOOK_S
    while True:
        found: Job = client.get(path_of("jobs", job_id))
        if show is not None:
            show(found)
        if found["state"] in ENDED:
            return found
        time.sleep(delay_s)
        delay_s = min(LOOK_S, delay_s * 1.5)


def print_result(found: Job) -> None:
    """What the job came to, on stdout; raises when that is not a result."""
    if found["state"] != "done":
        raise CommandError(
            f"Job {found['id']} is {found['state']}"
            + (f": {found['error']}" if found["error"] else ".")
        )
    result = found["result"] or {}
    if "text" in result:
        text = sanitise(result["text"]) if sys.stdout.isatty() else result["text"]
        click.echo(text.rstrip("\n"))
    for file in result.get("files", ()):
        click.echo(file)


def progress_of(found: Job) -> str:
    """``50 % of 1.0 MiB``, or "" where nothing is known."""
    progress = found["progress"] if found["state"] == "running" else None
    if not progress:
        return ""
    done, total = progress["bytes"], progress["total"]
    if not total:
        return size(done)
    return f"{min(100, done * 100 // total)} % of {size(total)}"


def size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _progress_line() -> Callable[[Job], None]:
    """Shows a job on one line of the terminal, written over each time."""
    width = 0

    def show_one(found: Job) -> None:
        nonlocal width
        parts = [found["state"], progress_of(found)]
        if found["attempt"] > 1:
            parts.append(f"attempt {found['attempt']} of {found['max_attempts']}")
        line = ", ".join(part for part in parts if part)
        over = found["state"] in ENDED
        click.echo("\r" + line.ljust(width) + ("\n" if over else ""), nl=False, err=True)
        width = len(line)

    return show_one
