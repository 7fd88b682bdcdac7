"""The configuration: one literal table, read once at start, frozen, passed down.

Values come, later ones winning, from the defaults below, from ``holdover.toml``, from
``holdover.d/*.toml`` in order of name, and from the environment as ``HOLDOVER_<SECTION>_<KEY>``.
The folder is ``/etc/holdover`` unless ``HOLDOVER_CONFIG_DIR`` names another.

A key that the table does not know is an error that names file, line and the nearest known key: a
misspelt setting that is silently ignored is found at the worst moment. Standard library only, so
that `holdover config` works where the daemon's libraries are not installed.
"""

import difflib
import ipaddress
import re
import shlex
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from holdoverd.errors import SettingsError
from holdoverd.toml_lines import find_line

Preset = Literal["claude", "demo"]
Kind = Literal["text", "url", "bool", "int", "number", "texts", "argv", "pairs", "choice"]


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    `unit` is "" for what has none. `low` and `high` bound numbers, both inclusive. `choices` are
    the values of a "choice". A default of a list or a mapping is a tuple, so that nobody shares
    a mutable one.
    """

    section: str
    key: str
    kind: Kind
    default: object
    unit: str
    help: str
    low: float = 0
    high: float = 2**31
    choices: tuple[str, ...] = ()


# fmt: off
SETTINGS: tuple[Setting, ...] = (
    Setting("server", "public_url", "url", "", "",
            "Where browsers reach Holdover, scheme and host only. Empty: http:// and the public listener's own address."),
    Setting("server", "hosts", "texts", (), "",
            "More names that a request's Host may carry, beside public_url's and loopback."),
    Setting("server", "trusted_proxies", "texts", (), "",
            "Addresses or networks of front proxies whose X-Forwarded-For is believed."),
    Setting("server", "listen", "text", "127.0.0.1:8780", "",
            "The public listener. Read by `holdover up`; on a systemd host holdover.socket decides."),
    Setting("server", "max_connections", "int", 10_000, "connections",
            "Open connections in one instance; one more is answered 503.", low=10, high=1_000_000),
    Setting("sessions", "roots", "texts", ("/srv",), "",
            "Folders beneath which a session's cwd may lie, beside the account's own workspaces."),
    # A Claude Code takes some 300 MB: 200 of them are what a 64 GB host carries.
    Setting("sessions", "max_live", "int", 200, "sessions",
            "Sessions with a running agent, over all owners; one more is refused by name.", low=1, high=100_000),
    Setting("sessions", "resume_on_boot", "bool", False, "",
            "After a reboot, go on by itself with turns that were cut off. Off: they are marked and wait."),
    Setting("sessions", "default_agent", "text", "claude", "",
            "The agent of a session that names none; one of [agents.NAME]."),
    Setting("sessions", "default_account", "text", "holdover-agent", "",
            "The Unix account agents run as; its launch socket is agents/ACCOUNT.sock in the runtime folder."),
    Setting("sessions", "launch_timeout_s", "number", 30, "seconds",
            "How long a keeper may take to open cwd and start the agent.", low=1, high=600),
    Setting("catalogue", "url", "text", "", "",
            "SQLAlchemy URL, sqlite:///PATH or postgresql+psycopg://…. Empty: catalogue.db in the state folder."),
    Setting("storage", "endpoint", "url", "http://127.0.0.1:8781", "",
            "The S3 server as the daemon reaches it, scheme and host only. Default: the one that this host runs itself."),
    Setting("storage", "public_endpoint", "url", "", "",
            "The same server as clients reach it; URLs are signed for this name. Empty: as endpoint."),
    Setting("storage", "region", "text", "us-east-1", "",
            "The region that requests are signed for."),
    Setting("storage", "bucket", "text", "holdover", "",
            "The bucket that holds the files, and nothing else; made where it is missing."),
    Setting("storage", "addressing", "choice", "path", "",
            "Where the bucket's name stands: in the path, or before the host's name.", choices=("path", "virtual")),
    Setting("storage", "quota_bytes", "int", 0, "bytes",
            "What the files of one owner may hold in all, those being uploaded too. 0: no limit.", high=2**60),
    # A window of URLs is refreshed by clients that are slower; a day would outlive a change of mind.
    Setting("storage", "url_lifetime_s", "number", 3600, "seconds",
            "How long a part URL or a download URL is good for.", low=1, high=86_400),
    Setting("storage", "upload_lifetime_s", "number", 604_800, "seconds",
            "An upload that nobody has completed by then is given up by the sweeper.", low=60, high=31_536_000),
    Setting("storage", "sweep_every_s", "number", 3600, "seconds",
            "How often one instance looks for what no file owns. 0: only when asked.", high=604_800),
    Setting("drain", "mode", "choice", "finish", "",
            "A predecessor lets its sessions finish, or hands all of them over at once.", choices=("finish", "migrate")),
    Setting("drain", "idle_handover_s", "number", 300, "seconds",
            "A session idle for so long is handed over although it did not end.", high=86_400),
    Setting("drain", "max_generations", "int", 3, "instances",
            "With more alive, the oldest hands over what it has.", low=2, high=10),
    # A good start takes under a second; 12 leaves room for a machine that is swapping.
    Setting("deploy", "ready_s", "number", 12, "seconds",
            "A candidate that is not READY after this is killed.", low=1, high=600),
    Setting("deploy", "bake_s", "number", 10, "seconds",
            "How long the new instance is probed on the public port before the deploy is permanent.", high=3600),
    Setting("jobs", "max_workers", "int", 4, "processes",
            "Workers on this host, each with one job at a time; started on demand. On a systemd host holdover-worker.socket bounds them too.", low=1, high=1000),
    Setting("jobs", "idle_s", "number", 30, "seconds",
            "A worker with nothing to do goes after this.", high=86_400),
    # Four heartbeats fit; a disk that takes longer for a commit has other troubles.
    Setting("jobs", "lease_s", "number", 15, "seconds",
            "A worker silent for so long loses its job to another. On its own host one that ended is noticed at once.", low=1, high=3600),
    Setting("jobs", "max_scratch_bytes", "int", 1024**3, "bytes",
            "The most that the files of a job may take in its folder (input = 'file').", low=1, high=2**60),
    # Nothing is removed by itself unless somebody has said so.
    Setting("retention", "ended_sessions_days", "number", 0, "days",
            "Sessions that ended longer ago are removed, with all that was said in them. 0: kept for good.", high=36_500),
    Setting("retention", "finished_jobs_days", "number", 0, "days",
            "Jobs that finished longer ago are removed with their logs; files that they made stay. 0: kept for good.", high=36_500),
    Setting("retention", "audit_days", "number", 0, "days",
            "Rows of the audit that are older are removed. 0: kept for good.", high=36_500),
    Setting("push", "contact", "text", "", "",
            "Whom a push service may write to, mailto:… or https://…. Empty: public_url."),
    Setting("push", "hosts", "texts", (), "",
            "Push services that may be sent to although they are not on the public internet, by host name."),
    Setting("agents.NAME", "command", "argv", (), "",
            "Program and arguments; a bare name is looked up in the account's PATH, ~/ is its home."),
    Setting("agents.NAME", "env", "pairs", (), "",
            "Environment variables added to the account's own."),
    Setting("agents.NAME", "resume_args", "argv", (), "",
            "Arguments added to go on with a conversation; {agent_session} is its id."),
    Setting("agents.NAME", "preset", "choice", "", "",
            "Adds the flags and environment of a known agent. Empty: a bare command, nothing added.",
            choices=("", "claude", "demo")),
    Setting("processors.NAME", "command", "argv", (), "",
            "Program and arguments; a bare name is looked up in the account's PATH, ~/ is its home."),
    Setting("processors.NAME", "input", "choice", "stream", "",
            "The file comes on standard input, straight from storage; or as a path in HOLDOVER_FILE, from a folder that goes with the job.",
            choices=("stream", "file")),
    Setting("processors.NAME", "timeout_s", "number", 3600, "seconds",
            "An attempt that takes longer is killed, and counts as failed.", low=0.1, high=30 * 86_400),
    Setting("processors.NAME", "concurrency", "int", 0, "jobs",
            "How many of its jobs may run at once, on all hosts together; 0: as many as there are workers.", high=10_000),
    Setting("processors.NAME", "max_attempts", "int", 3, "attempts",
            "How often it is tried before a job is dead.", low=1, high=100),
)
# fmt: on


@dataclass(frozen=True)
class ServerSettings:
    public_url: str
    hosts: tuple[str, ...]
    trusted_proxies: tuple[str, ...]
    listen: str
    max_connections: int

    def address(self) -> tuple[str, int]:
        """`listen` as (host, port); brackets of an IPv6 address removed."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


