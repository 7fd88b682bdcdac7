"""`holdover skill` and `holdover marketplace`: what agents know, added, versioned and undone."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import click

from holdover.client import Client, path_of
from holdover.commands.options import client_of, json_option, print_json
from holdover.exits import CommandError, Exit
from holdover.render import moment, one_line, sanitise, table

Item = dict[str, Any]
_Function = TypeVar("_Function", bound=Callable[..., Any])

TIMEOUT_S = 180.0
"""A git source may take a minute, a plugin two."""
SHOWN_DIGITS = 12


def place_options(function: _Function) -> _Function:
    """Add --project as `project`: a folder, by its absolute path."""
    return click.option(
        "--project",
        metavar="FOLDER",
        callback=lambda _ctx, _param, value: None if value is None else os.path.abspath(value),
        help="The skills of this project (.claude/skills in FOLDER) instead of personal ones.",
    )(function)


def yes_option(function: _Function) -> _Function:
    return click.option(
        "--yes",
        "-y",
        "trust",
        is_flag=True,
        help="Install what is executable in it, too. Without this it is named and refused.",
    )(function)


def _place(project: str | None) -> Item:
    return {"scope": "personal"} if project is None else {"scope": "project", "cwd": project}


def _client(ctx: click.Context) -> Client:
    return replace(client_of(ctx), timeout_s=TIMEOUT_S)


@click.group(short_help="See, add, version and undo what agents know.")
def skill() -> None:
    """See, add, version and undo what agents know.

    Skills are folders with a SKILL.md, in ~/.claude/skills of the account that agents run as, or in
    .claude/skills of a project. What changes is kept, and rollback brings it back; a change of many is
    done whole or not at all. Sessions that run pick it up when they are idle.
    """


@skill.command()
@place_options
@click.option("--all", "everything", is_flag=True, help="Those that no agent loads, too.")
@json_option
@click.pass_context
def ls(ctx: click.Context, project: str | None, everything: bool, as_json: bool) -> None:
    """List the skills that a session would see, and which of several of a name it loads."""
    found = _client(ctx).get("/v1/skills", cwd=project)["items"]
    if as_json:
        for item in found:
            print_json(item)
        return
    shown = [item for item in found if everything or item["effective"] or item["problems"]]
    rows = [
        [
            one_line(item["called"], 40),
            item["scope"],
            state_of(item),
            (item["version"] or "")[:SHOWN_DIGITS],
            str(item["tokens"]),
            one_line("; ".join(item["problems"]) or item["description"], 70),
        ]
        for item in shown
    ]
    if rows:
        click.echo(table(["NAME", "FROM", "STATE", "VERSION", "TOKENS", ""], rows))
    hidden = len(found) - len(shown)
    if hidden:
        click.echo(f"{hidden} more that no agent loads; --all shows them.", err=True)
    if not found:
        click.echo("No skills. Install some: holdover skill add FOLDER", err=True)


def state_of(item: Item) -> str:
    """In words: what an agent makes of it, and what is particular about it."""
    words = ["loaded" if item["effective"] else "hidden" if item["enabled"] else "disabled"]
    for name in ("pinned", "modified"):
        if item[name]:
            words.append(name)
    if item["update"]:
        words.append("update")
    if item["problems"]:
        words.append("problems")
    return ",".join(words)


@skill.command(
    epilog="Examples: holdover skill add ./skills --all · holdover skill add "
    "https://github.com/anthropics/skills 'pdf*' --ref main · holdover skill add name@marketplace"
)
@click.argument("source")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--all", "everything", is_flag=True, help="All skills that SOURCE holds.")
@click.option("--ref", metavar="REF", help="Branch, tag or commit of a git source. Default: HEAD.")
@click.option("--folder", metavar="FOLDER", help="Look for skills in this folder of SOURCE only.")
@click.option(
    "--replace", "instead", is_flag=True, help="Instead of a skill that was made by hand, too."
)
@yes_option
@place_options
@json_option
@click.pass_context
def add(
    ctx: click.Context,
    source: str,
    names: tuple[str, ...],
    everything: bool,
    ref: str | None,
    folder: str | None,
    instead: bool,
    trust: bool,
    project: str | None,
    as_json: bool,
) -> None:
    """Install skills from SOURCE: a folder, a .zip, a git URL, or plugin@marketplace.

    NAME may be a pattern in quotes. With several skills in SOURCE give names or --all; all of them are
    installed, or none. A folder or archive has to be readable by the account that agents run as.
    """
    if names and everything:
        raise CommandError("Give names or --all, not both.", Exit.USAGE)
    body: Item = {
        "source": full_source(source),
        "all": everything,
        "trust": trust,
        "replace": instead,
        **_place(project),
        **({"names": list(names)} if names else {}),
        **({"ref": ref} if ref is not None else {}),
        **({"folder": folder} if folder is not None else {}),
    }
    print_changes(_client(ctx).post("/v1/skills", body), as_json)


def full_source(source: str) -> str:
    """A path as an absolute one: the account has another working folder."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) or source.startswith("~"):
        return source
    is_path = source.startswith((".", "/")) or os.path.exists(source)
    return os.path.abspath(source) if is_path else source


