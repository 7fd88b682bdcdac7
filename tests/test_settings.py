"""The settings: every key from every place, every mistake by file and line."""

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd import settings as settings_module
from holdoverd.errors import SettingsError
from holdoverd.settings import (
    SETTINGS,
    AgentSettings,
    ProcessorSettings,
    Settings,
    config_files,
    load,
    load_default,
)
from holdoverd.toml_lines import find_line


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "holdover.toml"


def refused(paths: list[Path], env: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load(paths, env or {})
    return str(caught.value)


def test_defaults_are_those_of_the_table() -> None:
    settings = load([], {})
    for row in SETTINGS:
        if not row.section.endswith(".NAME"):
            section = getattr(settings, row.section)
            assert getattr(section, row.key) == row.default, row
            assert settings.sources[f"{row.section}.{row.key}"] == "default"


def test_records_have_exactly_the_keys_of_the_table() -> None:
    for name, kind in {
        **settings_module._TYPES,
        "agents.NAME": AgentSettings,
        "processors.NAME": ProcessorSettings,
    }.items():
        fields = {field.name for field in dataclasses.fields(kind)} - {"name"}
        assert fields == {row.key for row in SETTINGS if row.section == name}


def test_table_explains_every_key_and_names_units_where_there_are_numbers() -> None:
    for row in SETTINGS:
        assert row.help.endswith("."), row
        assert bool(row.unit) == (row.kind in {"int", "number"}), row
        assert not row.key.endswith("_s") or row.unit == "seconds"


def test_settings_are_frozen_through_and_through() -> None:
    settings = load([], {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.sessions.max_live = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.agents["x"] = settings.agents["demo"]  # type: ignore[index]
    with pytest.raises(TypeError):
        settings.agents["demo"].env["A"] = "b"  # type: ignore[index]


def test_later_files_win_and_the_environment_wins_over_them(tmp_path: Path) -> None:
    (tmp_path / "holdover.toml").write_text("[sessions]\nmax_live = 1\nroots = ['/a']\n")
    drop_ins = tmp_path / "holdover.d"
    drop_ins.mkdir()
    (drop_ins / "20.toml").write_text("[sessions]\nmax_live = 20\n")
    (drop_ins / "10.toml").write_text("[sessions]\nmax_live = 10\n")
    (drop_ins / "README").write_text("not TOML")
    env = {"HOLDOVER_CONFIG_DIR": str(tmp_path)}
    settings = load_default(env)
    assert (settings.sessions.max_live, settings.sessions.roots) == (20, ("/a",))
    assert settings.sources["sessions.max_live"] == f"{drop_ins}/20.toml:2"
    settings = load_default({**env, "HOLDOVER_SESSIONS_MAX_LIVE": "30"})
    assert settings.sessions.max_live == 30
    assert settings.sources["sessions.max_live"] == "HOLDOVER_SESSIONS_MAX_LIVE"


def test_folder_that_is_not_there_is_no_mistake(tmp_path: Path) -> None:
    assert config_files({"HOLDOVER_CONFIG_DIR": str(tmp_path / "none")}) == []


def test_unknown_key_names_line_and_the_nearest_known_one(file: Path) -> None:
    file.write_text("# a comment\n[server]\nhosts = []\n\n[sessions]\nmax_lve = 3\n")
    message = refused([file])
    assert message.startswith(
        f"{file}:6: unknown key 'max_lve' in [sessions]; did you mean 'max_live'?"
    )


def test_unknown_section_names_line_and_the_nearest_known_one(file: Path) -> None:
    file.write_text("[server]\n[sesions]\nmax_live = 3\n")
    message = refused([file])
    assert f"{file}:2: unknown section [sesions]" in message
    assert "'sessions'" in message


@pytest.mark.parametrize(
    "text",
    [
        "max_live = 3\n",
        "[server]\n[storge]\nendpoint = 'x'\n",
        "[procesors.x]\ncommand = ['x']\n",
        "[processors.x]\ncommand = ['x']\ntimeout = 5\n",
        '["agents.NAME"]\ncommand = ["x"]\n',
        "[agents.claude]\ncomand = ['x']\n",
    ],
)
def test_what_the_table_does_not_know_is_never_ignored(file: Path, text: str) -> None:
    file.write_text(text)
    assert "unknown" in refused([file])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[sessions]\nmax_live = '3'", "2: max_live must be a number of sessions"),
        ("[sessions]\nmax_live = 3.5", "2: max_live must be a number of sessions"),
        ("[sessions]\nmax_live = true", "2: max_live must be a number of sessions"),
        ("[sessions]\nmax_live = 0", "2: max_live must be between 1 and 100000 sessions"),
        ("[sessions]\nmax_live = 100001", "2: max_live must be between 1 and 100000 sessions"),
        ("[drain]\nidle_handover_s = nan", "2: idle_handover_s must be between"),
        ("[drain]\nidle_handover_s = inf", "2: idle_handover_s must be between"),
        ("[drain]\nmode = 'later'", "2: mode must be one of 'finish', 'migrate'"),
        ("[sessions]\nresume_on_boot = 1", "2: resume_on_boot must be true or false"),
        ("[sessions]\nroots = '/srv'", "2: roots must be a list of strings"),
        ("[sessions]\nroots = [\n  '/srv',\n  1,\n]", "2: roots must be a list of strings"),
        ("[sessions]\nroots = ['srv']", "2: roots must be absolute paths, not 'srv'"),
        ("[sessions]\ndefault_agent = 'x'", "2: default_agent is 'x', but there is no such agent"),
        ("[server]\npublic_url = 'agents.example.org'", "2: public_url must be scheme and host"),
        ("[server]\npublic_url = 'https://x/path'", "2: public_url must be scheme and host"),
        ("[server]\npublic_url = 'http://['", "2: public_url must be scheme and host"),
        ("[server]\nlisten = '8780'", "2: listen must be ADDRESS:PORT"),
        ("[server]\nhosts = ['a', 'https://b']", "2: hosts must be names"),
        ("[server]\nhosts = ['::1']", "2: hosts must be names"),
        ("[server]\ntrusted_proxies = ['::1', '10.0.0.0/99']", "2: trusted_proxies must be addr"),
        ("[catalogue]\nurl = 'mysql://u:pw@h/d'", "2: url must be sqlite"),
        ("[server]\nlisten = 'x:65536'", "2: listen must be ADDRESS:PORT"),
        ('[server]\nlisten = "a\\u0000:1"', "2: listen must be a string"),
        ("[agents.x]\nenv = { A = 1 }\ncommand = ['x']", "2: env must be variables and their values"),
        ("[agents.x]\nenv = { 'A-B' = '1' }\ncommand = ['x']", "2: env must be variables"),
        ("[agents.X]\ncommand = ['x']", "1: an agent cannot be called 'X'"),
        ("[agents.x]\nenv = {}", "2: agent x has no command"),
        ("[agents.x]", "1: agent x has no command"),
        ("[processors.x]", "1: processor x has no command"),
        ("[agents.x]\ncommand = []", "2: agent x has no command"),
        ("[agents]\nx = 1", "2: agents.x is a section"),
        ("[processors.X]\ncommand = ['x']", "1: a processor cannot be called 'X'"),
        ("[processors.x]\ntimeout_s = 5", "2: processor x has no command"),
        ("[processors.x]\ninput = 'disk'", "2: input must be one of 'stream', 'file'"),
        ("sessions = 1", "1: sessions is a section"),
        ("[server]\nhosts = [", "(at end of document)"),
    ],
)  # fmt: skip
def test_wrong_value_is_told_with_its_line(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    message = refused([file])
    assert message.startswith(f"{file}:")
    assert says in message


def test_file_that_is_no_text_is_named(file: Path) -> None:
    file.write_bytes(b"[server]\n\xff")
    assert f"{file} is not UTF-8 (byte 9)" in refused([file])
    assert f"{file.parent} cannot be read" in refused([file.parent])


def test_own_agent_needs_its_command_only_and_keeps_what_it_says(file: Path) -> None:
    file.write_text(
        "[agents.mine]\ncommand = ['/opt/mine', '--x']\nenv = { A = '1' }\n"
        "resume_args = ['--resume={agent_session}']\n[sessions]\ndefault_agent = 'mine'\n"
    )
    settings = load([file], {})
    mine = AgentSettings("mine", ("/opt/mine", "--x"), {"A": "1"}, ("--resume={agent_session}",))
    assert settings.agent(None) == settings.agent("mine") == mine
    assert settings.agent("nobody") is None


def test_changing_one_key_of_a_known_agent_leaves_the_others(file: Path) -> None:
    file.write_text("[agents.claude]\ncommand = ['/opt/claude']\n")
    claude = load([file], {}).agents["claude"]
    assert (claude.command, claude.preset) == (("/opt/claude",), "claude")


def test_preset_brings_its_program(file: Path) -> None:
    file.write_text("[agents.second]\npreset = 'claude'\nenv = { CLAUDE_CONFIG_DIR = '~/b' }\n")
    assert load([file], {}).agents["second"].command == ("claude",)


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("HOLDOVER_SERVER_HOSTS", "a.example, b.example", ("a.example", "b.example")),
        ("HOLDOVER_SESSIONS_ROOTS", '["/a,b"]', ("/a,b",)),
        ("HOLDOVER_SERVER_HOSTS", "", ()),
        ("HOLDOVER_SESSIONS_RESUME_ON_BOOT", "true", True),
        ("HOLDOVER_DRAIN_IDLE_HANDOVER_S", "1.5", 1.5),
        ("HOLDOVER_DRAIN_MODE", "migrate", "migrate"),
        ("HOLDOVER_CATALOGUE_URL", "postgresql+psycopg://h/d", "postgresql+psycopg://h/d"),
        ("HOLDOVER_AGENTS_MY_OWN_COMMAND", "/x 'a b'", ("/x", "a b")),
        ("HOLDOVER_AGENTS_DEMO_ENV", '{ A = "1" }', {"A": "1"}),
        ("HOLDOVER_AGENTS_DEMO_RESUME_ARGS", '["-r"]', ("-r",)),
    ],
)
def test_environment_variable_sets_its_key(variable: str, text: str, value: object) -> None:
    settings = load([], {variable: text})
    section, _, rest = variable.removeprefix("HOLDOVER_").lower().partition("_")
    if section == "agents":
        name = "my_own" if rest.startswith("my_own") else "demo"
        assert getattr(settings.agents[name], rest.removeprefix(f"{name}_")) == value
    else:
        assert getattr(getattr(settings, section), rest) == value


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        (
            "HOLDOVER_SESSIONS_MAXLIVE",
            "3",
            "unknown key 'maxlive' in [sessions]; did you mean 'max_live'",
        ),
        ("HOLDOVER_SESSIONS_MAX_LIVE", "many", "max_live must be a number of sessions, not 'many'"),
        ("HOLDOVER_SESSIONS_RESUME_ON_BOOT", "yes", "must be true or false"),
        ("HOLDOVER_AGENTS_COMMAND", "x", "ends in no key of an agent"),
        ("HOLDOVER_AGENTS_X_COMMAND", "'x", "No closing quotation"),
        ("HOLDOVER_AGENTS_X_COMMAND", "[1]", "must be a list of strings"),
        ("HOLDOVER_SERVER_HOSTS", "[1\n]\nx = 2\n#", "must be a list of strings"),
    ],
)
def test_mistake_in_the_environment_names_the_variable(variable: str, text: str, says: str) -> None:
    message = refused([], {variable: text})
    assert message.startswith(f"{variable}: ")
    assert says in message


