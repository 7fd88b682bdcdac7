"""What is wrong with a machine that runs Holdover, judged from facts: no command is run here.

Each function takes what was found out and says what it means, with the remedy as a line to type or a
sentence. What could not be found out (None) is said as that, and is no failure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from holdover.render import counted

Level = Literal["ok", "skipped", "warning", "failed"]

FREE_SHARE, FREE_BYTES = 0.05, 2 << 30
"""As the alert HoldoverDiskFull; below a fifth of either nothing is stored much longer."""

MAX_SKEW_S = 30.0
"""A URL signed by a clock that is further off may not be valid yet, or not any more."""

FDS_A_SESSION, FDS_BESIDE = 4, 500
DRAINS_FOR_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `holdover doctor`. `remedy` is "" where nothing needs one."""

    area: str
    level: Level
    what: str
    remedy: str = ""


def configuration(mistake: str | None, files: Sequence[str]) -> Finding:
    if mistake is not None:
        return Finding(
            "configuration", "failed", mistake, "Mend the line, then `holdover config check`."
        )
    return Finding("configuration", "ok", f"no mistakes in {', '.join(files) or 'the defaults'}")


def daemon(
    health: Mapping[str, Any] | None, why_not: str, *, host: bool, refused: bool = False
) -> Finding:
    """`refused`: whoever asks may not; whether it runs is not known."""
    if refused:
        return Finding("daemon", "skipped", why_not)
    if health is None:
        start = "systemctl start holdover.target" if host else "holdover up"
        return Finding(
            "daemon",
            "failed",
            why_not,
            f"`{start}`; `journalctl -u 'holdoverd@*' -n 50` if it was.",
        )
    return Finding(
        "daemon",
        "ok",
        f"generation {health.get('generation')}, release {health.get('release')}, answers",
    )


DAEMONS_SOCKETS = ("holdover.socket", "holdover-admin.socket")


def sockets(states: Mapping[str, str], *, serves: bool) -> list[Finding]:
    """{socket's unit: its ActiveState}; `serves`: a daemon answers all the same."""
    closed = {unit: state for unit, state in states.items() if state != "active"}
    if not closed:
        return [Finding("sockets", "ok", f"{len(states)} are open")]
    if not serves and all(closed.get(unit) == "inactive" for unit in DAEMONS_SOCKETS):
        # By somebody who has stopped all of it; nothing has gone wrong with one of them.
        stopped = Finding(
            "sockets",
            "failed",
            "Holdover is stopped on this host: nobody can connect; agents may run on",
            "`systemctl start holdover.target`.",
        )
        failed = {unit: state for unit, state in closed.items() if state == "failed"}
        return [stopped, *(sockets(failed, serves=serves) if failed else [])]
    return [
        _held_by_instances(unit, state)
        if serves and unit in DAEMONS_SOCKETS
        else Finding(
            "sockets",
            "failed",
            f"{unit} is {state}",
            f"`systemctl reset-failed {unit}; systemctl start {unit}`; "
            f"`systemctl status {unit}` says what took its address.",
        )
        for unit, state in sorted(closed.items())
    ]


def _held_by_instances(unit: str, state: str) -> Finding:
    """The listener is theirs as well, and systemd cannot bind what they hold."""
    return Finding(
        "sockets",
        "failed",
        f"{unit} is {state}; the instances that live serve on without it and pass its "
        "listener to later ones, but nothing would start one again",
        "at a quiet moment, for it costs connections for a second and no agent: "
        "`systemctl stop 'holdoverd@*.service'; "
        f"systemctl reset-failed {unit}; systemctl start {unit} holdover.target`.",
    )


def failed_units(units: Iterable[str]) -> list[Finding]:
    """A deploy that was taken back is told by `deploys`."""
    found = [unit for unit in units if not unit.startswith("holdover-deploy@")]
    if not found:
        return [Finding("units", "ok", "none has failed, deploys aside")]
    return [
        Finding(
            "units",
            "failed",
            f"{unit} has failed",
            f"`journalctl -u {unit} -n 50`, then `systemctl reset-failed {unit}`.",
        )
        for unit in found
    ]


def descriptors(limit: int | None, *, connections: int, live: int) -> Finding:
    """The daemon's LimitNOFILE= against what the settings let it open."""
    wanted = connections + FDS_A_SESSION * live + FDS_BESIDE
    if limit is None:
        return Finding("limits", "skipped", "the daemon's limit of descriptors is not known here")
    if limit < wanted:
        return Finding(
            "limits",
            "failed",
            f"the daemon may open {limit} descriptors; {connections} connections and {live} "
            f"sessions want {wanted}",
            "Raise LimitNOFILE= (in /etc/systemd/system/holdoverd@.service.d/limits.conf), or lower "
            "[server] max_connections.",
        )
    return Finding("limits", "ok", f"{limit} descriptors, {wanted} at most wanted")


