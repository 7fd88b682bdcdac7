"""The supervisor's tree of tasks: what runs, inside what, and who stops first.

plan -> folders, locks, sockets
    agents     launches; its keepers outlive everything else here
        workers    run jobs, whether or not there is a daemon
        storage    where files' bytes are; stopped after those who use it
        generations    the daemon, started again whenever it dies; two of them during a deploy
        control    what a deploy asks for
        welcome    once it is ready
        signals    a stop request ends the daemon, then launches, then the agents
"""

import signal
import sys
from collections.abc import Mapping

import trio

from holdover.client import Client, Door
from holdover.exits import CommandError, Exit
from holdoverd.storage.keys import ensure_keys
from holdoverd.supervisor import words
from holdoverd.supervisor.agents import Agents
from holdoverd.supervisor.control import serve_control
from holdoverd.supervisor.generations import Generations
from holdoverd.supervisor.plan import Plan, UpOptions, make_plan
from holdoverd.supervisor.sockets import Sockets, open_sockets
from holdoverd.supervisor.storage import Storage
from holdoverd.supervisor.workers import Workers
from holdoverd.whole import write_whole


def run_up(options: UpOptions, env: Mapping[str, str]) -> int:
    """Run until Ctrl-C, TERM or HUP; 0 then, 1 when the daemon never became ready.

    Raises `SettingsError` before anything runs when it cannot.
    """
    plan = make_plan(options, env)
    sockets = open_sockets(plan)
    try:
        return trio.run(_supervise, plan, sockets)
    finally:
        sockets.close()


async def _supervise(plan: Plan, sockets: Sockets) -> int:
    agents = Agents(plan, sockets.launch)
    generations = Generations(plan, sockets, _say)
    control = trio.SocketListener(trio.socket.from_stdlib_socket(sockets.control))
    workers = Workers(plan, sockets, generations.python)
    storage = None
    if plan.storage is not None and sockets.storage is not None:
        # Before the daemon, which reads them at its start.
        ensure_keys(plan.storage.keys)
        storage = Storage(plan.storage, sockets.storage, _say)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as outer:
            await outer.start(agents.serve)
            await outer.start(workers.serve)
            if storage is not None:
                outer.start_soon(storage.run)
            async with trio.open_nursery() as nursery:
                await nursery.start(_run_daemons, generations, nursery.cancel_scope)
                nursery.start_soon(serve_control, control, generations)
                nursery.start_soon(_welcome, plan, sockets, generations)
                nursery.start_soon(_wait_signal, signals, nursery.cancel_scope)
            if not generations.gave_up:
                _say(words.stopping(len(agents.running())))
            hurry = trio.Event()
            outer.start_soon(_set_on_signal, signals, hurry)
            await generations.stop_all()
            await workers.stop()
            if killed := await agents.stop(hurry):
                _say(f"{killed} agents did not stop in time and were killed.")
            if storage is not None:
                await storage.stop()
            outer.cancel_scope.cancel()
    agents.close()
    if storage is not None:
        storage.close()
    return Exit.FAILED if generations.gave_up else Exit.OK


async def _run_daemons(
    generations: Generations,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    await generations.run(task_status=task_status)
    scope.cancel()


async def _wait_signal(signals: object, scope: trio.CancelScope) -> None:
    async for _ in signals:  # type: ignore[attr-defined]  # trio gives the iterator no public name
        scope.cancel()
        return


async def _set_on_signal(signals: object, hurry: trio.Event) -> None:
    async for _ in signals:  # type: ignore[attr-defined]  # as above
        hurry.set()
        return


async def _welcome(plan: Plan, sockets: Sockets, daemon: Generations) -> None:
    await daemon.ready.wait()
    address = sockets.address()
    token = await trio.to_thread.run_sync(_login_token, plan, address, abandon_on_cancel=True)
    print(
        words.welcome(
            plan,
            address=address,
            token=token,
            daemon_pid=daemon.pid,
            storage=sockets.storage_address(),
        ),
        flush=True,
    )


def _login_token(plan: Plan, address: str) -> str | None:
    """The token of an earlier start while it is good, else a new one. In a thread: it blocks."""
    try:
        kept = plan.token_file.read_text().strip() if plan.token_file.exists() else ""
        if kept and _is_good(kept, address):
            return kept
        made = Client(Door(socket=plan.admin_socket), timeout_s=20).post(
            "/v1/tokens", {"name": "holdover up", "scopes": ["admin"]}
        )
        token = str(made["token"])
        write_whole(plan.token_file, token + "\n")
    except (CommandError, OSError, KeyError, TypeError) as error:
        _say(f"No login could be made: {error}")
        return None
    return token


def _is_good(token: str, address: str) -> bool:
    try:
        Client(Door(url=address, token=token), timeout_s=20).get("/v1/sessions", limit=1)
    except CommandError as error:
        if error.exit_code == Exit.NOT_ALLOWED:
            return False
        raise
    return True


def _say(text: str) -> None:
    print(f"holdover up: {text}", file=sys.stderr, flush=True)
