"""What a deploy needs of `holdover up`: the same as of systemd, asked of the supervisor."""

import contextlib
import json
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdover.places import SUPERVISOR_SOCKET
from holdoverd.deploy.hosts import read_trial, run_migration, write_trial
from holdoverd.deploy.layout import InstallError

ASK_S = 30.0
MAX_ANSWER_BYTES = 64 * 1024


def last_deploy_path(runtime: Path) -> Path:
    """How the last deploy ended; an `Outcome`."""
    return runtime / "last-deploy.json"


def progress_path(runtime: Path, generation: int) -> Path:
    """What a deploy says as it goes, a sentence a line."""
    return runtime / f"deploy-{generation}.log"


def ask(runtime: Path, op: str, **fields: Any) -> Any:
    """Have the supervisor do something. Raises InstallError: refused, gone or silent."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(ASK_S)
        try:
            sock.connect(str(runtime / SUPERVISOR_SOCKET))
            sock.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
            data = b""
            while not data.endswith(b"\n") and len(data) <= MAX_ANSWER_BYTES:
                more = sock.recv(MAX_ANSWER_BYTES)
                if not more:
                    break
                data += more
            answer = json.loads(data)
        except (OSError, ValueError) as error:
            raise InstallError(
                f"`holdover up` does not answer at {runtime / SUPERVISOR_SOCKET}: {error}. Is it "
                "still running?"
            ) from error
    if "error" in answer:
        raise InstallError(str(answer["error"]))
    return answer["ok"]


class UpHost:
    """The host of one `holdover up`; for a process with the daemon's own environment."""

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime
        self._releases: dict[int, str] = {}

    def control_path(self, generation: int) -> Path:
        return self._runtime / "instances" / f"{generation}.sock"

    def admin_path(self) -> Path:
        return self._runtime / "admin.sock"

    def lock_path(self) -> Path:
        return self._runtime / "deploy.lock"

    def outcome_path(self) -> Path:
        return last_deploy_path(self._runtime)

    def progress_path(self, generation: int) -> Path:
        return progress_path(self._runtime, generation)

    def public_address(self) -> tuple[str, int]:
        host, port = ask(self._runtime, "address")
        return str(host), int(port)

    def _state(self, generation: int) -> dict[str, Any]:
        state: dict[str, Any] = ask(self._runtime, "state", generation=generation)
        return state

    def release_of(self, generation: int) -> str | None:
        if generation not in self._releases:
            self._releases[generation] = str(self._state(generation)["release"])
        return self._releases[generation]

    def current(self) -> int | None:
        return int(ask(self._runtime, "current"))

    @property
    def _trial(self) -> Path:
        return self._runtime / "instances" / "trial.json"

    def trial(self) -> int | None:
        return read_trial(self._trial)

    def begin_trial(self, generation: int) -> None:
        write_trial(self._trial, generation, self.release_of(generation), self.current())

    def end_trial(self) -> None:
        self._trial.unlink(missing_ok=True)

    def commit(self, generation: int) -> None:
        ask(self._runtime, "commit", generation=generation)

    def migrate(self, generation: int) -> None:
        run_migration(*ask(self._runtime, "command", generation=generation))

    def start(self, generation: int) -> None:
        ask(self._runtime, "start", generation=generation)

    def running(self, generation: int) -> bool:
        return bool(self._state(generation)["running"])

    def ready(self, generation: int) -> bool:
        return bool(self._state(generation)["ready"])

    def failure(self, generation: int) -> str | None:
        failure = self._state(generation)["failure"]
        return None if failure is None else str(failure)

    def kill(self, generation: int) -> None:
        ask(self._runtime, "kill", generation=generation)

    def end_process(self, generation: int, pid: int) -> None:  # noqa: ARG002 - the pid is enough
        # By the supervisor it would be for good. It is of our own user.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def stop(self, generation: int) -> None:
        ask(self._runtime, "stop", generation=generation)

    def live_generations(self) -> Sequence[int]:
        return [int(g) for g in ask(self._runtime, "living")]