@dataclass(frozen=True)
class PushSettings:
    contact: str
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class SessionSettings:
    roots: tuple[str, ...]
    max_live: int
    resume_on_boot: bool
    default_agent: str
    default_account: str
    launch_timeout_s: float


@dataclass(frozen=True)
class CatalogueSettings:
    url: str

    def resolve(self, state_dir: Path) -> str:
        """`url`, or that of ``catalogue.db`` in `state_dir` when it is empty."""
        return self.url or f"sqlite:///{state_dir / 'catalogue.db'}"


@dataclass(frozen=True)
class StorageSettings:
    endpoint: str
    public_endpoint: str
    region: str
    bucket: str
    addressing: Literal["path", "virtual"]
    quota_bytes: int
    url_lifetime_s: float
    upload_lifetime_s: float
    sweep_every_s: float


@dataclass(frozen=True)
class DrainSettings:
    mode: Literal["finish", "migrate"]
    idle_handover_s: float
    max_generations: int


@dataclass(frozen=True)
class DeploySettings:
    ready_s: float
    bake_s: float


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """``[agents.NAME]``: a program that speaks the host side of stream-json on stdin and stdout.

    name         what clients call it.
    command      program and first arguments; a bare name is looked up by the account's PATH,
                 ``~/`` is the account's home.
    env          added to the environment, over what the preset sets.
    resume_args  added to `command` when a session goes on; ``{agent_session}`` is its id.
                 A preset has its own.
    preset       the kind of agent, or None for one that needs nothing added.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    resume_args: tuple[str, ...] = ()
    preset: Preset | None = None


@dataclass(frozen=True)
class JobSettings:
    max_workers: int
    idle_s: float
    lease_s: float
    max_scratch_bytes: int


@dataclass(frozen=True)
class RetentionSettings:
    ended_sessions_days: float
    finished_jobs_days: float
    audit_days: float


@dataclass(frozen=True, slots=True)
class ProcessorSettings:
    """``[processors.NAME]``: a program that does something with a file; see the README on jobs.

    name          what clients call it.
    command       program and arguments; a bare name is looked up by the account's PATH.
    input         ``stream``: the file on stdin; ``file``: a path in HOLDOVER_FILE.
    timeout_s     for one attempt.
    concurrency   of its jobs at once, 0: any number.
    max_attempts  those that count.
    """

    name: str
    command: tuple[str, ...]
    input: Literal["stream", "file"] = "stream"
    timeout_s: float = 3600
    concurrency: int = 0
    max_attempts: int = 3

    @property
    def builtin(self) -> str | None:
        """Its name where it is one that comes with Holdover, unchanged; else None."""
        own = DEFAULT_PROCESSORS.get(self.name)
        return self.name if own is not None and self.command == own["command"] else None

    @property
    def starts_agent(self) -> bool:
        """Whether its jobs count beside the sessions' agents, against ``[sessions] max_live``."""
        return self.builtin == "analyze"


