"""What `holdover up` will run and where, decided before anything is touched."""

import json
import os
import pwd
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from holdover import places
from holdover.places import SUPERVISOR_SOCKET
from holdoverd.errors import SettingsError
from holdoverd.settings import Settings, load_default
from holdoverd.storage.plan import StoragePlan
from holdoverd.storage.serve import find_program

# sun_path holds 107 bytes; the longest name below the runtime folder is sessions/l_….sock.
MAX_RUNTIME_BYTES = 107 - len("/sessions/l_0123456789abcdef.sock")

# The daemon's own variables: what a terminal happens to hold of them was meant for another.
_NOT_PASSED_ON = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC",
                  "WATCHDOG_PID", "HOLDOVER_TOKEN", "HOLDOVER_URL")  # fmt: skip


@dataclass(frozen=True)
class UpOptions:
    """What was asked for on the command line.

    `storage`: run it here, unless the configuration names one. `daemon_command` (without its
    generation) and `keeper_command` are the programs to run; tests put others there.
    """

    port: int | None = None
    agent_command: str | None = None
    storage: bool = False
    daemon_command: tuple[str, ...] = (sys.executable, "-m", "holdoverd")
    keeper_command: tuple[str, ...] = (sys.executable, "-I", "-m", "holdoverd.keeper")
    worker_arguments: tuple[str, ...] = ("-m", "holdoverd.jobs.worker", "--direct")


@dataclass(frozen=True)
class StorageUp:
    """Storage to be run here: its S3 at `host` and `port`, with the keys in the file `keys`."""

    plan: StoragePlan
    host: str
    port: int
    keys: Path
    log: Path


@dataclass(frozen=True)
class Plan:
    """Everything decided.

    `environment` is the daemon's, without what depends on its process. `agent` is the default
    agent; `agent_is_demo` that it is ours and no real one. `storage` is None where the
    configuration names another, or none is to run.
    """

    state: Path
    runtime: Path
    account: str
    host: str
    port: int
    settings: Settings
    environment: Mapping[str, str]
    keeper_environment: Mapping[str, str]
    agent: str
    agent_is_demo: bool
    command_prefix: str
    daemon_command: tuple[str, ...]
    keeper_command: tuple[str, ...]
    worker_arguments: tuple[str, ...]
    storage: StorageUp | None = None

    @property
    def admin_socket(self) -> Path:
        return self.runtime / "admin.sock"

    @property
    def launch_socket(self) -> Path:
        return self.runtime / "agents" / f"{self.account}.sock"

    @property
    def notify_socket(self) -> Path:
        return self.runtime / "notify.sock"

    @property
    def control_socket(self) -> Path:
        """Where a deploy asks this supervisor to start and stop generations."""
        return self.runtime / SUPERVISOR_SOCKET

    @property
    def workers_socket(self) -> Path:
        return self.runtime / "workers.sock"

    @property
    def token_file(self) -> Path:
        return self.state / "login-token"

    @property
    def agents_log(self) -> Path:
        return self.state / "agents.log"