def print_changes(answer: Item, as_json: bool) -> None:
    for one in answer["changed"]:
        if as_json:
            print_json(one)
            continue
        before, after = one.get("from"), one.get("to")
        if one.get("note"):
            said = one["note"]
        elif not one["changed"]:
            said = "unchanged"
        elif before or after:
            said = f"{(before or 'none')[:SHOWN_DIGITS]} -> {(after or 'none')[:SHOWN_DIGITS]}"
        else:
            said = "done"
        click.echo(f"{one_line(one['name'], 80)}  {one_line(said, 200)}")


def _change(
    ctx: click.Context,
    op: str,
    names: tuple[str, ...],
    project: str | None,
    as_json: bool,
    **more: Any,
) -> None:
    body: Item = {**_place(project), **more}
    client = _client(ctx)
    if len(names) == 1 and not set(names[0]) & set("*?["):
        answer = client.post(path_of("skills", names[0], op), body)
    else:
        answer = client.post("/v1/skills/batch", {"op": op, "names": list(names), **body})
    print_changes(answer, as_json)


def _names(names: tuple[str, ...], everything: bool) -> tuple[str, ...]:
    if bool(names) == everything:
        raise CommandError("Give names (or patterns in quotes), or --all.", Exit.USAGE)
    return names or ("*",)


@skill.command(epilog="Example: holdover skill diff pdf && holdover skill update pdf")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--all", "everything", is_flag=True, help="All that are not pinned.")
@yes_option
@place_options
@json_option
@click.pass_context
def update(
    ctx: click.Context,
    names: tuple[str, ...],
    everything: bool,
    trust: bool,
    project: str | None,
    as_json: bool,
) -> None:
    """Bring skills to what their source holds now. All of them change, or none."""
    _change(ctx, "update", _names(names, everything), project, as_json, trust=trust)


@skill.command()
@click.argument("name")
@click.option("--to", metavar="VERSION", help="A kept version. Default: what the source holds now.")
@place_options
@json_option
@click.pass_context
def diff(ctx: click.Context, name: str, to: str | None, project: str | None, as_json: bool) -> None:
    """Show what an update of skill NAME, or a rollback to VERSION, would change."""
    found = _client(ctx).get(path_of("skills", name, "diff"), to=to, **_place(project))
    if as_json:
        print_json(found)
        return
    for file in found["files"]:
        click.echo(sanitise(file["diff"] or f"{file['change']}: {file['path']} (not text)"))
    for line in found["executables"]:
        click.echo(f"Executable: {one_line(line, 300)}", err=True)
    if not found["files"]:
        click.echo("No difference.", err=True)


@skill.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--to", metavar="VERSION", help="A kept version of NAME. Default: the one before.")
@place_options
@json_option
@click.pass_context
def rollback(
    ctx: click.Context, names: tuple[str, ...], to: str | None, project: str | None, as_json: bool
) -> None:
    """Bring back what was there before the last change, or what was removed."""
    if to is not None and len(names) != 1:
        raise CommandError("--to is about one skill.", Exit.USAGE)
    _change(ctx, "rollback", names, project, as_json, **({"to": to} if to else {}))


@skill.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--off", is_flag=True, help="Let updates change it again.")
@place_options
@json_option
@click.pass_context
def pin(
    ctx: click.Context, names: tuple[str, ...], off: bool, project: str | None, as_json: bool
) -> None:
    """Keep skills at their version, whatever is updated."""
    _change(ctx, "unpin" if off else "pin", names, project, as_json)


