"""One daemon: what runs, inside what, and who stops first.

    settings -> sockets from systemd -> this generation's lock -> catalogue
        spools      tells readers when an agent has spoken
        sessions    adopts what earlier instances left; each session's tasks live beside it
        siblings    links to the other instances of this host, and operators
        doors       connections: accepted last, closed first
        sweeper     takes out of storage what no file wants, in one instance at a time
        retention   removes what is older than it is to become, in one instance at a time
        jobs        asks for workers, takes jobs from dead ones, tells sessions of ends
        duty        what this instance is there for: to wait, to serve, to hand over and go
        fill        indexes for the search what was not as it was stored
        heartbeat   WATCHDOG=1 and STATUS=
        then: READY=1, and wait for a stop request, or until nothing is left to do

Stopping hands over to an instance that serves. Where there is none it lets go: agents run on in
their own units, viewers are told to reconnect, connections queue in the listening sockets, which
are systemd's. Being killed instead costs nobody more than the reconnect.
"""

import argparse
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import trio

from holdoverd import __version__, garbage, instance, systemd
from holdoverd.catalogue import instances as instances_table
from holdoverd.catalogue.instances import InstanceRow
from holdoverd.catalogue.store import Catalogue
from holdoverd.deploy.control import share_listeners
from holdoverd.errors import CatalogueError, HoldoverError, SettingsError
from holdoverd.files.carrier import Carrier
from holdoverd.files.services import FileServices
from holdoverd.handover.duty import Duty
from holdoverd.handover.routing import RoutedSessions
from holdoverd.handover.siblings import Siblings
from holdoverd.http.app import App
from holdoverd.http.context import Context
from holdoverd.http.live import LiveStreams
from holdoverd.http.server import Server
from holdoverd.ids import since_boot_s
from holdoverd.jobs.service import Jobs
from holdoverd.jobs.stored import StoredFiles
from holdoverd.metrics import gather
from holdoverd.metrics.counts import Counts
from holdoverd.metrics.table import Samples
from holdoverd.push.service import Push
from holdoverd.retention import Retention
from holdoverd.search import fill
from holdoverd.sessions.launcher import Paths
from holdoverd.sessions.making import Limits
from holdoverd.sessions.means import Instance
from holdoverd.sessions.service import Sessions, host_name
from holdoverd.sessions.spool import SpoolWatch
from holdoverd.settings import Settings, load_default
from holdoverd.skills.service import Skills
from holdoverd.storage.client import Store
from holdoverd.storage.credentials import load_credentials

if TYPE_CHECKING:
    from holdoverd.push.sealing import Sealing

log = logging.getLogger("holdoverd")

DOORS: tuple[Literal["public"], Literal["admin"]] = ("public", "admin")

STOP_S = 1.5
"""From a stop request to the end of the last connection; the exit follows within two seconds."""


HAND_OVER_S = 25.0
"""From a stop request to letting go of what could not be handed over; TimeoutStopSec= is longer."""

HEARTBEAT_S = 5.0

CLOCK_STEP_S = 2.0
"""What the clock is set by at once is worth a word from here on; NTP steps by a tenth, seldom."""

SWITCH_S = 0.0002
"""How long a thread waits for the interpreter while another computes. The catalogue's threads have
to win it back after every statement: at Python's 5 ms a commit under way would take as long as all
that the event loop has to do meanwhile, and at 1 ms it now and then does."""


class CannotStartError(HoldoverError):
    """Something that only the administrator can mend keeps this instance from starting."""


