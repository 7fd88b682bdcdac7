"""`holdover config`: the configuration of this machine, as the daemon would read it."""

import os
from typing import TYPE_CHECKING, Any

import click

from holdover.commands.options import json_option, print_json
from holdover.exits import CommandError

if TYPE_CHECKING:
    from holdoverd.settings import Settings


@click.group(short_help="Show, check and apply the configuration of this machine.")
def config() -> None:
    """Show, check and apply the configuration of this machine.

    Read are /etc/holdover/holdover.toml, /etc/holdover/holdover.d/*.toml in order of name (or the
    same below HOLDOVER_CONFIG_DIR), and HOLDOVER_SECTION_KEY from the environment of this command.
    """


@config.command()
@json_option
def show(as_json: bool) -> None:
    """Print every key: its value, where that came from, what it means."""
    settings = _load()
    section = ""
    for item in _values(settings):
        if as_json:
            print_json(item)
            continue
        if item["section"] != section:
            section = item["section"]
            click.echo(f"\n[{section}]" if section != "server" else f"[{section}]")
        unit = f" ({item['unit']})" if item["unit"] else ""
        source = "" if item["source"] == "default" else f"  # from {item['source']}"
        click.echo(f"# {item['help']}{unit}")
        click.echo(f"{item['key']} = {_toml(item['value'])}{source}")


@config.command()
def check() -> None:
    """Read the configuration and say whether the daemon would accept it."""
    from holdoverd.settings import config_files

    _load()
    files = config_files(os.environ)
    click.echo(f"No mistakes in {', '.join(map(str, files)) or 'the defaults; there is no file'}.")


@config.command(epilog="Example: holdover config check && sudo holdover config apply")
def apply() -> None:
    """Have what runs here take up the configuration as it is now, gently.

    That is a deploy of the release that runs: a daemon with the new configuration is tried beside the
    old and takes over from it, no connection is closed, and one that cannot start with it is taken
    back. Agents that run go on as they were started. A mistake is told before anything is done.
    """
    from holdover.commands.deploy import deploy_present

    _load()
    deploy_present(lambda sentence: click.echo(f"  {sentence}", err=True))


def _load() -> "Settings":
    from holdoverd.errors import SettingsError
    from holdoverd.settings import load_default

    try:
        return load_default(os.environ)
    except SettingsError as error:
        raise CommandError(str(error)) from error


def _values(settings: "Settings") -> list[dict[str, Any]]:
    from holdoverd.settings import SETTINGS

    found: list[dict[str, Any]] = []
    named: dict[str, tuple[str, Any]] = {
        f"{kind}.{name}": (f"{kind}.NAME", one)
        for kind, all_of_it in (("agents", settings.agents), ("processors", settings.processors))
        for name, one in all_of_it.items()
    }
    plain = dict.fromkeys(row.section for row in SETTINGS if not row.section.endswith(".NAME"))
    sections = {name: (name, getattr(settings, name)) for name in plain} | named
    for section, (kind, owner) in sections.items():
        for row in SETTINGS:
            if row.section != kind:
                continue
            value = getattr(owner, row.key)
            found.append(
                {
                    "section": section,
                    "key": row.key,
                    "value": dict(value) if row.kind == "pairs" else value or _empty(value),
                    "unit": row.unit,
                    "source": settings.sources.get(f"{section}.{row.key}", "default"),
                    "help": row.help,
                }
            )
    return found


def _empty(value: object) -> object:
    return "" if value is None else value


def _toml(value: object) -> str:
    import json

    if isinstance(value, dict):
        pairs = ", ".join(f"{key} = {json.dumps(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return json.dumps(value)
