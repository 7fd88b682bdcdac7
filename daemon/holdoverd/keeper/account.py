"""What the account lends its agent: home, environment, program; and its cgroup's counters."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Callable, Mapping

from holdoverd.errors import LaunchError

KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR")
"""All that an agent inherits from the keeper's environment. A list of what to keep, because one
of what to drop would miss the next secret: systemd's own variables, an agent's inherited
CLAUDE_CODE_CHILD_SESSION (it then silently saves no transcript), credentials of `holdover up`'s
shell."""
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NEVER = frozenset({"NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "INVOCATION_ID", "JOURNAL_STREAM"})
_NEVER_PREFIXES = ("LISTEN_", "WATCHDOG_")


def agent_environment(
    inherited: Mapping[str, str], entry: pwd.struct_passwd, requested: Mapping[str, str]
) -> dict[str, str]:
    """The agent's whole environment: `KEPT`, what passwd knows, then what the request says.

    systemd's own variables are dropped from the request too: they would name the daemon's
    sockets and watchdog, not the agent's.
    """
    env = {
        "PATH": DEFAULT_PATH,
        "HOME": entry.pw_dir,
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
        "SHELL": entry.pw_shell or "/bin/sh",
    }
    env |= {name: inherited[name] for name in KEPT if inherited.get(name)}
    env |= {
        name: value
        for name, value in requested.items()
        if name not in _NEVER and not name.startswith(_NEVER_PREFIXES)
    }
    return env


def passwd_entry() -> pwd.struct_passwd:
    """The account's passwd entry.

    A uid without one (a container's) gets a plausible entry rather than a refusal.
    """
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        fields = (str(uid), "x", uid, os.getgid(), "", os.environ.get("HOME", "/"), "/bin/sh")
        return pwd.struct_passwd(fields)


def expand_home(path: str, home: str) -> str:
    """`path` with a leading ``~`` replaced by the account's home."""
    return home + path[1:] if path == "~" or path.startswith("~/") else path


def resolve_program(name: str, env: Mapping[str, str], home: str) -> str:
    """The absolute path of argv[0], as the agent's own environment finds it.

    Raises `LaunchError` ``agent_missing`` (with what to do) or ``agent_failed``.
    """
    path = expand_home(name, home)
    if path.startswith("/"):
        candidates = [path]
    elif "/" in path:
        raise LaunchError(
            f"the agent's command {name!r} is a relative path; give an absolute one, one beneath "
            "~/ or a bare name",
            code="agent_missing",
        )
    else:
        folders = [folder for folder in env["PATH"].split(":") if folder.startswith("/")]
        candidates = [f"{folder}/{path}" for folder in folders]
    # A folder is no program, though it has the execute bit.
    existing = [c for c in candidates if os.path.exists(c) and not os.path.isdir(c)]
    for candidate in existing:
        if os.access(candidate, os.X_OK):
            return candidate
    if existing:
        raise LaunchError(
            f"the account {env['USER']} may not execute {existing[0]}; check its mode",
            code="agent_failed",
        )
    where = "" if path.startswith("/") else f" in PATH ({env['PATH']})"
    raise LaunchError(
        f"the agent's program {path} was not found{where} by the account {env['USER']}; "
        "`holdover agent install` brings the agents that Holdover knows; any other is installed for "
        "that account, or named by its path in the agent's command",
        code="agent_missing",
    )


def oom_kills() -> int:
    """How often the kernel killed for memory in the keeper's own cgroup; 0 where it cannot tell."""
    return _own_counter(oom_counter_paths, oom_count)


def refused_forks() -> int:
    """How often the unit's TasksMax= refused a process or thread; 0 where it cannot be told."""
    return _own_counter(fork_counter_paths, fork_count)


def _own_counter(paths_of: Callable[[str], list[str]], count: Callable[[str], int]) -> int:
    total = 0
    with contextlib.suppress(OSError):
        with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
            paths = paths_of(file.read())
        for path in paths:
            with (
                contextlib.suppress(OSError),
                open(path, encoding="ascii", errors="replace") as file,
            ):
                total += count(file.read(4096))
    return total


def oom_counter_paths(cgroups: str) -> list[str]:
    """The files that may hold ``oom_kill N``, given the text of /proc/self/cgroup."""
    return _counter_paths(cgroups, "memory", "memory.oom_control", "memory.events")


def fork_counter_paths(cgroups: str) -> list[str]:
    """The files that may hold ``max N``, given the text of /proc/self/cgroup."""
    return _counter_paths(cgroups, "pids", "pids.events", "pids.events")


def _counter_paths(cgroups: str, controller: str, version_1: str, version_2: str) -> list[str]:
    """Version 1 and hybrid: ``5:memory:/path``; version 2: ``0::/path``.

    Both are looked at: in a hybrid tree the controller may be on either side.
    """
    paths = []
    for entry in cgroups.splitlines():
        _, controllers, path = [*entry.split(":", 2), "", ""][:3]
        path = "" if path == "/" else path
        if controller in controllers.split(","):
            paths.append(f"/sys/fs/cgroup/{controller}{path}/{version_1}")
        elif not controllers and path:
            paths.append(f"/sys/fs/cgroup{path}/{version_2}")
    return paths


def oom_count(text: str) -> int:
    """The ``oom_kill`` counter in memory.events or memory.oom_control; 0 without one."""
    return _count(text, "oom_kill")


def fork_count(text: str) -> int:
    """The ``max`` counter in pids.events; 0 without one."""
    return _count(text, "max")


def _count(text: str, wanted: str) -> int:
    for line in text.splitlines():
        name, _, count = line.partition(" ")
        if name == wanted and count.isdigit():
            return int(count)
    return 0