@dataclass(frozen=True)
class Settings:
    """Everything configured.

    `sources` tells for every value where it came from: ``default``, a file and line, or the name
    of an environment variable: {"server.hosts": "/etc/holdover/holdover.toml:7"}.
    """

    server: ServerSettings
    sessions: SessionSettings
    catalogue: CatalogueSettings
    storage: StorageSettings
    drain: DrainSettings
    deploy: DeploySettings
    jobs: JobSettings
    retention: RetentionSettings
    push: PushSettings
    agents: Mapping[str, AgentSettings]
    processors: Mapping[str, ProcessorSettings]
    sources: Mapping[str, str]

    def agent(self, name: str | None) -> AgentSettings | None:
        """The agent called `name`, the default one for None; None when there is no such agent."""
        return self.agents.get(self.sessions.default_agent if name is None else name)


Place = tuple[str, str]
"""(section, key); the section of an agent is ``agents.`` and its name, of a processor likewise."""

# The demo's interpreter is this one: the daemon and its agents share a release.
DEFAULT_AGENTS: Mapping[str, Mapping[str, object]] = {
    "claude": {"command": ("claude",), "preset": "claude"},
    "demo": {"command": (sys.executable, "-I", "-m", "holdoverd.demo"), "preset": "demo"},
}


def _own_processor(module: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-m", f"holdoverd.jobs.processors.{module}")


DEFAULT_PROCESSORS: Mapping[str, Mapping[str, object]] = {
    "checksum": {"command": _own_processor("checksum"), "input": "stream"},
    "extract-text": {
        "command": _own_processor("extract_text"),
        "input": "file",
        "timeout_s": 600,
    },
    # Each takes some 300 MB, and the time of a model that people are waiting for elsewhere.
    "analyze": {
        "command": _own_processor("analyze"),
        "input": "file",
        "timeout_s": 1800,
        "concurrency": 4,
    },
}

CONFIG_DIR = Path("/etc/holdover")
ENV_PREFIX = "HOLDOVER_"
# Where the storage's keys are, which are no setting: see storage/credentials.py.
NOT_SETTINGS = frozenset({"HOLDOVER_STORAGE_CREDENTIALS"})
# The rules of S3's general purpose buckets, without dots: those break certificates.
_AUTHORITY = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]\Z")
# {section whose tables are named by the operator: what one of them is called; those there are anyway}
_NAMED = {"agents": "agent", "processors": "processor"}
_DEFAULTS = {"agents": DEFAULT_AGENTS, "processors": DEFAULT_PROCESSORS}
AGENT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}\Z")

