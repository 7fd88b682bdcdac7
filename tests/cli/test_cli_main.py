"""The entry: help that loads nothing, misuse that says one specific thing."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from holdover.main import COMMANDS, cli
from tests.cli.conftest import Holdover


def loaded_by(*args: str) -> set[str]:
    """The modules that `holdover ARGS` has imported when it ends."""
    code = (
        "import sys; from holdover.main import run; code = run(sys.argv[1:]);"
        "print('\\n' + ' '.join(sys.modules)); sys.exit(code)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        timeout=60,
    )
    return set(ran.stdout.splitlines()[-1].split())


def test_help_imports_click_and_its_own_table_only() -> None:
    ours = {name for name in loaded_by("--help") if name.partition(".")[0] == "holdover"}
    assert ours == {"holdover", "holdover.main", "holdover.exits"}


@pytest.mark.parametrize("args", [["--help"], ["session", "new", "--help"], ["config", "show"]])
def test_no_command_but_up_imports_the_daemons_libraries(args: list[str], home: Path) -> None:
    heavy = {"trio", "boto3", "rich", "msgspec", "sqlalchemy", "websockets", "h11"}
    assert loaded_by(*args) & heavy == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_table_of_commands_agrees_with_the_commands(name: str) -> None:
    module, text = COMMANDS[name]
    command = getattr(importlib.import_module(module), name.replace("-", "_"))
    assert command.name == name
    assert command.get_short_help_str(limit=200) == text


def test_every_command_and_option_explains_itself() -> None:
    def check(command: click.Command, path: str) -> None:
        assert command.help, path
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                explained = parameter.help or parameter.show_default
                assert explained, f"{path} {parameter.opts}"
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                check(found, f"{path} {name}")

    check(cli, "holdover")


def test_misspelt_command_names_the_near_one(holdover: Holdover) -> None:
    ran = holdover("sesion")
    assert ran.code == 2
    assert "There is no command 'sesion'. Did you mean 'session'?" in ran.err


@pytest.mark.parametrize("args", [["session"], ["--nope"], ["session", "send"], ["token", "new"]])
def test_misuse_exits_2(holdover: Holdover, args: list[str]) -> None:
    assert holdover(*args).code == 2


def test_config_show_tells_every_key_with_its_source(holdover: Holdover, home: Path) -> None:
    (home / "etc").mkdir()
    (home / "etc" / "holdover.toml").write_text('[server]\nhosts = ["a.example"]\n')
    out = holdover("config", "show").out
    assert f'hosts = ["a.example"]  # from {home}/etc/holdover.toml:2' in out
    assert "[agents.demo]" in out
    items = [json.loads(line) for line in holdover("config", "show", "--json").out.splitlines()]
    by_key = {(item["section"], item["key"]): item for item in items}
    assert by_key["drain", "idle_handover_s"]["value"] == 300
    assert by_key["sessions", "max_live"]["source"] == "default"


def test_config_shown_may_be_written_back(holdover: Holdover, home: Path) -> None:
    shown = holdover("config", "show").out
    (home / "etc").mkdir()
    (home / "etc" / "holdover.toml").write_text(shown)
    again = holdover("config", "show")
    assert again.code == 0
    values = [line.partition("  # from")[0] for line in again.out.splitlines()]
    assert values == shown.splitlines()


def test_config_check_names_file_and_line(holdover: Holdover, home: Path) -> None:
    assert "No mistakes in the defaults" in holdover("config", "check").out
    (home / "etc" / "holdover.d").mkdir(parents=True)
    file = home / "etc" / "holdover.d" / "10-x.toml"
    file.write_text("[sessions]\n\nmax_lve = 3\n")
    ran = holdover("config", "check")
    assert ran.code == 1
    assert f"{file}:3: unknown key 'max_lve' in [sessions]; did you mean 'max_live'?" in ran.err


def test_up_without_the_daemons_libraries_says_how_to_get_them(
    holdover: Holdover, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trio", None)
    for name in [name for name in sys.modules if name.startswith("holdoverd.supervisor")]:
        monkeypatch.delitem(sys.modules, name)
    ran = holdover("up")
    assert ran.code == 1
    assert "holdover[daemon]" in ran.err
