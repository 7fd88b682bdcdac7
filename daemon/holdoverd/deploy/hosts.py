"""What a deploy needs of the machine it runs on; systemd's answer. `holdover up` has its own."""

import json
import os
import pwd
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from holdoverd.deploy import accounts, layout, workers
from holdoverd.deploy.accounts import DAEMON_USER
from holdoverd.deploy.layout import COMMAND_S, InstallError, systemctl
from holdoverd.whole import write_whole


class Host(Protocol):
    """Everything a deploy reads and changes. Raises InstallError where the machine refuses."""

    def control_path(self, generation: int) -> Path: ...
    def public_address(self) -> tuple[str, int]: ...
    def admin_path(self) -> Path: ...
    def lock_path(self) -> Path: ...
    def outcome_path(self) -> Path: ...
    def release_of(self, generation: int) -> str | None:
        """The release folder's name; its version is what stands before a ``+``."""

    def current(self) -> int | None: ...
    def trial(self) -> int | None: ...
    def begin_trial(self, generation: int) -> None: ...
    def end_trial(self) -> None: ...
    def commit(self, generation: int) -> None: ...
    def migrate(self, generation: int) -> None: ...
    def start(self, generation: int) -> None:
        """Have it started; returns before it is ready."""

    def running(self, generation: int) -> bool: ...
    def ready(self, generation: int) -> bool: ...
    def failure(self, generation: int) -> str | None:
        """In words, where it has died since it was started; None while it lives."""

    def kill(self, generation: int) -> None:
        """End it at once and for good."""

    def end_process(self, generation: int, pid: int) -> None:
        """Kill the process that it runs as, and have it started again; nothing where it has another."""

    def stop(self, generation: int) -> None:
        """Ask it to end; it lets go of its sessions."""

    def live_generations(self) -> Sequence[int]: ...


