"""Writes what the program's own tables say, for people who look elsewhere than `--help`.

    python packaging/manual.py FOLDER

man1/holdover*.1 from the commands' help, man5/holdover.toml.5 and holdover.toml (every setting, as
a comment at its default) from the table of settings, and completions for three shells. Run by an
interpreter that has Holdover installed; the same input gives the same bytes.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from holdover.main import COMMANDS, cli
from holdoverd import __version__
from holdoverd.settings import SETTINGS, Setting

WIDTH = 98

CONFIG_HEAD = """\
# Holdover's configuration. Every setting stands here, at its default: take away the "#" before its
# line to change it, then `holdover config check`, then `holdover config apply`, which closes no
# connection (or, with a reconnect for those who watch, `systemctl restart 'holdoverd@*'`).
#
# Files in holdover.d/*.toml are read after this one, in order of name, and then the environment:
# HOLDOVER_SECTION_KEY. `holdover config show` prints what is in force, and where it came from.
"""

SEE_ALSO = (".SH SEE ALSO", ".BR holdover (1),", ".BR holdover.toml (5),", ".BR systemctl (1)")


# --- the configuration ------------------------------------------------------------------------


def sections() -> list[str]:
    return list(dict.fromkeys(row.section for row in SETTINGS))


def toml(value: object) -> str:
    """A default as TOML; a mapping's is a tuple of pairs, and empty."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def default_text(row: Setting) -> str:
    return "{}" if row.kind == "pairs" else toml(row.default)


def bounds(row: Setting) -> str:
    """What may stand there, in words; "" where the default shows it."""
    if row.kind in ("int", "number"):
        low, high = (f"{bound:.6f}".rstrip("0").rstrip(".") for bound in (row.low, row.high))
        return f"{low} to {high} {row.unit}".strip()
    if row.kind == "choice":
        return "one of " + ", ".join(json.dumps(choice) for choice in row.choices)
    return row.unit


def default_configuration() -> str:
    text = CONFIG_HEAD
    for section in sections():
        # A section with a name of the reader's own cannot stand there without one.
        generic = section.endswith(".NAME")
        text += f"\n{'#' if generic else ''}[{section}]\n"
        for row in SETTINGS:
            if row.section != section:
                continue
            allowed = bounds(row)
            words = row.help + (f" ({allowed})" if allowed else "")
            lines = textwrap.wrap(words, WIDTH, initial_indent="# ", subsequent_indent="# ")
            text += "\n".join([*lines, f"#{row.key} = {default_text(row)}", ""])
    return text


# --- man pages --------------------------------------------------------------------------------