def make_plan(options: UpOptions, env: Mapping[str, str]) -> Plan:
    """Decide; raises `SettingsError` for what cannot work."""
    state, runtime = places.state_dir(env), places.runtime_dir(env)
    if len(os.fsencode(runtime)) > MAX_RUNTIME_BYTES:
        raise SettingsError(
            f"The path {runtime} is too long for sockets in it (at most {MAX_RUNTIME_BYTES} "
            "bytes): set HOLDOVER_RUNTIME_DIR to a shorter one."
        )
    passed = {key: value for key, value in env.items() if key not in _NOT_PASSED_ON}
    # What `holdover agent install` has brought comes first, as it does on a host.
    programs = places.programs_dir(env) / "bin"
    passed["PATH"] = f"{programs}:{env.get('PATH') or os.defpath}"
    if options.agent_command is not None:
        if not options.agent_command.strip():
            raise SettingsError(
                "--agent-command is empty; name the program that speaks for Claude Code."
            )
        passed["HOLDOVER_AGENTS_CLAUDE_COMMAND"] = options.agent_command
    settings = load_default(passed)
    account = _account()
    host, port = settings.server.address()
    port = port if options.port is None else options.port
    agent = _default_agent(settings, passed)
    chosen = {
        "sessions.default_agent": agent,
        "sessions.default_account": account,
        # Here the agent's account is the person's own: what they may open, it may.
        "sessions.roots": json.dumps(sorted({str(places.home(env)), os.getcwd()} - {"/"})),
    }
    for key, value in chosen.items():
        if settings.sources[key] == "default":
            passed["HOLDOVER_" + key.replace(".", "_").upper()] = value
    daemon = {
        # Of an environment that forbids it to keep what it compiled, a daemon would have to compile
        # all of itself anew each time it is started after a crash: half a second.
        **{key: value for key, value in passed.items() if key != "PYTHONDONTWRITEBYTECODE"},
        "STATE_DIRECTORY": str(state),
        "HOLDOVER_STATE_DIR": str(state),
        "HOLDOVER_RUNTIME_DIR": str(runtime),
    }
    settings = load_default(daemon)
    return Plan(
        state=state,
        runtime=runtime,
        account=settings.sessions.default_account,
        host=host,
        port=port,
        settings=settings,
        environment=daemon,
        # The folder marks the keepers of this supervisor, also for its successor.
        keeper_environment={
            **passed,
            "HOLDOVER_RUNTIME_DIR": str(runtime),
            # As systemd names the folder of a unit's credentials; `holdover agent login` fills it.
            "CREDENTIALS_DIRECTORY": str(places.logins_dir(env)),
        },
        agent=settings.sessions.default_agent,
        agent_is_demo=settings.agents[settings.sessions.default_agent].preset == "demo",
        command_prefix=_command_prefix(state, runtime, env),
        daemon_command=options.daemon_command,
        keeper_command=options.keeper_command,
        worker_arguments=options.worker_arguments,
        storage=_storage(settings, state, runtime, host, port) if options.storage else None,
    )


def _storage(
    settings: Settings, state: Path, runtime: Path, host: str, port: int
) -> StorageUp | None:
    """Storage beside the public listener, at the next port; None where it is configured elsewhere."""
    program = find_program()
    if settings.sources["storage.endpoint"] != "default" or program is None:
        return None
    data = state / "storage"
    existing = next(path for path in (data, *data.parents) if path.exists())
    plan = StoragePlan(
        program=program,
        data=data,
        sockets=runtime / "storage",
        identities=runtime / "storage" / "identities.json",
        disk_bytes=shutil.disk_usage(existing).total,
    )
    # Never on a public address: people elsewhere reach it through the proxy that holds their TLS.
    loopback = "::1" if ":" in host else "127.0.0.1"
    return StorageUp(
        plan=plan,
        host=loopback,
        port=port and (port + 1) % 65_536,
        keys=state / "storage-keys.json",
        log=state / "storage.log",
    )


def _account() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError as error:
        raise SettingsError(
            f"User {os.getuid()} has no name: agents need an account with a home folder. Add the "
            "user to /etc/passwd."
        ) from error


def _default_agent(settings: Settings, env: Mapping[str, str]) -> str:
    """Claude Code where it can be started, else the demo, unless the configuration chose."""
    if settings.sources["sessions.default_agent"] != "default":
        return settings.sessions.default_agent
    program = os.path.expanduser(settings.agents["claude"].command[0])
    return "claude" if shutil.which(program, path=env.get("PATH")) else "demo"


def _command_prefix(state: Path, runtime: Path, env: Mapping[str, str]) -> str:
    """How to call `holdover` in another terminal so that it finds this one, and its catalogue."""
    found = shutil.which("holdover", path=env.get("PATH"))
    ours = Path(sys.argv[0] if sys.argv[0].endswith("holdover") else sys.executable).absolute()
    script = ours if ours.name == "holdover" else ours.parent / "holdover"
    name = "holdover" if found and Path(found).resolve() == script.resolve() else str(script)
    if Path.cwd() in script.parents and name != "holdover":
        name = str(script.relative_to(Path.cwd()))
    # Another terminal has not got these two, whatever this one has.
    plain = {key: env[key] for key in ("HOME", "XDG_RUNTIME_DIR") if key in env}
    first = next((s for s in places.admin_sockets(plain) if s.exists()), None)
    mine = runtime / "admin.sock"
    known = mine in places.admin_sockets(plain) and first in {None, mine}
    if known and state == places.state_dir(plain):
        return shlex.quote(name)
    said = {"HOLDOVER_STATE_DIR": str(state)}
    if places.runtime_dir(plain | said) != runtime:
        said["HOLDOVER_RUNTIME_DIR"] = str(runtime)
    return " ".join([*(f"{key}={shlex.quote(at)}" for key, at in said.items()), shlex.quote(name)])