def namespaces(settings: Mapping[str, int]) -> Finding:
    """{sysctl: value} of those that exist; agents of one account are kept apart by namespaces."""
    refusing = {
        "user.max_user_namespaces": settings.get("user.max_user_namespaces") == 0,
        "kernel.unprivileged_userns_clone": settings.get("kernel.unprivileged_userns_clone") == 0,
        "kernel.apparmor_restrict_unprivileged_userns": settings.get(
            "kernel.apparmor_restrict_unprivileged_userns"
        )
        == 1,
    }
    for name, refuses in refusing.items():
        if refuses:
            value = "15000" if name.startswith("user.") else "0" if "apparmor" in name else "1"
            return Finding(
                "limits",
                "warning",
                f"{name} keeps agents out of namespaces of their own: those of one account can "
                "signal and trace each other",
                f"`sysctl -w {name}={value}`, and the same in /etc/sysctl.d.",
            )
    return Finding("limits", "ok", "agents can have namespaces of their own")


def clock(synchronised: bool | None, skew_s: float | None) -> list[Finding]:
    """`skew_s`: storage's clock minus ours."""
    found = []
    if skew_s is not None and abs(skew_s) > MAX_SKEW_S:
        found.append(
            Finding(
                "clock",
                "failed",
                f"storage's clock is {skew_s:+.0f} s from this one: signed URLs are not valid",
                "Set both by NTP: `timedatectl set-ntp true`.",
            )
        )
    if synchronised is None:
        found.append(Finding("clock", "skipped", "whether it is set by NTP cannot be told here"))
    elif not synchronised:
        found.append(
            Finding(
                "clock",
                "warning",
                "it is not set by NTP",
                "`timedatectl set-ntp true` sets it so; where that says `NTP not supported`, install "
                "systemd-timesyncd or chrony.",
            )
        )
    else:
        found.append(Finding("clock", "ok", "set by NTP"))
    return found


def disk(path: str, free: int, size: int, inodes: int | None) -> Finding:
    """`inodes`: the free share of them, in per cent; None where the filesystem counts none."""
    remedy = (
        "`holdover session end --purge` of what nobody needs, `holdover release rm`, a larger disk."
    )
    gib = free / (1 << 30)
    low = free < FREE_BYTES or free < size * FREE_SHARE
    if low:
        level: Level = (
            "failed" if free < FREE_BYTES / 5 or free < size * FREE_SHARE / 5 else "warning"
        )
        return Finding("disk", level, f"{gib:.1f} GiB are free at {path}", remedy)
    if inodes is not None and inodes < 5:
        return Finding("disk", "warning", f"{inodes} % of the inodes are free at {path}", remedy)
    return Finding("disk", "ok", f"{gib:.0f} GiB are free at {path}")


def database(status: Mapping[str, Any] | None, why_not: str, *, skipped: bool = False) -> Finding:
    if skipped:
        return Finding("database", "skipped", why_not)
    if status is None:
        return Finding(
            "database", "failed", why_not, "`holdover db restore FILE` brings a backup back."
        )
    if damage := status.get("damage"):
        return Finding(
            "database",
            "failed",
            f"{status['path']} is damaged: {damage[0]}",
            "`holdover db restore FILE` brings a backup back; keep the damaged file.",
        )
    if status["schema"] < status["release_schema"]:
        return Finding(
            "database",
            "warning",
            f"its schema is {status['schema']}, this release's {status['release_schema']}",
            "`holdover db upgrade`, or start the daemon, which does it.",
        )
    wal = status["wal_bytes"] / (1 << 20)
    if wal > 512:
        return Finding(
            "database",
            "warning",
            f"its log has grown to {wal:.0f} MiB: a reader has been at it for long",
            "A backup that hangs, perhaps: `fuser` on the file tells.",
        )
    looked = "sound" if damage is not None else "there; its pages were not read"
    return Finding("database", "ok", f"{looked}, schema {status['schema']}")


def storage(endpoint: str, answers: bool | None, why_not: str) -> Finding:
    if answers is None:
        return Finding("storage", "skipped", "there is none: files cannot be put or shared")
    if not answers:
        return Finding(
            "storage",
            "failed",
            f"{endpoint} does not answer: {why_not}",
            "`systemctl start holdover-s3.socket holdover-storage.service`; for another S3 see "
            "[storage] endpoint.",
        )
    return Finding("storage", "ok", f"{endpoint} answers")


def agents(items: Sequence[Mapping[str, Any]] | None, why_not: str) -> list[Finding]:
    """As `holdover agent ls --json` lists them; what matters is the default one."""
    if items is None:
        return [Finding("agents", "skipped", why_not)]
    found = []
    for item in items:
        name, level = item["agent"], "failed" if item.get("default") else "warning"
        if item.get("problem"):
            found.append(
                Finding(
                    "agents",
                    level,  # type: ignore[arg-type]
                    # The rest of the sentence is advice for every agent there may be.
                    f"{name} cannot be started: {item['problem'].partition(';')[0]}",
                    '`holdover agent install claude`, or [sessions] default_agent = "demo".'
                    if item["login"] is not None  # asked of Claude Code alone
                    else f"Install its program for its account, or name it by its path in [agents.{name}] "
                    "command.",
                )
            )
        elif item.get("login") is False:
            found.append(
                Finding(
                    "agents",
                    "warning",
                    f"no login is kept for {name}; it needs one of its account's own",
                    "`holdover agent login` keeps one.",
                )
            )
        else:
            found.append(Finding("agents", "ok", f"{name} can be started"))
    return found