def test_variables_that_name_no_section_belong_to_others() -> None:
    load(
        [], {"HOLDOVER_URL": "x", "HOLDOVER_TOKEN": "y", "HOLDOVER_STATE_DIR": "/z", "SERVER": "w"}
    )


def test_listen_and_catalogue_are_resolved(tmp_path: Path) -> None:
    settings = load([], {"HOLDOVER_SERVER_LISTEN": "[::1]:9"})
    assert settings.server.address() == ("::1", 9)
    assert settings.catalogue.resolve(tmp_path) == f"sqlite:///{tmp_path}/catalogue.db"
    other = load([], {"HOLDOVER_CATALOGUE_URL": "sqlite:////x"})
    assert other.catalogue.resolve(tmp_path) == "sqlite:////x"


TRICKY = '''\
# [not.a.table] = "comment"
[server] # hosts = []
hosts = [ # ]
  "a", # "
  """b]
max_live = 1
""",
]
"public_url" = 'x'
[ "agents" . "de-mo" ]
env = { A = "=", B = "[x]" }
command = ["""quoted "twice"""""]

[sessions]
roots = ['\\']
max_live=1'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("server",), 2),
        (("server", "hosts"), 3),
        (("server", "public_url"), 9),
        (("agents",), 10),
        (("agents", "de-mo"), 10),
        (("agents", "de-mo", "env", "A"), 11),
        (("agents", "de-mo", "command"), 12),
        (("sessions", "roots"), 15),
        (("sessions", "max_live"), 16),
        (("nowhere",), 1),
    ],
)
def test_line_of_a_key_is_found_among_strings_comments_and_brackets(
    path: tuple[str, ...], line: int
) -> None:
    tomllib.loads(TRICKY)
    assert find_line(TRICKY, path) == line


KEYS = st.text("abc.'\"=[]# \t", min_size=1, max_size=6)
VALUES = st.one_of(
    st.integers().map(str),
    st.text("ab\"'#[]=\\\n", max_size=8).map(lambda text: f'"{_basic(text)}"'),
    st.text('ab"#[]=\\\n', max_size=8).map(lambda text: f"'''\n{text}'''"),
    st.just('[1, # ]\n "x",\n]'),
    st.just("{ a = 1 }"),
)


def _basic(text: str) -> str:
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}
    return "".join(escapes.get(char, char) for char in text)


@given(st.lists(st.tuples(KEYS, VALUES), max_size=6, unique_by=lambda pair: pair[0]))
def test_line_is_right_in_any_file(pairs: list[tuple[str, str]]) -> None:
    text, expected = "", {}
    for key, value in pairs:
        expected[key] = text.count("\n") + 1
        text += f'"{_basic(key.replace(chr(9), " "))}" = {value}\n'
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # a tab and a space made two keys one
    assert len(document) == len(pairs)
    for key, line in expected.items():
        assert find_line(text, (key.replace("\t", " "),)) == line


def test_settings_import_without_the_daemons_libraries() -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import holdoverd.settings;"
        "print([m for m in sys.modules if m.split('.')[0] in ('trio', 'msgspec', 'sqlalchemy')])"
    )
    folder = str(Path(settings_module.__file__).parent.parent)
    ran = subprocess.run(
        [sys.executable, "-I", "-c", code, folder], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"
    assert isinstance(load([], {}), Settings)