_TABLE = {(row.section, row.key): row for row in SETTINGS}
_SECTIONS = tuple(dict.fromkeys(row.section for row in SETTINGS))
_TYPES: Mapping[str, type] = {
    "server": ServerSettings,
    "sessions": SessionSettings,
    "catalogue": CatalogueSettings,
    "storage": StorageSettings,
    "drain": DrainSettings,
    "deploy": DeploySettings,
    "jobs": JobSettings,
    "retention": RetentionSettings,
    "push": PushSettings,
}


def config_files(env: Mapping[str, str]) -> list[Path]:
    """The files that exist, in the order in which they apply.

    Raises `SettingsError` when the folder is there but may not be read.
    """
    folder = Path(env.get("HOLDOVER_CONFIG_DIR") or CONFIG_DIR)
    try:
        files = [path for path in (folder / "holdover.toml",) if path.exists()]
        return files + sorted((folder / "holdover.d").glob("*.toml"))
    except OSError as error:
        raise SettingsError(
            f"{folder} cannot be read: {error.strerror}. Run as a user who may."
        ) from error


def load_default(env: Mapping[str, str]) -> Settings:
    """What the daemon uses: the configuration folder's files and `env`."""
    return load(config_files(env), env)


def load(paths: Sequence[Path], env: Mapping[str, str]) -> Settings:
    """Read `paths` in order, then `env`; later values win.

    Raises `SettingsError` for the first mistake, naming file and line, or the variable.
    """
    values: dict[Place, object] = {}
    sources: dict[Place, str] = {}

    def put(path: Place, value: object, source: str) -> None:
        values[path] = value
        sources[path] = source

    for row in SETTINGS:
        if not row.section.endswith(".NAME"):
            put((row.section, row.key), row.default, "default")
    for section, defaults in _DEFAULTS.items():
        for name, one in defaults.items():
            for key, value in one.items():
                put((f"{section}.{name}", key), value, "default")
    for file in paths:
        text = _read(file)
        for path, raw in _flatten(file, text):
            where = f"{file}:{find_line(text, (*path[0].split('.'), path[1]))}"
            put(path, _checked(_row(path, where), raw, where), where)
    for variable, path in _variables(env):
        row = _row(path, variable)
        put(path, _checked(row, _from_text(row, env[variable], variable), variable), variable)
    return _build(values, sources)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{file} is not UTF-8 (byte {error.start}). Save it as UTF-8."
        ) from error