def main(argv: Sequence[str] | None = None) -> int:
    """The daemon's entry. Exit status: 0 stopped as asked, 1 could not start or go on, 2 misuse."""
    parser = argparse.ArgumentParser(
        prog="holdoverd", description="One Holdover daemon; systemd starts it with its sockets."
    )
    todo = parser.add_mutually_exclusive_group(required=True)
    todo.add_argument("--generation", type=int, help="serve, as the instance of this number")
    todo.add_argument(
        "--migrate", action="store_true", help="bring the catalogue to this release's schema, exit"
    )
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(argv)
    generation = options.generation or 0
    logging.basicConfig(
        level=logging.INFO,
        handlers=[systemd.log_handler(generation=generation, release=__version__)],
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    status = 0
    try:
        settings = load_default(os.environ)
        state_dir, runtime_dir = folders(os.environ)
        if options.migrate:
            Catalogue.open(settings.catalogue.resolve(state_dir)).close()
            return status
        listeners = take_listeners(runtime_dir / "instances")
        sys.setswitchinterval(SWITCH_S)
        trio.run(run, generation, settings, listeners, state_dir, runtime_dir)
    except* (CannotStartError, SettingsError, CatalogueError, instance.GenerationTakenError) as e:
        status = 1
        for error in _leaves(e):
            log.critical("%s", error)
            systemd.notify(STATUS=str(error))
    return status


async def run(
    generation: int,
    settings: Settings,
    listeners: Mapping[str, Sequence[socket.socket]],
    state_dir: Path,
    runtime_dir: Path,
) -> None:
    """Serve until asked to stop."""
    paths = make_paths(state_dir, runtime_dir)
    lock = await instance.InstanceLock.take(runtime_dir / "instances", generation)
    lock.clear_away()
    catalogue = Catalogue.open(settings.catalogue.resolve(state_dir))
    watch = SpoolWatch(paths.spools)
    counts = Counts()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(garbage.run)
            await nursery.start(watch.run)
            push = Push(
                catalogue,
                partial(sealing, state_dir, contact(settings)),
                hosts=settings.push.hosts,
            )
            nursery.start_soon(push.run)
            sessions = Sessions(
                Instance(
                    catalogue=catalogue,
                    paths=paths,
                    watch=watch,
                    nursery=nursery,
                    host=host_name(),
                    generation=generation,
                    release=__version__,
                    boot_id=instance.boot_id(),
                    roots=settings.sessions.roots,
                    agents=settings.agent,
                    resume_on_boot=settings.sessions.resume_on_boot,
                    counts=counts,
                    levels_changed=push.levels_changed,
                ),
                Limits(settings.sessions.max_live, settings.sessions.default_agent),
                lock.live_generations,
            )
            await nursery.start(sessions.run)
            streams = LiveStreams()
            duty = Duty(
                generation=generation,
                folder=runtime_dir / "instances",
                settings=settings,
                sessions=sessions,
                host=host_name(),
                streams=streams,
                listeners=listeners,
                counts=counts,
            )
            siblings = Siblings(
                runtime_dir / "instances", generation, __version__, lock.live_generations, duty
            )
            files = FileServices.make(
                catalogue,
                Store.open(settings.storage, load_credentials(os.environ), state_dir),
                settings.storage,
            )
            nursery.start_soon(files.sweeper.run)
            carrier = Carrier(
                files.files,
                files.uploads,
                paths.agents,
                settings.sessions.roots,
                host_name(),
                nursery,
                sessions.writable,
            )
            routed = RoutedSessions(sessions, catalogue, siblings, duty.heir, carrier)
            jobs = Jobs(
                catalogue=catalogue,
                settings=settings,
                files=StoredFiles(),
                sessions=sessions,
                runtime=runtime_dir,
                host=host_name(),
                serving=lambda: duty.role.state == "serving",
            )
            sessions.before_agents(jobs.make_room)
            retention = Retention(catalogue, routed, settings.retention)
            skills = Skills(
                catalogue=catalogue,
                settings=settings,
                agents=paths.agents,
                nursery=nursery,
                reload=routed.reload_skills,
            )
            context = Context(
                catalogue=catalogue,
                sessions=routed,
                generation=generation,
                release=__version__,
                default_account=settings.sessions.default_account,
                host=host_name(),
                public_url=settings.server.public_url,
                own_url=url_of(listeners["public"][0]),
                hosts=settings.server.hosts,
                trusted_proxies=settings.server.trusted_proxies,
                router=duty,
                streams=streams,
                counts=counts,
                files=files,
                jobs=jobs,
                carrier=carrier,
                skills=skills,
                retention=retention,
                push=push,
            )
            doors = Server(App(context), max_connections=settings.server.max_connections)
            duty.meet(siblings, routed, doors)

            async def looked_at() -> Samples:
                return (
                    gather.from_service(sessions, doors, duty, streams)
                    | gather.from_counts(counts)
                    | gather.from_process(host_name(), generation, __version__, state_dir)
                )

            sources: list[gather.Source] = [
                looked_at,
                partial(gather.from_catalogue, catalogue),
                partial(gather.from_jobs, catalogue, jobs, settings.jobs.max_workers),
            ]
            if files.files.has_store:
                sources.append(partial(gather.from_storage, files.files.store))
            context.metrics = gather.Metrics(sources)
            await nursery.start(
                doors.serve,
                {door: [as_listener(sock) for sock in listeners[door]] for door in DOORS},
            )
            await nursery.start(siblings.run)
            await nursery.start(duty.run)
            await nursery.start(jobs.run)
            await nursery.start(record, catalogue, duty, generation)
            nursery.start_soon(fill.run, catalogue, lambda: duty.role.state == "serving")
            nursery.start_soon(retention.run)
            nursery.start_soon(heartbeat, sessions, doors, duty, counts)
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                # What has been imported stays: walking it again and again in full collections
                # would stop everything for 50 ms each time.
                gc.freeze()
                systemd.notify(READY=1)
                log.info("generation %d of release %s is ready", generation, __version__)
                async with trio.open_nursery() as waiting:
                    waiting.start_soon(until_asked, signals, duty, waiting.cancel_scope)
                    await duty.leave.wait()
                    waiting.cancel_scope.cancel()
            await let_go(sessions, doors)
            nursery.cancel_scope.cancel()
    finally:
        catalogue.close()
        lock.close()


async def until_asked(signals: AsyncIterator[int], duty: Duty, scope: trio.CancelScope) -> None:
    """Wait for a stop request, then hand over to an instance that serves, if there is one."""
    async for _ in signals:
        break
    log.info("asked to stop")
    duty.stop()
    with trio.move_on_after(HAND_OVER_S):
        await duty.wait_alone()
    scope.cancel()


async def let_go(sessions: Sessions, doors: Server) -> None:
    """Stop serving, losing nothing: agents run on, and whoever connects waits in the sockets."""
    log.info("leaving; agents run on")
    systemd.notify(STOPPING=1, STATUS="letting go")
    doors.stop_accepting()
    doors.close_idle()
    sessions.let_go()
    with trio.move_on_after(STOP_S):
        while doors.connections:
            await trio.sleep(0.02)


async def heartbeat(sessions: Sessions, doors: Server, duty: Duty, counts: Counts) -> None:
    """Tell systemd that we live, and `systemctl status` what we do."""
    interval = systemd.watchdog_interval_s()
    told = ""
    offset = clock_offset()
    while True:
        live, viewers = sessions.counts()
        status = (
            f"{duty.role.state}; {live} sessions with an agent, {viewers} viewers, "
            f"{doors.connections} connections"
        )
        if status != told:
            systemd.notify(STATUS=status)
            told = status
        if interval is not None:
            systemd.notify(WATCHDOG=1)
        # Three beats in a watchdog's time: one may be late.
        pause = min(interval / 3, HEARTBEAT_S) if interval else HEARTBEAT_S
        due = trio.current_time() + pause
        await trio.sleep_until(due)
        counts.loop_late_s = trio.current_time() - due
        before, offset = offset, clock_offset()
        step = offset - before
        if abs(step) >= CLOCK_STEP_S:
            counts.clock_steps += 1
            counts.clock_step_s = step
            log.warning("the clock was set by %+.0f s", step)


def clock_offset() -> float:
    """The time of day minus the time since the boot, sleep included: it changes when the clock is set."""
    return time.time() - since_boot_s()


async def record(
    catalogue: Catalogue,
    duty: Duty,
    generation: int,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Write this instance into the catalogue, for `holdover status`.

    Where that cannot be just now (a full disk), what is stored can be read all the same: started.
    """
    state = duty.role.state
    row = InstanceRow(host_name(), generation, __version__, state, duty.since_at, os.getpid())
    told = False
    while True:
        try:
            await catalogue.write(lambda cx: instances_table.upsert_instance(cx, row))
        except CatalogueError as error:
            if not told:
                told = True
                log.error("%s Serving what can be read.", error)
                task_status.started()
            await trio.sleep(HEARTBEAT_S)
        else:
            if not told:
                task_status.started()
            return


def take_listeners(siblings: Path) -> dict[str, list[socket.socket]]:
    """The listening sockets by door: systemd's, or those that a living instance holds.

    The latter where a socket unit was stopped alone: the instances serve on, and systemd cannot
    bind what they hold. Raises CannotStartError when there are none.
    """
    given = systemd.listen_fds()
    missing = [door for door in DOORS if door not in given]
    if missing:
        shared = share_listeners(siblings)
        for door in missing:
            if door in shared:
                log.warning(
                    "the %s socket was not passed to this process: sharing that of an instance "
                    "which serves. Its socket unit is not active; see `holdover doctor`",
                    door,
                )
                given[door] = shared.pop(door)
        for sock in (sock for socks in shared.values() for sock in socks):
            sock.close()
        missing = [door for door in DOORS if door not in given]
    if missing:
        raise CannotStartError(
            f"No listening socket named {' or '.join(missing)} was passed to this process. The "
            "sockets are systemd's: start the daemon with `systemctl start holdover.socket "
            "holdover-admin.socket`, or without systemd by `holdover up`."
        )
    return {door: given[door] for door in DOORS}


def sealing(state_dir: Path, subject: str) -> "Sealing":
    """What web push is sealed with. In a thread: what it imports takes a tenth of a second."""
    from holdoverd.push.keys import load_sealing

    return load_sealing(os.environ, state_dir, subject)


def contact(settings: Settings) -> str:
    """Whom a push service may write to; it takes mailto: and https: only (RFC 8292 section 2.1)."""
    if settings.push.contact:
        return settings.push.contact
    public = settings.server.public_url
    return public if public.startswith("https:") else f"mailto:holdover@{host_name()}"


def url_of(listener: socket.socket) -> str:
    """A TCP listener as a URL that reaches it from here; "" for any other."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return ""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared only
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def as_listener(sock: socket.socket) -> trio.SocketListener:
    sock.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def folders(env: Mapping[str, str]) -> tuple[Path, Path]:
    """(state, runtime). Raises CannotStartError when either was not named."""
    state = env.get("HOLDOVER_STATE_DIR") or env.get("STATE_DIRECTORY")
    runtime = env.get("HOLDOVER_RUNTIME_DIR")
    if not state or not runtime:
        raise CannotStartError(
            "STATE_DIRECTORY and HOLDOVER_RUNTIME_DIR must name the daemon's folders; its unit "
            "and `holdover up` do that."
        )
    return Path(state), Path(runtime)


def make_paths(state_dir: Path, runtime_dir: Path) -> Paths:
    """The folders an instance works in, made where they are missing.

    Raises CannotStartError where they cannot be.
    """
    paths = Paths(
        spools=state_dir / "spool", sessions=runtime_dir / "sessions", agents=runtime_dir / "agents"
    )
    try:
        for folder in (
            paths.spools,
            paths.sessions,
            runtime_dir / "instances",
            runtime_dir / "workers",
        ):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStartError(
            f"The folder {error.filename} cannot be made: {error.strerror}. On a systemd host "
            "`systemd-tmpfiles --create` makes it; see units/tmpfiles.d."
        ) from error
    return paths


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
