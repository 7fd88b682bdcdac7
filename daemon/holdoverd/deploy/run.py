"""One deploy, from the facts to the next step and again, until it is permanent or taken back."""

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdoverd.deploy import gate
from holdoverd.deploy.control import Control
from holdoverd.deploy.gate import Expected, ProbeError
from holdoverd.deploy.hosts import Host
from holdoverd.deploy.layout import InstallError
from holdoverd.deploy.outcome import Outcome, now_ms
from holdoverd.deploy.pulse import SILENT_S
from holdoverd.deploy.rules import Facts, Step, next_step
from holdoverd.deploy.watch import Watch
from holdoverd.errors import HandoverError

LOOK_S = 0.1
RETIRE_S = 5.0
BAKE_EVERY_S = 0.25
GRACE_S = 2.0
"""After `accept` a predecessor may still take a connection that had come to it."""

SPOKEN_S = 2.0
"""Four beats: whoever has said nothing for so long had stopped before it was ended or lost."""

TOLD_TO_STOP = "the deploy was told to stop before it was permanent"
SPEAKS_S = 2.0
PREDECESSOR_S = 5.0


class DeployBusyError(InstallError):
    """Another deploy holds the lock."""


@contextlib.contextmanager
def deploy_lock(path: Path, generation: int) -> Iterator[None]:
    """One deploy at a time. Raises DeployBusyError, which names who is at it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DeployBusyError(
                f"A deploy is under way: {describe_holder(path)}. Wait for it, or see "
                "`holdover status`."
            ) from None
        os.ftruncate(fd, 0)
        holder = {"pid": os.getpid(), "generation": generation, "since_at": now_ms()}
        os.pwrite(fd, json.dumps(holder).encode(), 0)
        yield
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def describe_holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        since_s = max(0, (now_ms() - int(holder["since_at"])) // 1000)
        return f"generation {holder['generation']}, process {holder['pid']}, since {since_s} s"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has only just begun"


class Deploy:
    """A deploy of one generation on one host. `say` gets a sentence for each thing that happens."""

    def __init__(
        self,
        host: Host,
        generation: int,
        *,
        ready_s: float,
        bake_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._host = host
        self._generation = generation
        self._release = host.release_of(generation) or "?"
        self._ready_s = ready_s
        self._bake_s = bake_s
        self._say = say
        self._control: Control | None = None
        self._mute_s = 0.0  # how long its first word was waited for in vain
        self._asking = threading.Lock()
        self._told_to_stop = False
        self._progress = Facts(generation, None, None, running=False, ready=False)

    def run(self) -> Outcome:
        """Until it is over. Raises DeployBusyError when another is under way."""
        with (
            deploy_lock(self._host.lock_path(), self._generation),
            Watch(self._host, self._generation, self._say),
        ):
            self._tell("running")
            while True:
                if self._told_to_stop and not self._progress.failed:
                    self._fail(TOLD_TO_STOP)
                step = next_step(self._look())
                if step is Step.DONE:
                    self._say(
                        f"generation {self._generation} (release {self._release}) is permanent"
                    )
                    return self._tell("committed")
                if step is Step.FAILED:
                    self._await_predecessor()
                    return self._tell("rolled back", self._progress.failed)
                try:
                    self._do(step)
                except (ProbeError, HandoverError, InstallError, OSError) as error:
                    # A command that systemd ended together with this deploy failed for that reason.
                    stopped = self._told_to_stop and not self._progress.failed
                    self._fail(TOLD_TO_STOP if stopped else str(error))

    def stop(self) -> None:
        """Take it back, unless it is permanent already. May be called by a signal's handler."""
        self._told_to_stop = True

    def _go_on(self) -> None:
        if self._told_to_stop and not self._progress.failed:
            raise InstallError(TOLD_TO_STOP)

    def _tell(self, state: str, reason: str = "") -> Outcome:
        outcome = Outcome(self._generation, self._release, state, reason, now_ms())
        outcome.write(self._host.outcome_path())
        return outcome

    def _fail(self, reason: str) -> None:
        if not self._progress.failed:
            self._say(f"taking it back: {reason}")
            self._progress = replace(self._progress, failed=reason)
        else:
            self._say(f"while taking it back: {reason}; going on")
            self._progress = replace(self._progress, retired=True)

    # -- facts ------------------------------------------------------------------------------------

    def _look(self) -> Facts:
        host = self._host
        running = host.running(self._generation)
        ready = running and host.ready(self._generation)
        if ready and self._control is None:
            dialled = time.monotonic()
            try:
                self._control = Control(host.control_path(self._generation), SILENT_S)
                self._mute_s = 0.0
            except HandoverError:
                ready = False
                self._mute_s = max(self._mute_s, time.monotonic() - dialled)
        if not running and self._control is not None:
            self._drop_control()
        state: Any = self._control.state if self._control is not None else None
        return replace(
            self._progress,
            current=host.current(),
            trial=host.trial(),
            running=running,
            ready=ready and self._control is not None,
            state=state,
        )

    def _drop_control(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    # -- steps ------------------------------------------------------------------------------------

    def _do(self, step: Step) -> None:
        host, mine = self._host, self._generation
        match step:
            case Step.MIGRATE:
                host.migrate(mine)
                self._progress = replace(self._progress, migrated=True)
            case Step.BEGIN_TRIAL:
                host.begin_trial(mine)
            case Step.START:
                self._say(f"starting generation {mine}, release {self._release}")
                host.start(mine)
                self._wait_ready()
            case Step.WAIT_READY:
                self._wait_ready()
            case Step.GATE:
                self._say("ready; trying it before it accepts anything")
                self._gate()
                self._progress = replace(self._progress, gated=True)
            case Step.ACCEPT:
                self._here().order("accept")
                self._say("accepted: new connections reach it, predecessors drain")
                self._stop_speechless()
            case Step.BAKE:
                self._bake()
                self._progress = replace(self._progress, baked=True)
            case Step.COMMIT:
                self._alive()
                host.commit(mine)
            case Step.END_TRIAL | Step.END_FAILED_TRIAL:
                host.end_trial()
            case Step.RETIRE:
                self._retire()
                self._progress = replace(self._progress, retired=True)
            case Step.KILL:
                self._drop_control()
                host.kill(mine)
            case Step.DONE | Step.FAILED:
                raise AssertionError("these end the loop")

    def _here(self) -> Control:
        if self._control is None:
            raise HandoverError(f"Generation {self._generation} does not answer.")
        return self._control

    def _alive(self) -> None:
        """Raises when the instance has died or stands still, or the deploy was told to stop."""
        self._go_on()
        if (why := self._host.failure(self._generation)) is not None:
            raise InstallError(why)
        control = self._here()
        with self._asking:
            control.listen(0.001)
            if control.silent_s() > SILENT_S:
                raise HandoverError(f"it has given no sign of life for {SILENT_S:.0f} s")

    def _in_silence(self, why: str) -> str:
        """`why`, and how long it had stood still, if it had: whoever noticed has killed it for that."""
        silent_s = self._mute_s
        if (control := self._control) is not None:
            with self._asking:
                with contextlib.suppress(HandoverError):
                    control.listen(0.001)
                silent_s = control.silent_s()
        if silent_s < SPOKEN_S:
            return why
        return f"{why.rstrip('.')}; it had given no sign of life for {silent_s:.0f} s"

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + self._ready_s
        while not self._look().ready:
            self._go_on()
            if (why := self._host.failure(self._generation)) is not None:
                raise InstallError(self._in_silence(why))
            if self._mute_s >= SILENT_S:
                raise InstallError(self._in_silence("it was READY"))
            if time.monotonic() > deadline:
                raise InstallError(f"it was not ready within {self._ready_s:g} s")
            time.sleep(LOOK_S)

    def _expected(self) -> Expected:
        # A release's name may carry `+n`, for a changed tree of the same version.
        return Expected(self._generation, self._release.partition("+")[0])

    def _gate(self) -> None:
        self._alive()
        control = self._here()

        def dial(door: str) -> Any:
            with self._asking:
                try:
                    return control.probe(door)
                except HandoverError as error:
                    raise ProbeError(f"passing it a connection: {error}") from error

        with self._watched():
            try:
                gate.try_candidate(
                    dial, self._expected(), control.pid, watch=not self._speechless()
                )
            except ProbeError as error:
                raise ProbeError(self._in_silence(str(error))) from error
        self._alive()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Beats are heard during probes as well: a busy loop starves both."""
        over = threading.Event()

        def listen() -> None:
            while not over.wait(LOOK_S):
                with self._asking, contextlib.suppress(HandoverError):
                    self._here().listen(0.001)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _stop_speechless(self) -> None:
        """Predecessors of releases without a control socket cannot drain: they let go instead."""
        for generation in self._speechless():
            self._say(f"generation {generation} knows of no handover and is stopped")
            self._host.stop(generation)

    def _speechless(self) -> list[int]:
        """Live predecessors of a release from before the handover."""
        older = [g for g in self._host.live_generations() if g < self._generation]
        return [generation for generation in older if not self._speaks(generation)]

    def _speaks(self, generation: int) -> bool:
        """One that has just been started again needs a moment to open its control socket."""
        deadline = time.monotonic() + SPEAKS_S
        while not self._host.control_path(generation).exists():
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_S)
        return True

    def _bake(self) -> None:
        """Fresh connections on the doors that everyone uses, for `bake_s`."""
        if self._bake_s:
            self._say(f"probing it on the public port for {self._bake_s:g} s")
        public = gate.dial_tcp(self._host.public_address())
        admin = gate.dial_unix(self._host.admin_path())
        started = time.monotonic()
        while True:
            self._alive()
            try:
                gate.health(public, self._expected())
                gate.no_such_session(admin)
            except ProbeError as error:
                if time.monotonic() - started > GRACE_S:
                    raise ProbeError(self._in_silence(str(error))) from error
            if time.monotonic() - started >= self._bake_s:
                return
            time.sleep(BAKE_EVERY_S)

    def _retire(self) -> None:
        """What it has goes back to a predecessor, if it still can."""
        control = self._here()
        self._say("its sessions and connections go back")
        with self._asking:
            control.order("retire")
            deadline = time.monotonic() + RETIRE_S
            while time.monotonic() < deadline:
                control.listen(LOOK_S)
                if control.silent_s() > SILENT_S:
                    return
                if control.state == "draining" and not control.sessions + control.connections:
                    return

    def _serves(self, dial: gate.Dial) -> None:
        with gate.Connection(dial, "GET /healthz") as connection:
            if (status := connection.ask("GET", "/healthz").status) != 200:
                raise ProbeError(f"/healthz answers {status}")

    def _await_predecessor(self) -> None:
        """Somebody has to serve again; where nobody lives, the committed one is started."""
        host = self._host
        current = host.current()
        if current is not None and not [
            g for g in host.live_generations() if g != self._generation
        ]:
            self._say(f"no predecessor lives; starting generation {current}")
            with contextlib.suppress(InstallError):
                host.start(current)
        deadline = time.monotonic() + PREDECESSOR_S
        while time.monotonic() < deadline:
            with contextlib.suppress(ProbeError, InstallError):
                self._serves(gate.dial_tcp(host.public_address()))
                self._say("a predecessor serves")
                return
            time.sleep(LOOK_S)
        self._say("no predecessor answers yet; see `holdover status`")