def _flatten(file: Path, text: str) -> list[tuple[Place, object]]:
    """Every (section, key) with its raw value; a section that is unknown raises."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file}: {error}.") from error
    found: list[tuple[Place, object]] = []
    for section, table in document.items():
        where = f"{file}:{find_line(text, (section,))}"
        if section not in _section_names():
            raise SettingsError(_unknown(where, f"section [{section}]", section, _section_names()))
        for key, value in _table(where, section, table).items():
            if section in _NAMED:
                where = f"{file}:{find_line(text, (section, key))}"
                _check_name(section, key, where)
                one = _table(where, f"{section}.{key}", value)
                if not one and key not in _DEFAULTS[section]:
                    raise SettingsError(
                        f"{where}: {_NAMED[section]} {key} has no command; give "
                        'command = ["/path/to/program"], or take the section out.'
                    )
                found += [((f"{section}.{key}", name), item) for name, item in one.items()]
            else:
                found.append(((section, key), value))
    return found


def _table(where: str, name: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise SettingsError(f"{where}: {name} is a section; write [{name}] and its keys below it.")
    return value


def _section_names() -> list[str]:
    return [name.partition(".")[0] for name in _SECTIONS]


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "agent" else f"a {kind}"


def _check_name(section: str, name: str, where: str) -> None:
    if not AGENT_NAME.match(name):
        kind = _NAMED[section]
        raise SettingsError(
            f"{where}: {_a(kind)} cannot be called {name!r}; use 1 to 32 of a-z, 0-9, '-' and '_', "
            "beginning with a letter or digit."
        )


def _row(path: Place, where: str) -> Setting:
    section, key = path
    name, dot, _ = section.partition(".")
    generic = f"{name}.NAME" if dot else section
    row = _TABLE.get((generic, key))
    if row is None:
        known = [row.key for row in SETTINGS if row.section == generic]
        raise SettingsError(_unknown(where, f"key {key!r} in [{section}]", key, known))
    return row


def _unknown(where: str, what: str, name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"{where}: unknown {what}; did you mean {near[0]!r}? `holdover config show` lists all."


def _checked(row: Setting, value: object, where: str) -> object:
    """`value` in the form that the settings hold; raises `SettingsError` if it is not of its kind."""

    def refuse(wanted: str) -> SettingsError:
        return SettingsError(f"{where}: {row.key} must be {wanted}, not {value!r}.")

    match row.kind:
        case "bool":
            if isinstance(value, bool):
                return value
            raise refuse("true or false")
        case "int" | "number":
            allowed = (int,) if row.kind == "int" else (int, float)
            if isinstance(value, bool) or not isinstance(value, allowed):
                raise refuse(f"a number of {row.unit}")
            # Written so that NaN, which compares false with everything, is refused too.
            if not row.low <= value <= row.high:
                raise refuse(f"between {row.low:g} and {row.high:g} {row.unit}")
            return value
        case "texts" | "argv":
            if isinstance(value, list) and all(_is_text(item) for item in value):
                return tuple(value)
            raise refuse("a list of strings")
        case "pairs":
            if isinstance(value, dict) and all(
                _is_text(item) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)
                for name, item in value.items()
            ):
                return tuple(value.items())
            raise refuse('variables and their values, as in { LANG = "C.UTF-8" }')
        case "choice":
            if value in row.choices:
                return value
            raise refuse("one of " + ", ".join(repr(choice) for choice in row.choices))
        case "url":
            if isinstance(value, str) and (value == "" or _is_origin(value)):
                return value.rstrip("/")
            raise refuse("scheme and host, as in 'https://agents.example.org'")
        case "text":
            if _is_text(value):
                return value
            raise refuse("a string")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_origin(url: str) -> bool:
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    plain = not (parts.query or parts.fragment or parts.username) and parts.path in {"", "/"}
    return parts.scheme in {"http", "https"} and named and plain


def _variables(env: Mapping[str, str]) -> list[tuple[str, Place]]:
    """The variables that name a setting; one with a known section and an unknown key raises later.

    HOLDOVER_URL and the like, whose next word is no section, belong to others and are left alone.
    """
    found: list[tuple[str, Place]] = []
    for variable in sorted(env):
        section, _, key = variable.removeprefix(ENV_PREFIX).lower().partition("_")
        if not variable.startswith(ENV_PREFIX) or not key or variable in NOT_SETTINGS:
            continue
        if section in _NAMED:
            found.append((variable, _named_variable(variable, section, key)))
        elif section in _TYPES:
            found.append((variable, (section, key)))
    return found


def _named_variable(variable: str, section: str, rest: str) -> Place:
    """HOLDOVER_AGENTS_MY_OWN_RESUME_ARGS: the agent is ``my_own``, since keys are known."""
    keys = [row.key for row in SETTINGS if row.section == f"{section}.NAME"]
    for key in sorted(keys, key=len, reverse=True):
        if rest.endswith(f"_{key}"):
            name = rest.removesuffix(f"_{key}")
            _check_name(section, name, variable)
            return f"{section}.{name}", key
    raise SettingsError(
        f"{variable}: ends in no key of {_a(_NAMED[section])}; write HOLDOVER_{section.upper()}_NAME_KEY "
        "with KEY one of " + ", ".join(key.upper() for key in keys) + "."
    )


def _from_text(row: Setting, text: str, variable: str) -> object:
    """The value of an environment variable in the type that a TOML file would have given.

    Lists may be written as TOML; else `texts` are split at commas and `argv` as a shell would.
    """
    if row.kind in {"text", "url", "choice"}:
        return text
    if row.kind == "argv" and not text.startswith("["):
        try:
            return shlex.split(text)
        except ValueError as error:
            raise SettingsError(f"{variable}: {error} in {text!r}.") from error
    if row.kind == "texts" and not text.startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text  # of the wrong type: refused with the right words by the check that follows


def _build(values: Mapping[Place, object], sources: Mapping[Place, str]) -> Settings:
    def section(name: str) -> Any:
        kind = _TYPES[name]
        return kind(**{item.name: values[name, item.name] for item in fields(kind)})

    agents: dict[str, AgentSettings] = {}
    processors: dict[str, ProcessorSettings] = {}
    for full in dict.fromkeys(at for at, _ in values):
        kind, _, name = full.partition(".")
        if kind == "agents":
            agents[name] = _agent(full, values, sources)
        elif kind == "processors":
            processors[name] = _processor(full, values, sources)
    settings = Settings(
        server=section("server"),
        sessions=section("sessions"),
        catalogue=section("catalogue"),
        storage=section("storage"),
        drain=section("drain"),
        deploy=section("deploy"),
        jobs=section("jobs"),
        retention=section("retention"),
        push=section("push"),
        agents=MappingProxyType(agents),
        processors=MappingProxyType(processors),
        sources=MappingProxyType({f"{at}.{key}": where for (at, key), where in sources.items()}),
    )
    _check_whole(settings)
    return settings


def _agent(
    full: str, values: Mapping[Place, object], sources: Mapping[Place, str]
) -> AgentSettings:
    name = full.partition(".")[2]
    row = {key: values.get((full, key), default) for key, default in _AGENT_DEFAULTS.items()}
    command = cast(tuple[str, ...], row["command"])
    preset = cast(Preset | Literal[""], row["preset"]) or None
    if not command and preset is not None:
        command = cast(tuple[str, ...], DEFAULT_AGENTS[preset]["command"])
    if not command or not command[0]:
        where = next(where for (at, _), where in sources.items() if at == full)
        raise SettingsError(
            f'{where}: agent {name} has no command; give command = ["/path/to/program"] or a preset.'
        )
    return AgentSettings(
        name=name,
        command=command,
        env=MappingProxyType(dict(cast(tuple[tuple[str, str], ...], row["env"]))),
        resume_args=cast(tuple[str, ...], row["resume_args"]),
        preset=preset,
    )


def _processor(
    full: str, values: Mapping[Place, object], sources: Mapping[Place, str]
) -> ProcessorSettings:
    name = full.partition(".")[2]
    row: dict[str, Any] = {
        key: values.get((full, key), default) for key, default in _PROCESSOR_DEFAULTS.items()
    }
    if not row["command"] or not row["command"][0]:
        where = next(where for (at, _), where in sources.items() if at == full)
        raise SettingsError(
            f'{where}: processor {name} has no command; give command = ["/path/to/program"].'
        )
    return ProcessorSettings(name=name, **row)


_PROCESSOR_DEFAULTS = {row.key: row.default for row in SETTINGS if row.section == "processors.NAME"}
_AGENT_DEFAULTS = {row.key: row.default for row in SETTINGS if row.section == "agents.NAME"}


def _check_whole(settings: Settings) -> None:
    """What can only be judged with every value at hand."""
    if settings.sessions.default_agent not in settings.agents:
        raise SettingsError(
            f"{settings.sources['sessions.default_agent']}: default_agent is "
            f"{settings.sessions.default_agent!r}, but there is no such agent; known are "
            + ", ".join(sorted(settings.agents))
            + "."
        )
    for root in settings.sessions.roots:
        if not root.startswith("/"):
            raise SettingsError(
                f"{settings.sources['sessions.roots']}: roots must be absolute paths, not {root!r}."
            )
    for host in settings.server.hosts:
        if not _AUTHORITY.fullmatch(host):
            raise SettingsError(
                f"{settings.sources['server.hosts']}: hosts must be names as in 'agents.example.org'"
                f" or 'agents.example.org:8443', not {host!r}."
            )
    for proxy in settings.server.trusted_proxies:
        try:
            ipaddress.ip_network(proxy, strict=False)
        except ValueError as error:
            raise SettingsError(
                f"{settings.sources['server.trusted_proxies']}: trusted_proxies must be addresses or"
                f" networks as in '10.0.0.0/8', not {proxy!r}."
            ) from error
    scheme = settings.catalogue.url.partition("://")[0]
    if scheme not in {"", "sqlite", "postgresql+psycopg"}:
        # What it is instead is not shown: it may hold a password.
        raise SettingsError(
            f"{settings.sources['catalogue.url']}: url must be sqlite:////absolute/path or"
            " postgresql+psycopg://…."
        )
    if not BUCKET_NAME.match(settings.storage.bucket):
        raise SettingsError(
            f"{settings.sources['storage.bucket']}: bucket must be 3 to 63 of a-z, 0-9 and '-', "
            f"beginning and ending with a letter or digit, not {settings.storage.bucket!r}."
        )
    host, _, port = settings.server.listen.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise SettingsError(
            f"{settings.sources['server.listen']}: listen must be ADDRESS:PORT, as in "
            f"'127.0.0.1:8780', not {settings.server.listen!r}."
        )
