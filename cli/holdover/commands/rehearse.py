"""`holdover rehearse`: see for yourself what a deploy and a `kill -9` cost those who watch."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import click

from holdover.client import Client, path_of
from holdover.commands import deploy as deploying
from holdover.commands.options import client_of
from holdover.exits import CommandError, Exit
from holdover.host import as_root, up_runtime
from holdover.rehearse import Seen, Watcher
from holdover.render import table

RATE = 20
SIZE = 200
LINES = 1_000_000
STEADY_S = 3.0
AGAIN_S = 60.0


@click.command(
    short_help="Deploy and kill the daemon under demo sessions, and count what they lose."
)
@click.option(
    "--sessions",
    type=click.IntRange(1, 100),
    default=4,
    show_default=True,
    help="Demo sessions to watch meanwhile.",
)
@click.option("--no-kill", is_flag=True, help="Only the deploy, not the `kill -9`.")
@click.pass_context
def rehearse(ctx: click.Context, sessions: int, no_kill: bool) -> None:
    """Deploy and kill the daemon under demo sessions, and count what their viewers lose.

    Starts demo sessions that speak 20 lines a second, watches each, does a real deploy of the
    newest installed release (what runs is replaced for everybody on this host), has the old daemon
    hand over what it still serves, then kills the new one with `kill -9`. The sessions are removed
    again. Exits 1 when a line was lost or repeated, or a stream closed by the deploy.
    """
    client = client_of(ctx)
    if client.door.socket is None:
        raise CommandError("This replaces the daemon of a host: run it there.", Exit.USAGE)
    if up_runtime(os.environ) is None:
        with as_root():
            pass  # says what is missing before anything is started
    screen = _Screen()
    with _watched(client, sessions) as watchers:
        screen.follow(watchers)
        try:
            _phase(watchers, "left alone")
            _wait(watchers, STEADY_S)
            _phase(watchers, "deploy")
            deploying.deploy_newest(screen.say)
            deploying.drain_older(client)
            _back(watchers)
            if not no_kill:
                _phase(watchers, "kill -9")
                screen.say("killing the daemon")
                _kill_daemon(client)
                _back(watchers)
        finally:
            screen.stop()
        phases = list(watchers[0].account.phases)
        told = {phase: _sum(watchers, phase) for phase in phases}
        rows = [
            [w.session, phase, str(w.account.phases[phase])] for w in watchers for phase in phases
        ]
    click.echo(table(["SESSION", "MEANWHILE", "SAW"], rows))
    for phase, seen in told.items():
        click.echo(f"{phase}: {seen}")
    bad = any(seen.lost or seen.repeated for seen in told.values()) or told["deploy"].closed
    if bad:
        raise CommandError("Something was lost, repeated or closed that should not have been.")


@contextlib.contextmanager
def _watched(client: Client, count: int) -> Iterator[list[Watcher]]:
    """So many demo sessions that talk, each with a live viewer; removed at the end."""
    sessions: list[str] = []
    watchers: list[Watcher] = []
    try:
        for n in range(count):
            prompt = {"id": str(uuid.uuid4()), "text": f"lines {LINES} rate {RATE} size {SIZE}"}
            made = client.post(
                "/v1/sessions",
                {"agent": "demo", "title": f"rehearsal {n + 1} of {count}", "prompt": prompt},
            )
            sessions.append(str(made["id"]))
        watchers += [Watcher(client, session) for session in sessions]
        _back(watchers)
        yield watchers
    finally:
        for watcher in watchers:
            watcher.close()
        for session in sessions:
            with contextlib.suppress(CommandError):
                client.delete(path_of("sessions", session), purge="true")


def _phase(watchers: list[Watcher], name: str) -> None:
    for watcher in watchers:
        watcher.begin(name)


def _wait(watchers: list[Watcher], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for watcher in watchers:
            if watcher.failure is not None:
                raise CommandError(f"Session {watcher.session}: {watcher.failure}")
        time.sleep(0.05)


def _back(watchers: list[Watcher]) -> None:
    """Until every viewer is live and has got something new."""
    had = [watcher.account.after for watcher in watchers]
    until = time.monotonic() + AGAIN_S
    while not all(
        w.account.live and w.account.after not in (None, before)
        for w, before in zip(watchers, had, strict=True)
    ):
        _wait(watchers, 0.05)
        if time.monotonic() > until:
            raise CommandError(f"Not every stream came back within {AGAIN_S:.0f} s.")


def _sum(watchers: list[Watcher], phase: str) -> Seen:
    total = Seen()
    for watcher in watchers:
        total.add(watcher.account.phases[phase])
    return total


def _kill_daemon(client: Client) -> None:
    runtime = up_runtime(os.environ)
    if runtime is not None:
        os.kill(int((runtime / "daemon.pid").read_text()), signal.SIGKILL)
        return
    unit = f"holdoverd@{client.get('/healthz')['generation']}.service"
    subprocess.run(["systemctl", "kill", "--signal=KILL", unit], check=True)


class _Screen:
    """Sentences on stderr, and below them, on a terminal, what the streams see right now."""

    def __init__(self) -> None:
        self._lines = sys.stderr.isatty()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def say(self, text: str) -> None:
        with self._lock:
            click.echo(f"{self._clear()}  {text}", err=True)

    def follow(self, watchers: list[Watcher]) -> None:
        if self._lines:
            self._thread = threading.Thread(target=self._show, args=(watchers,), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            click.echo(self._clear(), err=True, nl=False)

    def _clear(self) -> str:
        return "\r\x1b[K" if self._lines else ""

    def _show(self, watchers: list[Watcher]) -> None:
        while not self._over.wait(0.2):
            now: Any = Seen()
            for watcher in watchers:
                now.add(watcher.account.now)
            with self._lock:
                click.echo(
                    f"{self._clear()}{len(watchers)} streams, {now.messages} lines: {now}",
                    err=True,
                    nl=False,
                )