def roff(text: str) -> str:
    """Plain text for troff: nothing in it is a request or an escape."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return re.sub(r"^(?=[.'])", r"\\&", escaped, flags=re.MULTILINE)


def title(name: str, section: int) -> str:
    day = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", "0"))))
    return f'.TH "{name.upper()}" "{section}" "{day}" "Holdover {__version__}" "Holdover"'


def paragraphs(text: str) -> Iterator[str]:
    """Each paragraph of a help text; what click marks as preformatted stays so."""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if paragraph.startswith("\b"):
            yield from (".PP", ".nf", roff(paragraph.lstrip("\b\n")), ".fi")
        else:
            yield from (".PP", roff(" ".join(paragraph.split())))


def options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Argument):
            continue  # the usage line has it
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in record[0]:
            yield from (".TP", f".B {roff(record[0])}", roff(record[1]))


def usage(command: click.Command, context: click.Context) -> str:
    return " ".join([context.command_path, *command.collect_usage_pieces(context)])


def body(command: click.Command, context: click.Context) -> Iterator[str]:
    yield from paragraphs(command.help or command.get_short_help_str(200))
    yield from options(command, context)
    if command.epilog:
        yield from (".PP", roff(command.epilog))


def command_page(name: str) -> str:
    """holdover-NAME(1): the command, and its own commands one after the other."""
    root = click.Context(cli, info_name="holdover")
    command = cli.get_command(root, name)
    assert command is not None, f"{name} is in the table"
    context = click.Context(command, info_name=name, parent=root)
    lines = [title(f"holdover-{name}", 1), ".SH NAME"]
    lines.append(roff(f"holdover-{name} - {COMMANDS[name][1].rstrip('.')}"))
    lines += [".SH SYNOPSIS", f".B {roff(usage(command, context))}", ".SH DESCRIPTION"]
    lines += body(command, context)
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for below in command.list_commands(context):
            child = command.get_command(context, below)
            assert child is not None
            if child.hidden:
                continue
            inner = click.Context(child, info_name=below, parent=context)
            lines.append(f'.SS "{roff(usage(child, inner))}"')
            lines += body(child, inner)
    return "\n".join([*lines, *SEE_ALSO]) + "\n"


def main_page() -> str:
    context = click.Context(cli, info_name="holdover")
    lines = [title("holdover", 1), ".SH NAME"]
    lines.append(roff("holdover - keeps agent sessions running while everything else is replaced"))
    lines += [".SH SYNOPSIS", f".B {roff(usage(cli, context))}", ".SH DESCRIPTION"]
    lines += body(cli, context)
    lines.append(".SH COMMANDS")
    for name, (_, text) in COMMANDS.items():
        lines += [".TP", f".BR holdover\\-{roff(name)} (1)", roff(text)]
    lines.append(".SH FILES")
    for path, text in (
        ("/etc/holdover/holdover.toml", "The configuration."),
        ("/opt/holdover/releases", "Releases, each with an environment of its own."),
        ("/var/lib/holdover", "The catalogue and the spools; the daemon's alone."),
        ("/var/lib/holdover-agent", "The home of the default account, with its workspaces."),
        ("/run/holdover/admin.sock", "The admin door, for members of the group holdover-admin."),
        (
            "/usr/share/doc/holdover/RECOVERY.md",
            "Upgrading, and what to type for each thing that can be wrong.",
        ),
    ):
        lines += [".TP", f".I {roff(path)}", roff(text)]
    lines += [".SH EXIT STATUS", roff("See above; the same for every command.")]
    return "\n".join([*lines, *SEE_ALSO]) + "\n"


def configuration_page() -> str:
    lines = [
        title("holdover.toml", 5),
        ".SH NAME",
        roff("holdover.toml - Holdover's configuration"),
    ]
    lines += [".SH SYNOPSIS", ".I /etc/holdover/holdover.toml", ".br"]
    lines += [".I /etc/holdover/holdover.d/*.toml", ".SH DESCRIPTION"]
    lines += paragraphs(
        "TOML. The files of holdover.d are read after holdover.toml, in order of name, then the "
        "environment: HOLDOVER_SECTION_KEY. Later values win. A key that is not known is an error "
        "that names its line.\n\n`holdover config show` prints what is in force and where it came "
        "from; `holdover config check` finds mistakes. A changed file is read by the next daemon: "
        "`holdover config apply` starts one without closing a connection."
    )
    for section in sections():
        lines.append(f'.SH "[{roff(section)}]"')
        for row in SETTINGS:
            if row.section == section:
                allowed = bounds(row)
                more = f" ({allowed})" if allowed else ""
                lines += [".TP", f".B {roff(f'{row.key} = {default_text(row)}')}"]
                lines.append(roff(row.help + more))
    return "\n".join([*lines, *SEE_ALSO]) + "\n"


# --- completions ------------------------------------------------------------------------------

COMPLETIONS: dict[str, type[ShellComplete]] = {  # {where Debian looks for it: what makes it}
    "bash-completion/completions/holdover": BashComplete,
    "zsh/vendor-completions/_holdover": ZshComplete,
    "fish/vendor_completions.d/holdover.fish": FishComplete,
}


def completion(kind: type[ShellComplete]) -> str:
    # Not BashComplete.source(), which would ask the bash of the machine that builds.
    return ShellComplete.source(kind(cli, {}, "holdover", "_HOLDOVER_COMPLETE")).strip() + "\n"


def files() -> dict[str, str]:
    """{path below FOLDER: its text}"""
    found = {"holdover.toml": default_configuration(), "man/man1/holdover.1": main_page()}
    found["man/man5/holdover.toml.5"] = configuration_page()
    found |= {f"man/man1/holdover-{name}.1": command_page(name) for name in COMMANDS}
    return found | {path: completion(kind) for path, kind in COMPLETIONS.items()}


def main() -> None:
    folder = Path(sys.argv[1])
    for name, text in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