class SystemdHost:
    """A host on which `packaging/install` has been. Runs as root."""

    def __init__(self) -> None:
        self._instances = layout.RUNTIME / "instances"

    def control_path(self, generation: int) -> Path:
        return self._instances / f"{generation}.sock"

    def admin_path(self) -> Path:
        return layout.RUNTIME / "admin.sock"

    def lock_path(self) -> Path:
        return layout.RUNTIME / "deploy.lock"

    def outcome_path(self) -> Path:
        return layout.LAST_DEPLOY

    def progress_path(self, generation: int) -> Path:
        """What a deploy says as it goes, a sentence a line."""
        return layout.RUNTIME / f"deploy-{generation}.log"

    def public_address(self) -> tuple[str, int]:
        """Where holdover.socket listens, drop-ins included; a wildcard as loopback."""
        listens = systemctl("show", "--value", "--property=Listen", "holdover.socket")
        for line in listens.splitlines():
            if match := re.match(r"(.+):(\d+) \(Stream\)", line.strip()):
                host = match[1].strip("[]")
                return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), int(match[2])  # noqa: S104
        raise InstallError(
            "holdover.socket listens on no TCP port; see `systemctl cat holdover.socket`"
        )

    def release_of(self, generation: int) -> str | None:
        return layout.release_of_generation(generation)

    def current(self) -> int | None:
        return layout.current_generation()

    @property
    def _trial(self) -> Path:
        return self._instances / "trial.json"

    def trial(self) -> int | None:
        return read_trial(self._trial)

    def begin_trial(self, generation: int) -> None:
        user = pwd.getpwnam(DAEMON_USER)
        write_trial(self._trial, generation, self.release_of(generation), self.current())
        os.chown(self._trial, user.pw_uid, user.pw_gid, follow_symlinks=False)

    def end_trial(self) -> None:
        self._trial.unlink(missing_ok=True)

    def commit(self, generation: int) -> None:
        # Before `current` names it: a deploy killed in between is taken up again and comes here
        # once more. Keepers speak with every release, so the order does not matter to them.
        release = self.release_of(generation)
        if release is not None:
            folder = layout.RELEASES / release
            changed = [accounts.renew(folder), workers.renew(folder)]
            if any(changed):
                systemctl("daemon-reload")
            # Where the release before knew no jobs, nobody has opened these yet.
            sockets = layout.UNITS.glob("holdover-processor-*.socket")
            systemctl("start", workers.SOCKET, *(path.name for path in sockets), check=False)
            workers.want(folder)
        layout.commit(generation)

    def migrate(self, generation: int) -> None:
        release = self.release_of(generation)
        run_migration(
            *("runuser", "-u", DAEMON_USER, "--", "env"),
            *(f"STATE_DIRECTORY={layout.STATE}", f"HOLDOVER_RUNTIME_DIR={layout.RUNTIME}"),
            str(layout.RELEASES / str(release) / "bin/python"),
            *("-I", "-m", "holdoverd"),
        )

    def _show(self, generation: int, *names: str) -> list[str]:
        shown = systemctl("show", f"--property={','.join(names)}", unit(generation))
        values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
        return [values.get(name, "") for name in names]

    def start(self, generation: int) -> None:
        systemctl("start", "--no-block", unit(generation))

    def running(self, generation: int) -> bool:
        state, job = self._show(generation, "ActiveState", "Job")
        return state in ("active", "activating", "reloading", "deactivating") or job not in (
            "",
            "0",
        )

    def ready(self, generation: int) -> bool:
        (state,) = self._show(generation, "ActiveState")
        return state == "active"

    def failure(self, generation: int) -> str | None:
        state, sub, restarts, result, code, status, job = self._show(
            generation,
            *("ActiveState", "SubState", "NRestarts", "Result"),
            *("ExecMainCode", "ExecMainStatus", "Job"),
        )
        # With a job it is about to be started: behind its sockets, for one.
        over = state in ("failed", "inactive") and job in ("", "0")
        dead = over or sub == "auto-restart" or restarts not in ("", "0")
        if not dead:
            return None
        how = {"1": f"exited with status {status}", "2": f"was killed by signal {status}"}.get(
            code, f"ended ({result})"
        )
        said = self._last_words(generation)
        return f"it {how}" + (f": {said}" if said else "")

    def _last_words(self, generation: int) -> str:
        done = subprocess.run(
            [
                *("journalctl", "--unit", unit(generation), "--output=cat", "--lines=20"),
                *("--no-pager", "_SYSTEMD_UNIT=" + unit(generation)),
            ],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=COMMAND_S,
        )
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""

    def kill(self, generation: int) -> None:
        # A stop alone waits for TimeoutStopSec=, and a kill alone is answered by Restart=.
        systemctl("kill", "--signal=KILL", unit(generation), check=False)
        systemctl("stop", unit(generation), check=False)
        systemctl("reset-failed", unit(generation), check=False)

    def end_process(self, generation: int, pid: int) -> None:
        # By systemd: a deploy has no right to signal others, and a socket's word on whose it is
        # shall not make it. Restart= answers this.
        (main,) = self._show(generation, "MainPID")
        if main == str(pid):
            systemctl("kill", "--signal=KILL", unit(generation))

    def stop(self, generation: int) -> None:
        systemctl("stop", unit(generation))

    def live_generations(self) -> Sequence[int]:
        return layout.active_generations()


def unit(generation: int) -> str:
    return f"holdoverd@{generation}.service"


def run_migration(*daemon: str) -> None:
    """Have a release's daemon bring the catalogue to its schema. Raises InstallError: it could not."""
    done = subprocess.run(
        [*daemon, "--migrate"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        last = next((t for t in reversed(done.stderr.splitlines()) if t.strip()), "no reason")
        raise InstallError(f"it could not bring the catalogue to its schema: {last[:300]}")


def read_trial(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_text())["generation"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_trial(path: Path, generation: int, release: str | None, previous: int | None) -> None:
    text = json.dumps({"generation": generation, "release": release, "previous": previous})
    write_whole(path, text + "\n")
