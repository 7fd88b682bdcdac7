"""`holdover session`: everything about agent sessions."""

import json
import os
import sys
import uuid
from dataclasses import replace
from typing import Any

import click

from holdover.client import Client, one_by_prefix, path_of, resolve_session
from holdover.commands.options import (
    SESSION_STATES,
    client_of,
    confirm,
    json_option,
    print_json,
    read_text,
    up_to,
)
from holdover.commands.prompts import fits_request, submit, wait_for_turn
from holdover.exits import CommandError, Exit
from holdover.render import moment, one_line, permission_line, table

_MODES = ["default", "acceptEdits", "plan", "bypassPermissions", "dontAsk", "auto"]


CLONE_TIMEOUT_S = 240.0
"""Above what a daemon may take to clone a repository and launch an agent."""


@click.group(short_help="Talk to agent sessions, list and end them.")
def session() -> None:
    """Talk to agent sessions, list and end them.

    A session is one conversation with an agent. It lives on the daemon's machine and goes on
    whoever watches. Wherever an ID is asked for, any beginning that only one session has will do.
    """


@session.command(
    epilog="Example: holdover session new --attach --cwd /srv/shop 'Why do tests fail?'"
)
@click.option("--agent", metavar="NAME", help="Which agent. Default: the daemon's default agent.")
@click.option("--cwd", metavar="DIR", help="Folder to work in. Default: a new, empty workspace.")
@click.option("--repo", metavar="URL", help="Clone this into the new workspace (https, ssh, git).")
@click.option("--ref", metavar="REF", help="With --repo: a branch, tag or commit.")
@click.option("--title", metavar="TEXT", help="A name for lists.")
@click.option("--model", metavar="NAME", help="Model for the agent. Default: the agent's own.")
@click.option("--permission-mode", type=click.Choice(_MODES), help="Default: the agent asks.")
@click.option("--attach", is_flag=True, help="Stay, show the answer and take further prompts.")
@json_option
@click.argument("prompt", required=False)
@click.pass_context
def new(
    ctx: click.Context,
    agent: str | None,
    cwd: str | None,
    repo: str | None,
    ref: str | None,
    title: str | None,
    model: str | None,
    permission_mode: str | None,
    attach: bool,
    as_json: bool,
    prompt: str | None,
) -> None:
    """Start a session, with PROMPT as its first prompt.

    Prints the new session's ID. A PROMPT of - is read from standard input.
    """
    if repo is not None and cwd is not None:
        raise click.UsageError("--repo is cloned into a new workspace; leave out --cwd.")
    if ref is not None and repo is None:
        raise click.UsageError("--ref goes with --repo.")
    text = None if prompt is None else read_text(prompt)
    client = client_of(ctx)
    if repo is not None:
        client = replace(client, timeout_s=CLONE_TIMEOUT_S)
    if cwd is not None and client.door.socket is not None:
        # The daemon is on this machine, so a relative path can only mean this terminal's folder.
        cwd = os.path.abspath(os.path.expanduser(cwd))
    asked = {
        "agent": agent,
        "cwd": cwd,
        "repo": None if repo is None else {"url": repo} | ({} if ref is None else {"ref": ref}),
        "title": title,
        "model": model,
        "permission_mode": permission_mode,
    }
    body: dict[str, object] = {key: value for key, value in asked.items() if value is not None}
    first = None if text is None else {"id": str(uuid.uuid4()), "text": text}
    if first is not None and fits_request(first["text"]):
        body["prompt"] = first
    made = client.post("/v1/sessions", body)
    if first is not None and "prompt" not in body:
        submit(client, made["id"], first["id"], first["text"])
    if made["state"] == "failed":
        error = made.get("error") or {}
        raise CommandError(f"Session {made['id']} could not start: {error.get('message')}")
    if not attach:
        print_json(made) if as_json else click.echo(made["id"])
        return
    click.echo(f"Session {made['id']} ({made['agent']} in {made['cwd']})", err=True)
    ctx.exit(_follow(client, made["id"], after=0, epoch=made["epoch"], as_json=as_json))