def instances(items: Sequence[Mapping[str, Any]] | None, now_ms: int) -> list[Finding]:
    if items is None:
        return [Finding("instances", "skipped", "they cannot be listed from here")]
    found = [
        Finding(
            "instances",
            "warning",
            f"generation {one['generation']} has been draining for "
            f"{(now_ms - one['since_at']) // 3_600_000} h, with {counted(one['sessions'], 'session')}",
            "`holdover drain --migrate` has it hand them over now.",
        )
        for one in items
        if one["state"] == "draining" and now_ms - one["since_at"] > DRAINS_FOR_MS
    ]
    serving = [one for one in items if one["state"] == "serving"]
    if not serving:
        found.append(
            Finding(
                "instances",
                "failed",
                "none serves",
                "`systemctl restart holdover-boot.service` starts the permanent one.",
            )
        )
    return found or [Finding("instances", "ok", f"{len(items)} live, one serves")]


def deploys(last: Mapping[str, Any] | None) -> Finding:
    if last is None:
        return Finding("deploy", "ok", "there was none")
    what = f"generation {last.get('generation')}, release {last.get('release')}"
    if last.get("state") == "rolled back":
        return Finding(
            "deploy",
            "warning",
            f"{what}, was taken back: {last.get('reason')}",
            f"`journalctl -u holdover-deploy@{last.get('generation')}`; deploy again when it is mended.",
        )
    return Finding("deploy", "ok", f"{what}, {last.get('state')}")


def restarts(counts: Mapping[str, int]) -> list[Finding]:
    """{unit: how often systemd has started it anew after it had failed}"""
    return [
        Finding(
            "units",
            "warning",
            f"{unit} ended {'once' if count == 1 else f'{count} times'} without being asked to, and "
            "was started anew",
            f"`journalctl -u {unit} -p warning` says why; `systemctl reset-failed {unit}` forgets it.",
        )
        for unit, count in sorted(counts.items())
        if count
    ]


def stopped(processes: Iterable[tuple[int, str, str]]) -> list[Finding]:
    """(pid, name, unit) of those that neither run nor end: somebody sent them SIGSTOP."""
    return [
        Finding(
            "processes",
            "failed",
            f"process {pid} ({name}) of {unit} is stopped",
            f"`kill -CONT {pid}` lets it go on, unless somebody looks at it with a debugger.",
        )
        for pid, name, unit in processes
    ]


def numbers(metrics: Mapping[str, float]) -> list[Finding]:
    """What the daemon counts: {name, with its labels as Prometheus has them: value}."""
    found = []

    def told(area: str, level: Level, what: str, remedy: str) -> None:
        found.append(Finding(area, level, what, remedy))

    if metrics.get("holdover_catalogue_up") == 0:
        told(
            "database",
            "failed",
            "the daemon cannot read the catalogue",
            "For PostgreSQL: see that it runs and takes connections. `journalctl -u 'holdoverd@*' -n "
            "50` has the database's own words. All goes on by itself then.",
        )
    if stuck := metrics.get("holdover_sessions_stuck"):
        told(
            "database",
            "failed",
            f"what the agents of {counted(stuck, 'session')} say cannot be stored, and waits",
            "`df /var/lib/holdover`, and who else has the catalogue open (`fuser`); `journalctl -u "
            "'holdoverd@*' -n 50` has the database's own words. All goes on by itself then.",
        )
    if refused := metrics.get("holdover_catalogue_failed_writes_total"):
        told(
            "database",
            "warning",
            f"it has refused {counted(refused, 'write')} since the daemon started",
            "What agents said was stored later, people were told; `journalctl -u 'holdoverd@*' -p "
            "warning` has the database's own words.",
        )
    if steps := metrics.get("holdover_clock_steps_total"):
        by = metrics.get("holdover_clock_step_seconds", 0.0)
        told(
            "clock",
            "warning",
            f"it was set {'once' if steps == 1 else f'{steps:.0f} times'} since the daemon started, the "
            f"last time by {by:+.0f} s",
            "`timedatectl set-ntp true` keeps it right without steps; what expires by date may have "
            "expired early or late.",
        )
    if ended := metrics.get('holdover_agent_exits_total{how="oom"}'):
        told(
            "agents",
            "warning",
            f"{ended:.0f} needed more memory than their unit allows, and were ended by the kernel",
            "Raise MemoryMax= of holdover-agent-*@.service; a prompt starts them again.",
        )
    if taken := metrics.get("holdover_jobs_taken_total"):
        told(
            "jobs",
            "warning",
            f"{taken:.0f} were taken from workers that ended without a word",
            "They are tried again; `journalctl -u 'holdover-worker@*' -p warning` says why.",
        )
    return found


def worst(findings: Iterable[Finding]) -> Level:
    order: tuple[Level, ...] = ("ok", "skipped", "warning", "failed")
    return max((one.level for one in findings), key=order.index, default="ok")
