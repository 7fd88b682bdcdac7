"""`holdover doctor`: looks at this machine, says what is wrong, and what to do about each."""

import contextlib
import email.utils
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import click

from holdover import health, places
from holdover.client import Client
from holdover.commands.options import client_of, json_option, print_json
from holdover.commands.status import LAST_DEPLOY, last_deploy
from holdover.exits import CommandError, Exit
from holdover.health import Finding
from holdover.host import on_up, up_runtime
from holdover.render import sanitise

LOOK_S = 5.0
ANSWER_S = 10.0
"""A daemon that takes longer to say that it is well is not."""
SYSCTLS = (
    "user.max_user_namespaces",
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
)
_MARKS = {"ok": "ok     ", "skipped": "-      ", "warning": "WARNING", "failed": "FAILED "}


@click.command(short_help="Look for what is wrong here, and say what to do about it.")
@click.option("--quick", is_flag=True, help="Do not read every page of the catalogue.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, quick: bool, as_json: bool) -> None:
    """Look at this machine, say what is wrong, and what to do about each.

    Looked at are the configuration, the daemon and its instances, sockets, units, limits, the clock,
    disks, the catalogue, storage, agents with their logins, and the last deploy. What only root may
    see is skipped for others. Exits 1 when something has failed, 0 with warnings alone.
    """
    found = []
    for finding in _look(ctx, quick=quick):
        found.append(finding)
        if as_json:
            print_json(asdict(finding))
            continue
        click.echo(f"{_MARKS[finding.level]}  {finding.area}: {_whole(finding.what)}")
        if finding.remedy:
            click.echo(f"         {_whole(finding.remedy)}")
    if health.worst(found) == "failed":
        ctx.exit(Exit.FAILED)


def _look(ctx: click.Context, *, quick: bool) -> Iterator[Finding]:
    host = Path("/run/systemd/system").is_dir() and Path("/opt/holdover").is_dir()
    settings = None
    try:
        from holdoverd.errors import SettingsError
        from holdoverd.settings import config_files, load_default
    except ImportError:
        yield Finding("configuration", "skipped", "only the command line is installed here")
    else:
        try:
            files = [str(path) for path in config_files(os.environ)]
            settings = load_default(os.environ)
            yield health.configuration(None, files)
        except SettingsError as error:
            yield health.configuration(str(error), [])

    client: Client | None = None
    answer, why_not, refused = None, "", False
    try:
        client = replace(client_of(ctx), timeout_s=ANSWER_S)
        # Once: by the time that it answers a second try, nothing may be wrong any more.
        answer = client.request("GET", "/healthz")
    except CommandError as error:
        why_not, refused = error.message, error.exit_code is Exit.NOT_ALLOWED
    yield health.daemon(answer, why_not, host=host, refused=refused)
    if answer is not None and client is not None:
        listed = None
        with contextlib.suppress(CommandError):
            listed = list(client.items("/v1/admin/instances", limit=500))
        yield from health.instances(listed, time.time_ns() // 1_000_000)
        with contextlib.suppress(CommandError):
            yield from health.numbers(numbers_of(client.text("/metrics")))

    if host:
        yield from health.sockets(_sockets(), serves=answer is not None)
        yield from health.failed_units(_failed())
        yield from health.restarts(_restarts())
        yield from health.stopped(stopped_in(Path("/proc")))
        yield health.deploys(last_deploy(LAST_DEPLOY))
        if settings is not None:
            yield health.descriptors(
                _open_files(answer),
                connections=settings.server.max_connections,
                live=settings.sessions.max_live,
            )
    yield health.namespaces(_sysctls())

    up = up_runtime(os.environ)
    skew_s: float | None = None
    if up is not None and client is not None and answer is not None:
        # Its storage is where it happened to find a port.
        with contextlib.suppress(CommandError):
            told_of = client.get("/v1/admin/storage")
            yield health.storage(told_of["endpoint"], told_of["reachable"], "see `holdover up`")
    elif settings is not None:
        endpoint = settings.storage.endpoint
        keys = Path("/etc/holdover/storage-keys.json")
        answers, told = None, ""
        if endpoint and (keys.exists() or not host):
            answers, told, skew_s = _ask(endpoint)
            if not answers and not host:
                answers = None  # `holdover up` runs its own, and says so when it starts
        yield health.storage(endpoint, answers, told)
    yield from health.clock(_synchronised(), skew_s)

    for path in _folders(host):
        room = os.statvfs(path)
        inodes = 100 * room.f_favail // room.f_files if room.f_files else None
        size = room.f_blocks * room.f_frsize
        yield health.disk(str(path), room.f_bavail * room.f_frsize, size, inodes)

    if settings is None:
        return  # what follows would only say the same of the configuration once more
    yield _database(quick=quick)
    if host and os.geteuid() != 0:
        yield Finding(
            "agents", "skipped", "as their account finds them they are seen by root alone"
        )
        return
    items, told = _own("agent", "ls", "--json", env=_chosen(up))
    yield from health.agents(items, told)


def _whole(text: str) -> str:
    """On one line, however long: a remedy that is cut is none."""
    return " ".join(sanitise(text).split())


def _folders(host: bool) -> list[Path]:
    """One folder for each disk that Holdover writes to."""
    paths = (
        [
            "/var/lib/holdover",
            "/var/lib/holdover-storage",
            "/var/lib/holdover-agent",
            "/opt/holdover",
        ]
        if host
        else [str(places.state_dir(os.environ))]
    )
    disks: dict[int, Path] = {}
    for path in map(Path, paths):
        with contextlib.suppress(OSError):
            disks.setdefault(path.stat().st_dev, path)
    return list(disks.values())


def _database(*, quick: bool) -> Finding:
    items, told = _own("db", "status", "--json", *([] if quick else ["--check"]))
    refused = any(word in told for word in ("as root", "PostgreSQL", "There is no catalogue"))
    return health.database(items[0] if items else None, told, skipped=not items and refused)


def _chosen(up: Path | None) -> Mapping[str, str]:
    """What a `holdover up` has decided for itself, as the environment would say it."""
    if up is None:
        return {}
    with contextlib.suppress(CommandError), on_up() as tools:
        chosen: dict[str, str] = tools.uphost.ask(up, "chosen")
        return chosen
    return {}


def _own(
    *arguments: str, env: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[dict[str, Any]] | None, str]:
    """What another command of ours prints as JSON; None, and why, when it prints nothing."""
    done = subprocess.run(
        [sys.executable, "-I", "-m", "holdover", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, **env},
    )
    items = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    said = done.stderr.strip().splitlines()
    return items or None, said[-1].removeprefix("holdover: ") if said else ""


def _systemctl(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["systemctl", "--no-pager", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=LOOK_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _sockets() -> dict[str, str]:
    """{unit: ActiveState} of the sockets that are enabled: those that ought to be open."""
    listed = _systemctl(
        *("list-unit-files", "--plain", "--no-legend", "--state=enabled", "holdover*.socket")
    )
    units = [line.split()[0] for line in listed.splitlines() if line.strip()]
    return {
        unit: _systemctl("show", "--value", "--property=ActiveState", unit).strip()
        for unit in {*units, "holdover.socket", "holdover-admin.socket"}
    }


def _failed() -> list[str]:
    listed = _systemctl("list-units", "--failed", "--plain", "--no-legend", "holdover*")
    return [line.split()[0] for line in listed.splitlines() if line.strip()]


def _restarts() -> dict[str, int]:
    """{unit: how often it was started anew}, of those that are to run for long."""
    told = _systemctl("show", "--property=Id,NRestarts", "holdover*.service", "holdoverd@*.service")
    counts = {}
    for block in told.split("\n\n"):
        fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if fields.get("NRestarts", "").isdecimal():
            counts[fields.get("Id", "")] = int(fields["NRestarts"])
    return counts


def stopped_in(proc: Path) -> Iterator[tuple[int, str, str]]:
    """(pid, name, unit) of each of Holdover's processes that is stopped."""
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):  # it ended meanwhile
            name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            if rest.split()[0] not in ("T", "t"):
                continue
            units = re.findall(r"/(holdover[^/\n]*\.service)", (folder / "cgroup").read_text())
            if units:
                yield int(folder.name), name, units[0]


def numbers_of(text: str) -> dict[str, float]:
    """Samples by name, with their labels as they stand there."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#"):
            found[name] = float(value)
    return found


def _open_files(answer: dict[str, Any] | None) -> int | None:
    if answer is None:
        return None
    unit = f"holdoverd@{answer.get('generation')}.service"
    value = _systemctl("show", "--value", "--property=LimitNOFILE", unit).strip()
    return int(value) if value.isdecimal() else None


def _sysctls() -> dict[str, int]:
    found = {}
    for name in SYSCTLS:
        with contextlib.suppress(OSError, ValueError):
            found[name] = int(Path("/proc/sys", *name.split(".")).read_text())
    return found


def _synchronised() -> bool | None:
    try:
        done = subprocess.run(
            ["timedatectl", "show", "--value", "--property=NTPSynchronized"],
            capture_output=True,
            text=True,
            check=False,
            timeout=LOOK_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"yes": True, "no": False}.get(done.stdout.strip())


def _ask(endpoint: str) -> tuple[bool, str, float | None]:
    """(whether storage answers anything, why not, its clock minus ours). A refusal is an answer."""
    parts = urlsplit(endpoint)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(str(parts.hostname), parts.port, timeout=LOOK_S)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read(65_536)
        date = answer.getheader("Date")
    except (OSError, http.client.HTTPException) as error:
        return False, str(error) or type(error).__name__, None
    finally:
        connection.close()
    with contextlib.suppress(TypeError, ValueError):
        return True, "", email.utils.parsedate_to_datetime(date or "").timestamp() - time.time()
    return True, "", None