@session.command()
@click.option("--state", type=click.Choice(SESSION_STATES), help="Only those in this state.")
@click.option("--agent", metavar="NAME", help="Only those with this agent.")
@click.option("--query", "-q", metavar="TEXT", help="Only those whose title or folder has this.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@json_option
@click.pass_context
def ls(
    ctx: click.Context,
    state: str | None,
    agent: str | None,
    query: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List sessions."""
    listed = client_of(ctx).items(
        "/v1/sessions", limit=limit + 1, state=state, agent=agent, q=query
    )
    rows = []
    for item in up_to(limit, listed):
        if as_json:
            print_json(item)
        rows.append(
            [
                item["id"],
                item["state"] + (", cut" if item.get("turn_cut") else ""),
                one_line(item["agent"], 16),
                moment(item["updated_at"]),
                one_line(item["title"] or item["cwd"] or "", 60),
            ]
        )
    if rows and not as_json:
        click.echo(table(["ID", "STATE", "AGENT", "CHANGED", "TITLE"], rows))
    elif not as_json:
        click.echo("No sessions. Start one: holdover session new --attach 'hello'", err=True)


@session.command()
@json_option
@click.argument("id")
@click.pass_context
def show(ctx: click.Context, as_json: bool, id: str) -> None:  # noqa: A002  the word for it
    """Show one session: its state, what it waits for, what is queued."""
    client = client_of(ctx)
    one = client.get(path_of("sessions", resolve_session(client, id)))
    if as_json:
        print_json(one)
        return
    for key, value in _described(one).items():
        click.echo(f"{key:<12} {value}")
    for asked in one["pending"]:
        click.echo(permission_line(asked, asked))
        click.echo(
            f"  answer: holdover session answer {one['id']} {asked['request_id']} allow|deny"
        )


def _described(one: dict[str, Any]) -> dict[str, str]:
    threads = [item for item in one["threads"] if item["thread"] != "main"]
    error = one.get("error")
    context = one.get("context")
    cut = {"agent": "its agent ended", "reboot": "the host was restarted"}.get(
        str(one.get("turn_cut"))
    )
    shown = {
        "id": one["id"],
        "state": one["state"] + (f": {error['message']}" if error else ""),
        "turn": f"cut off: {cut}; `session resume` goes on with it" if cut else None,
        "title": one["title"],
        "agent": one["agent"],
        "model": one["model"],
        "mode": one["permission_mode"],
        "folder": one["cwd"],
        "account": f"{one['account']} (owner {one['owner']})",
        "messages": one["last_seq"],
        "sub-agents": len(threads) or None,
        "queued": len(one["queued"]) or None,
        "cost": f"${one['cost_usd']:.4f}" if one["cost_usd"] else None,
        "context": f"{context['used']} of {context['limit']} tokens" if context else None,
        "created": moment(one["created_at"]),
        "changed": moment(one["updated_at"]),
        "ended": moment(one["ended_at"]) if one["ended_at"] else None,
        "served by": f"generation {one['generation']}, release {one['release']}",
    }
    return {key: one_line(value, 200) for key, value in shown.items() if value not in {None, ""}}


@session.command(epilog="Example: git diff | holdover session send s_k3 - --wait")
@click.option("--wait", is_flag=True, help="Show the answer; exit 0 when the turn succeeded.")
@click.option(
    "--id",
    "prompt_id",
    metavar="UUID",
    help="The prompt's id: the same id again sends nothing twice. Default: a new one.",
)
@json_option
@click.argument("id")
@click.argument("text")
@click.pass_context
def send(
    ctx: click.Context,
    wait: bool,
    prompt_id: str | None,
    as_json: bool,
    id: str,  # noqa: A002
    text: str,
) -> None:
    """Send the prompt TEXT to session ID; - reads it from standard input.

    While the agent is at work the prompt queues. Prints the prompt's id and its place in the log.
    """
    words = read_text(text)
    if prompt_id is not None and not _is_uuid(prompt_id):
        raise CommandError(f"--id must be a UUID, not {prompt_id!r}.", Exit.USAGE)
    client = client_of(ctx)
    session_id = resolve_session(client, id)
    chosen = prompt_id or str(uuid.uuid4())
    answer = submit(client, session_id, chosen, words)
    if not wait:
        shown = {"id": chosen, "seq": answer["seq"]}
        print_json(shown) if as_json else click.echo(f"{chosen} {answer['seq']}")
        return
    ctx.exit(
        wait_for_turn(
            client, session_id, chosen, answer["seq"], as_json=as_json, typing=_typing(as_json)
        )
    )


@session.command()
@click.option(
    "--after",
    type=click.IntRange(0),
    metavar="SEQ",
    help="Begin behind this message. Default: the last page or two.",
)
@json_option
@click.argument("id")
@click.pass_context
def attach(ctx: click.Context, after: int | None, as_json: bool, id: str) -> None:  # noqa: A002
    """Follow session ID live: its text as it is written, its questions, its results.

    On a terminal, a line you type is a prompt, also one like /compact; a key answers what the agent
    asks. Tools' calls and thinking are folded to a line, and Ctrl-O shows the latest whole. Ctrl-C
    stops the turn, a second one leaves, Ctrl-D leaves at once; the session goes on in any case. A
    connection that breaks is made again and goes on in mid-sentence. With --json, prints the frames
    of the stream as they come.
    """
    client = client_of(ctx)
    session_id = resolve_session(client, id)
    epoch = None if after is None else client.get(path_of("sessions", session_id))["epoch"]
    ctx.exit(_follow(client, session_id, after=after, epoch=epoch, as_json=as_json))


def _follow(
    client: Client, session_id: str, *, after: int | None, epoch: str | None, as_json: bool
) -> Exit:
    from holdover.cursor import Cursor
    from holdover.follow import Follower
    from holdover.terminal import usable

    cursor = Cursor(after, epoch)
    if not as_json and usable(sys.stdout):
        from holdover.console import Console

        return Console(client, session_id, cursor).run()
    return Follower(client, session_id, cursor, as_json=as_json, typing=_typing(as_json)).run()


def _typing(as_json: bool) -> bool:
    return not as_json and sys.stdin.isatty()


@session.command(
    epilog="Example: holdover session answer s_k3 p_9f deny --message 'not in production'"
)
@click.option("--message", metavar="TEXT", help="What to tell the agent along with it.")
@click.option("--input", "updated", metavar="JSON", help="Allow, but with this input to the tool.")
@click.option(
    "--remember",
    type=click.IntRange(1),
    metavar="N",
    help="Also accept the agent's N-th suggestion for a lasting rule (`session show --json`).",
)
@json_option
@click.argument("id")
@click.argument("request")
@click.argument("behavior", type=click.Choice(["allow", "deny"]))
@click.pass_context
def answer(
    ctx: click.Context,
    message: str | None,
    updated: str | None,
    remember: int | None,
    as_json: bool,
    id: str,  # noqa: A002
    request: str,
    behavior: str,
) -> None:
    """Allow or deny what the agent of session ID asks in REQUEST."""
    body: dict[str, object] = {"behavior": behavior}
    if updated is not None:
        body["updated_input"] = _json_object(updated)
    if message is not None:
        body["message"] = message
    client = client_of(ctx)
    session_id = resolve_session(client, id)
    one = client.get(path_of("sessions", session_id))
    pending = {item["request_id"]: item for item in one["pending"]}
    # A whole id may name one that is no longer open: the daemon knows how it ended.
    whole = request.startswith("p_") and len(request) == 18
    chosen = request if whole else one_by_prefix(request, list(pending), "open request", "p_")
    if remember is not None:
        suggestions = (pending.get(chosen) or {}).get("suggestions") or []
        if remember > len(suggestions):
            raise CommandError(
                f"{chosen} has {len(suggestions)} suggestions, so there is no number {remember}.",
                Exit.USAGE,
            )
        body["remember"] = suggestions[remember - 1]
    body["request_id"] = chosen
    result = client.post(path_of("sessions", session_id, "answers"), body)
    if as_json:
        print_json(result or {})


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CommandError(f"--input is not JSON: {error}.", Exit.USAGE) from error
    if not isinstance(value, dict):
        raise CommandError("--input must be a JSON object.", Exit.USAGE)
    return value


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


@session.command()
@click.option("--cancel-queued", is_flag=True, help="Drop the prompts that wait behind it, too.")
@json_option
@click.argument("id")
@click.pass_context
def interrupt(ctx: click.Context, cancel_queued: bool, as_json: bool, id: str) -> None:  # noqa: A002
    """Stop the turn of session ID; the session stays and takes the next prompt."""
    client = client_of(ctx)
    path = path_of("sessions", resolve_session(client, id), "interrupt")
    result = client.post(path, {"cancel_queued": cancel_queued})
    if as_json:
        print_json(result or {})


@session.command()
@click.option("--thread", metavar="ID", help="Only this thread: main, or a sub-agent's id.")
@click.option(
    "--after", type=click.IntRange(0), default=0, metavar="SEQ", help="Begin behind this message."
)
@click.option(
    "--seq", type=click.IntRange(1), metavar="SEQ", help="Only this message's body, whole, as JSON."
)
@json_option
@click.argument("id")
@click.pass_context
def log(
    ctx: click.Context,
    thread: str | None,
    after: int,
    seq: int | None,
    as_json: bool,
    id: str,  # noqa: A002
) -> None:
    """Print what was said in session ID, from the beginning.

    With --json one message a line, as the agent wrote it. Bodies of more than 256 KiB are cut short;
    --seq gives one of them whole.
    """
    client = client_of(ctx)
    session_id = resolve_session(client, id)
    if seq is not None:
        print_json(client.get(path_of("sessions", session_id, "messages", str(seq), "body")))
        return
    from holdover.cursor import Stored
    from holdover.render import Style, Transcript

    transcript = Transcript(Style(colour=False))
    while True:
        path = path_of("sessions", session_id, "messages")
        messages = client.get(path, after=after, limit=500)["messages"]
        if not messages:
            return
        for message in messages:
            after = message["seq"]
            if thread is not None and message["thread"] != thread:
                continue
            if as_json:
                print_json(message)
            else:
                click.echo(transcript.render(Stored(message)), nl=False)


@session.command(epilog="Example: holdover session search 'connection reset' --session s_k3")
@click.option("--session", "within", metavar="ID", help="Only in this session. Default: in all.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@json_option
@click.argument("words", nargs=-1, required=True)
@click.pass_context
def search(
    ctx: click.Context, within: str | None, limit: int, as_json: bool, words: tuple[str, ...]
) -> None:
    """Search everything that was said, the latest first.

    Finds messages that hold all WORDS, in whatever case and order. A WORDS argument of several
    words is looked for as it stands; one that ends in * finds words that begin so.
    """
    client = client_of(ctx)
    query = " ".join(
        f'"{each}"' if len(each.split()) > 1 and '"' not in each else each for each in words
    )
    session_id = None if within is None else resolve_session(client, within)
    hits = client.items("/v1/search", limit=limit + 1, q=query, session=session_id)
    rows = []
    for hit in up_to(limit, hits):
        if as_json:
            print_json(hit)
        rows.append(
            [hit["session"], str(hit["seq"]), moment(hit["at"]), one_line(hit["snippet"], 260)]
        )
    if rows and not as_json:
        click.echo(table(["SESSION", "SEQ", "SAID", "TEXT"], rows))
    elif not as_json:
        click.echo("Nothing found.", err=True)


@session.command()
@click.option("--purge", is_flag=True, help="Delete its messages too. This cannot be undone.")
@click.option("--yes", is_flag=True, help="Do not ask before --purge.")
@click.argument("id")
@click.pass_context
def end(ctx: click.Context, purge: bool, yes: bool, id: str) -> None:  # noqa: A002
    """End session ID: its agent stops, its log stays unless --purge is given."""
    client = client_of(ctx)
    session_id = resolve_session(client, id)
    if purge and not yes:
        confirm("--purge deletes the log", f"Delete everything said in {session_id}?")
    client.delete(path_of("sessions", session_id), purge=True if purge else None)
    if not purge and sys.stderr.isatty():
        one = client.get(path_of("sessions", session_id))
        if one["agent"] != "claude":
            return
        click.echo(
            f"The agent's own memory stays with {one_line(one['account'])}; to go on in its "
            f"terminal: cd {one_line(one['cwd'])} && claude --resume {one['agent_session']}",
            err=True,
        )


@session.command()
@click.option("--all", "every", is_flag=True, help="Every session whose turn was cut off.")
@json_option
@click.argument("id", required=False)
@click.pass_context
def resume(ctx: click.Context, every: bool, as_json: bool, id: str | None) -> None:  # noqa: A002
    """Start the agent of the dormant session ID again, without waiting for a prompt.

    A turn that was cut off, by a reboot for one, is gone on with. --all does that for every such
    session, and prints their ids.
    """
    if every == (id is not None):
        raise CommandError("Say which session, or --all for those cut off.", Exit.USAGE)
    client = client_of(ctx)
    if id is not None:
        result = client.post(path_of("sessions", resolve_session(client, id), "resume"), {})
        if as_json:
            print_json(result or {})
        return
    # Listed to the end first: a session that is resumed moves in the list.
    listed = [
        one
        for one in client.items("/v1/sessions", limit=100_000)
        if one.get("turn_cut") and one["state"] != "ended"  # whoever ended it, meant it
    ]
    failed = 0
    for one in listed:
        try:
            client.post(path_of("sessions", one["id"], "resume"), {})
        except CommandError as error:
            failed += 1
            click.echo(f"{one['id']}: {error.message}", err=True)
            continue
        print_json({"id": one["id"]}) if as_json else click.echo(one["id"])
    if not listed:
        click.echo("No session's turn is cut off.", err=True)
    if failed:
        raise CommandError(f"{failed} of {len(listed)} sessions could not be resumed; see above.")


@session.command(
    epilog="Example: holdover session adopt 3f0c…-…; the id is what `claude --resume` shows"
)
@click.option("--cwd", metavar="DIR", help="Where it was begun. Default: this folder.")
@click.option("--account", metavar="NAME", help="Whose it is, for administrators. Default: yours.")
@click.option("--agent", metavar="NAME", help="Which agent. Default: the daemon's default agent.")
@click.option("--attach", is_flag=True, help="Stay, and take prompts.")
@json_option
@click.argument("agent_session", metavar="UUID")
@click.pass_context
def adopt(
    ctx: click.Context,
    cwd: str | None,
    account: str | None,
    agent: str | None,
    attach: bool,
    as_json: bool,
    agent_session: str,
) -> None:
    """Go on with a conversation of Claude Code that was begun on the host without Holdover.

    UUID is the conversation's id, in ~/.claude of the account that the agent runs as. Leave it in
    the other terminal first: two agents on one conversation overwrite each other. To hand it back,
    end the session and go on with `claude --resume UUID` in the same folder.
    """
    client = client_of(ctx)
    if cwd is None and client.door.socket is None:
        raise CommandError("Say --cwd: this folder is not one of the host's.", Exit.USAGE)
    if client.door.socket is not None:
        cwd = os.path.abspath(os.path.expanduser(cwd or "."))
    asked = {"agent_session": agent_session, "cwd": cwd, "account": account, "agent": agent}
    body = {key: value for key, value in asked.items() if value is not None}
    made = client.post("/v1/sessions/adopt", body)
    if not attach:
        print_json(made) if as_json else click.echo(made["id"])
        return
    click.echo(f"Session {made['id']} ({made['agent']} in {made['cwd']})", err=True)
    ctx.exit(_follow(client, made["id"], after=0, epoch=made["epoch"], as_json=as_json))