@skill.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--all", "everything", is_flag=True, help="All that are disabled.")
@place_options
@json_option
@click.pass_context
def enable(
    ctx: click.Context, names: tuple[str, ...], everything: bool, project: str | None, as_json: bool
) -> None:
    """Put disabled skills (or a plugin) back where agents see them."""
    _change(ctx, "enable", _names(names, everything), project, as_json)


@skill.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--all", "everything", is_flag=True, help="All there are.")
@place_options
@json_option
@click.pass_context
def disable(
    ctx: click.Context, names: tuple[str, ...], everything: bool, project: str | None, as_json: bool
) -> None:
    """Take skills (or a plugin) out of agents' sight; they are kept."""
    _change(ctx, "disable", _names(names, everything), project, as_json)


@skill.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@place_options
@click.pass_context
def rm(ctx: click.Context, names: tuple[str, ...], project: str | None) -> None:
    """Remove skills (or uninstall a plugin). `rollback` brings a skill back."""
    body = {"op": "remove", "names": list(names), **_place(project)}
    print_changes(_client(ctx).post("/v1/skills/batch", body), as_json=False)


@skill.command(epilog="Example: holdover skill browse anthropics-skills pdf")
@click.argument("marketplace")
@click.argument("words", nargs=-1, metavar="[WORD...]")
@click.option("--refresh", is_flag=True, help="Fetch the marketplace's index anew first.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@json_option
@click.pass_context
def browse(
    ctx: click.Context,
    marketplace: str,
    words: tuple[str, ...],
    refresh: bool,
    limit: int,
    as_json: bool,
) -> None:
    """List the plugins of MARKETPLACE that have every WORD in name, description or keywords."""
    client = _client(ctx)
    path = path_of("marketplaces", marketplace)
    q = " ".join(words) or None
    page = client.get(path, q=q, limit=min(limit, 500), refresh=refresh or None)
    items = page["items"]
    while page["next"] is not None and len(items) < limit:
        page = client.get(path, q=q, limit=min(limit - len(items), 500), cursor=page["next"])
        items += page["items"]
    if as_json:
        for item in items:
            print_json(item)
    elif items:
        rows = [
            [
                one_line(item["plugin"], 60),
                "installed" if item["installed"] else "",
                one_line(item["version"] or "", 12),
                one_line(item["description"], 80),
            ]
            for item in items
        ]
        click.echo(table(["PLUGIN", "", "VERSION", ""], rows))
    if page["total"] > len(items):
        click.echo(f"There are {page['total']}; --limit shows more.", err=True)
    if page["problems"]:
        click.echo(
            f"{len(page['problems'])} entries of its index are broken and left out; the first:"
            f" {one_line(page['problems'][0], 200)}",
            err=True,
        )


@click.group(short_help="Say where plugins come from.")
def marketplace() -> None:
    """Say where plugins come from: Claude Code's marketplaces, by its own commands."""


@marketplace.command("add", epilog="Example: holdover marketplace add anthropics/skills")
@click.argument("source")
@json_option
@click.pass_context
def add_marketplace(ctx: click.Context, source: str, as_json: bool) -> None:
    """Add the marketplace at SOURCE: owner/repo on GitHub, a git or https URL, or a folder."""
    made = _client(ctx).post("/v1/marketplaces", {"source": full_source(source)})
    print_json(made) if as_json else click.echo(one_line(made["name"]))


@marketplace.command("ls")
@json_option
@click.pass_context
def list_marketplaces(ctx: click.Context, as_json: bool) -> None:
    """List the marketplaces of the account."""
    found = _client(ctx).get("/v1/marketplaces")["items"]
    if as_json:
        for item in found:
            print_json(item)
    elif found:
        rows = [
            [
                one_line(item["name"], 60),
                moment(item["updated_at"]) if item["updated_at"] else "",
                one_line(item["source"], 80),
            ]
            for item in found
        ]
        click.echo(table(["NAME", "UPDATED", "SOURCE"], rows))
    else:
        click.echo("No marketplaces. Add one: holdover marketplace add OWNER/REPO", err=True)


@marketplace.command("rm")
@click.argument("name")
@click.pass_context
def remove_marketplace(ctx: click.Context, name: str) -> None:
    """Remove marketplace NAME, and the plugins from it."""
    _client(ctx).delete(path_of("marketplaces", name))
