"""keeper -> unshare -> init -> agent: who dies with whom, who can reach whom, who holds the lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from holdoverd.keeper import init, protocol
from tests.keeper.bench import (
    DAEMON,
    ECHO,
    KEEPER,
    Bench,
    bench,
    json_lines,
    needs_namespaces,
    python,
    status_of,
    wait_gone,
)
from tests.needs import needs_root

pytestmark = pytest.mark.slow

STUBBORN = """
import os, signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
print("ready", flush=True)
while True: signal.pause()
"""
# Leaves a grandchild behind that holds stdout and every other descriptor, in its own session.
PARENT = """
import os, signal
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(writer, b"x")
        signal.pause()
    os._exit(0)
os.read(reader, 1)
print("bye", flush=True)
"""


def _children(pid: int) -> list[int]:
    return [
        int(entry)
        for entry in os.listdir("/proc")
        if entry.isdigit() and parent_of(int(entry)) == pid
    ]


def parent_of(pid: int) -> int:
    try:
        return int(status_of(pid)["PPid"])
    except (FileNotFoundError, ProcessLookupError):
        return -1


def init_of(answer: dict[str, Any]) -> int:
    return parent_of(answer["agent_pid"])


# ------------------------------------------------------------------------------------------ deaths


def test_the_lock_outlives_a_killed_keeper_until_its_agent_is_gone(
    keep: Bench, isolation: str
) -> None:
    answer = keep.launched(python(STUBBORN), isolation)
    keep.wait_spool(lambda data: b"ready\n" in data)
    chain = [init_of(answer), answer["agent_pid"], *_children(answer["keeper_pid"])]
    assert keep.lock_is_held()
    os.kill(answer["keeper_pid"], signal.SIGKILL)
    keep.wait_lock_free()
    # Free means gone: at most a corpse that has not been reaped.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        assert status_of(answer["agent_pid"])["State"][0] in "ZX"
    for pid in chain:
        wait_gone(pid)


def test_the_agent_alone_keeps_the_lock(keep: Bench) -> None:
    """Stopped processes die late: with keeper and init dead, the agent's own copy counts."""
    answer = keep.launched(ECHO)
    lock = os.stat(keep.lock_path)
    holders = []
    for pid in (answer["agent_pid"], init_of(answer)):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            found = os.stat(entry)
            if (found.st_dev, found.st_ino) == (lock.st_dev, lock.st_ino):
                holders.append(pid)
    assert holders == [answer["agent_pid"], init_of(answer)]


@needs_namespaces
@pytest.mark.parametrize("victim", ["init", "unshare"])
def test_an_init_that_is_killed_takes_the_agent_along_and_the_end_says_so(
    keep: Bench, victim: str
) -> None:
    answer = keep.launched(python(STUBBORN), "--isolation=namespaces")
    keep.wait_spool(lambda data: b"ready\n" in data)
    pid = init_of(answer)
    os.kill(pid if victim == "init" else parent_of(pid), signal.SIGKILL)
    data, end = keep.wait_end()
    assert data == b"ready\n"
    assert (end.status, end.signal) == (None, signal.SIGKILL)
    wait_gone(answer["agent_pid"])


def test_without_namespaces_too_the_agent_dies_with_init(keep: Bench) -> None:
    answer = keep.launched(python(STUBBORN), "--isolation=none")
    keep.wait_spool(lambda data: b"ready\n" in data)
    os.kill(init_of(answer), signal.SIGKILL)
    assert keep.wait_end()[1].signal == signal.SIGKILL
    wait_gone(answer["agent_pid"])


def test_a_grandchild_that_holds_stdout_does_not_hold_up_the_end(
    keep: Bench, isolation: str
) -> None:
    answer = keep.launched(python(PARENT), isolation)
    data, end = keep.wait_end()
    assert data == b"bye\n"
    assert (end.status, end.signal) == (0, None)
    assert not keep.lock_is_held()  # it held a copy: it is gone
    assert answer["ok"]


def test_orphans_are_reaped_while_the_agent_lives(keep: Bench, isolation: str) -> None:
    code = (
        "import os, sys, time\n"
        "reader, writer = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    if os.fork() == 0:\n"
        "        os.write(writer, str(os.getpid()).encode()); os._exit(0)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "orphan = os.read(reader, 20).decode()\n"
        # Its end is seen as the end of its folder in /proc: gone only once somebody reaped it.
        "while os.path.exists(f'/proc/{orphan}'): os.sched_yield()\n"
        "print('reaped', flush=True)\n"
    )
    keep.launched(python(code), isolation)
    assert keep.wait_end()[0] == b"reaped\n"


@pytest.mark.parametrize(("code", "status"), [("7", 7), ("0", 0)])
def test_a_stopped_unit_lets_the_agent_finish(keep: Bench, code: str, status: int) -> None:
    keep.launched(
        python(
            "import signal, sys\n"
            f"signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit({code})))\n"
            "print('ready', flush=True)\n"
            "signal.pause()\n"
        )
    )
    keep.wait_spool(lambda data: b"ready\n" in data)
    assert keep.keeper is not None
    keep.keeper.send_signal(signal.SIGTERM)
    data, end = keep.wait_end()
    assert data == b"ready\nsaved\n"
    assert (end.status, end.signal) == (status, None)


# --------------------------------------------------------------------------------------- isolation


@needs_namespaces
def test_an_agent_reaches_neither_another_nor_anybodys_keeper(keep: Bench) -> None:
    """Same uid, two launches: no signal, no trace, not even a name in /proc."""
    with bench() as other:
        theirs = other.launched(ECHO, "--isolation=namespaces")
        code = (
            "import ctypes, json, os, signal, sys\n"
            "found = {}\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "for pid in map(int, sys.argv[1:]):\n"
            "    try: os.kill(pid, 9); found[pid] = 'killed'\n"
            "    except ProcessLookupError: found[pid] = 'no such process'\n"
            "    libc = ctypes.CDLL(None, use_errno=True)\n"
            "    if libc.ptrace(16, pid, 0, 0) == 0: found[pid] = 'traced'\n"
            "pids = sorted(int(p) for p in os.listdir('/proc') if p.isdigit())\n"
            "try: os.kill(-1, 15)\n"
            "except ProcessLookupError: pass\n"
            "print(json.dumps([found, pids, os.getpid(), os.getppid()]), flush=True)\n"
            "sys.stdin.read()\n"
        )
        # Its own keeper's pid is known only once it runs; its parent's is as good.
        targets = [theirs["keeper_pid"], theirs["agent_pid"], init_of(theirs), os.getpid()]
        keep.launched((*python(code), *map(str, targets)), "--isolation=namespaces")
        said = keep.wait_spool(lambda data: data.endswith(b"\n"))
        ((found, pids, pid, parent),) = json_lines(said)
        assert found == {str(target): "no such process" for target in targets}
        assert (pids, pid, parent) == ([1, 2], 2, 1)
        for made in (keep, other):
            with made.owner() as owner:
                owner.send(protocol.end(1))
                owner.wait(protocol.Exited)
        assert other.wait_end()[1].status == 0
        assert keep.wait_end()[1].status == 0


def run_as_nobody(keep: Bench) -> None:
    """As on a host: daemon and account are different users, the account's home is its own."""
    system_python = "/usr/bin/python3"
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs")
    version = "import sys; sys.exit(sys.version_info < (3, 11))"
    if subprocess.run([*nobody, system_python, "-c", version], check=False).returncode != 0:
        pytest.skip(f"{system_python} is missing, older than 3.11 or closed to other users")
    copy = keep.folder / "daemon" / "holdoverd"
    shutil.copytree(DAEMON / "holdoverd" / "keeper", copy / "keeper")
    for name in ("__init__.py", "errors.py"):
        shutil.copy(DAEMON / "holdoverd" / name, copy / name)
    code = KEEPER.replace(str(DAEMON), str(copy.parent))
    keep.folder.chmod(0o755)
    os.chown(keep.home, 65534, 65534)
    keep.runner = (*nobody, system_python, "-I", "-c", code)


@needs_namespaces
@needs_root
def test_an_unprivileged_account_has_namespaces_too(keep: Bench) -> None:
    run_as_nobody(keep)
    script = "id -u; cat /proc/1/comm; kill -9 1 $PPID; cat"
    answer = keep.launched(("/bin/sh", "-c", script), "--daemon-uid=0")
    assert answer["isolation"] == "namespaces"
    assert status_of(answer["agent_pid"])["Uid"].split()[0] == "65534"
    with keep.owner() as owner:
        owner.send(protocol.line(1, b"hello") + protocol.end(2))
        owner.wait(protocol.Exited)
    assert keep.wait_end()[0] == b"65534\npython3\nhello\n"


@needs_root
def test_an_unprivileged_chain_dies_with_its_keeper(keep: Bench, isolation: str) -> None:
    """The kernel clears a death signal when credentials grow; here they do not."""
    run_as_nobody(keep)
    answer = keep.launched(("/bin/cat",), "--daemon-uid=0", isolation)
    chain = [init_of(answer), answer["agent_pid"], *_children(answer["keeper_pid"])]
    os.kill(answer["keeper_pid"], signal.SIGKILL)
    keep.wait_lock_free()
    for pid in chain:
        wait_gone(pid)


@needs_root
def test_an_agent_killed_for_memory_is_recorded_as_such(keep: Bench) -> None:
    """Version 1 of cgroups; the other is the rules' business (test_account)."""
    with open("/proc/self/cgroup") as file:
        mine = [line.split(":", 2)[2].strip() for line in file if ":memory:" in line]
    if not mine:
        pytest.skip("needs the memory controller of cgroup version 1")
    group = Path(f"/sys/fs/cgroup/memory{mine[0]}") / keep.folder.name
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"needs to make a cgroup: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text("100M")
        enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        keep.runner = ("/bin/sh", "-c", enter, "sh", *keep.runner)
        keep.launched(python("print('x', flush=True); input(); bytearray(400_000_000)"))
        with keep.owner() as owner:
            owner.send(protocol.line(1, b""))
            owner.wait(protocol.Exited)
        data, end = keep.wait_end()
        assert (data, end.signal, end.oom) == (b"x\n", signal.SIGKILL, True)
    finally:
        keep.close()
        group.rmdir()


def test_when_memory_is_out_the_agent_goes_before_its_keeper(keep: Bench, isolation: str) -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    answer = keep.launched(
        python("print(open('/proc/self/oom_score_adj').read().strip(), flush=True); input()"),
        isolation,
    )
    adjusted = Path(f"/proc/{init_of(answer)}/oom_score_adj")
    assert int(adjusted.read_text()) == own
    with keep.owner() as owner:
        owner.send(protocol.line(1, b""))
        owner.wait(protocol.Exited)
    assert keep.wait_end()[0] == b"%d\n" % max(own, init.SOONER)


def test_an_inherited_launch_connection_on_stdout_and_stderr_is_let_go(keep: Bench) -> None:
    """systemd's StandardInput=socket makes all three the connection, unless told otherwise."""
    keep.runner = ("/bin/sh", "-c", 'exec "$@" >&0 2>&0', "sh", *keep.runner)
    keep.launched(python("import sys; print('noise', file=sys.stderr)"))  # reads to its end
    assert keep.wait_end()[1].status == 0


@pytest.mark.parametrize("kind", ["missing", "failing"])
def test_where_namespaces_are_not_possible_the_answer_says_none(keep: Bench, kind: str) -> None:
    folder = keep.folder / "bin"
    folder.mkdir()
    if kind == "failing":
        (folder / "unshare").write_text(
            "#!/bin/sh\necho 'unshare failed: not permitted' >&2\nexit 1\n"
        )
        (folder / "unshare").chmod(0o755)
    answer = keep.launched(ECHO, inherited={"PATH": str(folder)})
    assert answer["isolation"] == "none"
    with keep.owner() as owner:
        owner.send(protocol.line(1, b"x") + protocol.end(2))
        owner.wait(protocol.Exited)
    assert keep.wait_end()[0] == b"x\n"
    if kind == "failing":
        assert "not permitted" in keep.stderr()


def test_namespaces_that_were_demanded_and_are_not_possible_refuse_the_launch(keep: Bench) -> None:
    answer = keep.launch(ECHO, "--isolation=namespaces", inherited={"PATH": str(keep.folder)})
    assert answer["error"]["code"] == "agent_failed"
    assert "unshare(1)" in answer["error"]["message"]
    check_nothing_left(keep)


# ---------------------------------------------------------------------------------------- refusals


def check_nothing_left(keep: Bench) -> None:
    assert keep.keeper is not None
    assert keep.keeper.wait(60) == 0, keep.stderr()
    assert not keep.lock_path.exists() or not keep.lock_is_held()
    assert not keep.spool_path.exists() or keep.spooled() == b""


@pytest.mark.parametrize(
    ("content", "mode", "code", "words"),
    [
        (None, 0, "agent_missing", "was not found"),
        ("#!/nowhere/interpreter\n", 0o755, "agent_missing", "interpreter"),
        ("no program\n", 0o755, "agent_failed", "Exec format error"),
        ("#!/bin/sh\n", 0o644, "agent_failed", "may not execute"),
    ],
)
def test_an_agent_that_cannot_be_executed_is_refused_by_name(
    keep: Bench, isolation: str, content: str | None, mode: int, code: str, words: str
) -> None:
    program = keep.folder / "agent"
    if content is not None:
        program.write_text(content)
        program.chmod(mode)
    answer = keep.launch((str(program),), isolation)
    assert answer["ok"] is False
    assert answer["error"]["code"] == code
    assert words in answer["error"]["message"]
    assert str(program) in answer["error"]["message"]
    check_nothing_left(keep)


@pytest.mark.parametrize(
    ("relative", "code"),
    [
        ("../outside", "cwd_outside"),
        ("link", "cwd_outside"),
        ("missing", "cwd_missing"),
    ],
)
def test_a_folder_that_does_not_do_is_refused_by_name(
    keep: Bench, relative: str, code: str
) -> None:
    root = keep.folder / "root"
    root.mkdir()
    (keep.folder / "outside").mkdir()
    (root / "link").symlink_to(keep.folder / "outside")
    answer = keep.launch(ECHO, cwd=f"{root}/{relative}", roots=[str(root)])
    assert answer["error"]["code"] == code
    check_nothing_left(keep)


def test_the_agent_works_in_the_folder_that_was_asked_for(keep: Bench, isolation: str) -> None:
    folder = keep.folder / "root" / "földer x"
    folder.mkdir(parents=True)
    code = "import os; print(os.getcwd(), os.environ['PWD'], sep='|')"
    answer = keep.launched(
        python(code), isolation, cwd=str(folder), roots=[str(keep.folder / "root")]
    )
    assert answer["cwd"] == str(folder)
    assert keep.wait_end()[0].decode() == f"{folder}|{folder}\n"


def refused(keep: Bench, data: bytes, fds: list[int], *options: str) -> dict[str, Any]:
    with keep.start(*options) as ours:
        keep.send(ours, data, fds)
        ours.shutdown(socket.SHUT_WR)
        answer = keep.answer(ours)
    for fd in fds:
        os.close(fd)
    check_nothing_left(keep)
    assert answer["ok"] is False
    error: dict[str, Any] = answer["error"]
    return error


def test_a_launch_from_another_uid_is_refused(keep: Bench) -> None:
    data = protocol.launch_request(keep.request(ECHO))
    error = refused(keep, data, keep.descriptors(), "--daemon-uid=12345")
    assert error["code"] == "not_allowed"
    assert "daemon's uid 12345" in error["message"]


def test_a_refused_sender_of_a_long_request_hears_why(keep: Bench) -> None:
    """It is refused before it has sent all; it must not see a broken pipe instead."""
    data = protocol.launch_request(keep.request(ECHO, env={"LONG": "x" * 1_000_000}))
    error = refused(keep, data, keep.descriptors(), "--daemon-uid=12345")
    assert error["code"] == "not_allowed"


@pytest.mark.parametrize("count", [0, 1, 2, 4, 20])
def test_a_wrong_number_of_descriptors_is_refused(keep: Bench, count: int) -> None:
    made = keep.descriptors()
    fds = [*made, *(os.dup(made[2]) for _ in range(17))]
    for fd in fds[count:]:
        os.close(fd)
    error = refused(keep, protocol.launch_request(keep.request(ECHO)), fds[:count])
    assert error["code"] == "bad_request"
    assert "descriptors" in error["message"]


@pytest.mark.parametrize(
    ("order", "words"),
    [((1, 1, 2), "first descriptor"), ((0, 0, 2), "second (lock)"), ((0, 1, 0), "third (spool)")],
)
def test_descriptors_of_the_wrong_kind_are_refused(
    keep: Bench, order: tuple[int, int, int], words: str
) -> None:
    made = keep.descriptors()
    fds = [os.dup(made[index]) for index in order]
    for fd in made:
        os.close(fd)
    error = refused(keep, protocol.launch_request(keep.request(ECHO)), fds)
    assert error["code"] == "bad_request"
    assert words in error["message"]


def test_a_listener_that_does_not_listen_is_refused(keep: Bench) -> None:
    fds = keep.descriptors()
    os.close(fds[0])
    fds[0] = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()
    error = refused(keep, protocol.launch_request(keep.request(ECHO)), fds)
    assert "no listening Unix stream socket" in error["message"]


def test_a_spool_that_cannot_be_written_is_refused(keep: Bench) -> None:
    fds = keep.descriptors()
    os.close(fds[2])
    fds[2] = os.open(keep.spool_path, os.O_RDONLY)
    error = refused(keep, protocol.launch_request(keep.request(ECHO)), fds)
    assert "not writable" in error["message"]


def test_a_lock_that_somebody_else_holds_starts_no_second_agent(keep: Bench) -> None:
    fds = keep.descriptors()
    other = os.open(keep.lock_path, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    held, fds[1] = fds[1], other
    with keep.start() as ours:
        keep.send(ours, protocol.launch_request(keep.request(ECHO)), fds)
        answer = keep.answer(ours)
    assert answer["error"]["code"] == "not_allowed"
    assert "its agent still runs" in answer["error"]["message"]
    for fd in (*fds, held):
        os.close(fd)
    check_nothing_left(keep)


@pytest.mark.parametrize(
    "data", [b"LAUNCH 1 3\n{x}", b"LAUNCH 1 99999999\n", b"LAUNCH 1 50\n{", b"x"]
)
def test_an_odd_request_is_refused_by_name(keep: Bench, data: bytes) -> None:
    assert refused(keep, data, keep.descriptors())["code"] == "bad_request"


def test_a_keeper_started_by_hand_says_how_it_is_started(keep: Bench) -> None:
    with keep.start("--help") as ours:
        assert ours.recv(100) == b""
    assert keep.keeper is not None
    assert keep.keeper.wait(60) == 0
    with keep.start("--daemon-user=no-such-user"):
        assert keep.keeper.wait(60) == 2
    assert "there is no user 'no-such-user'" in keep.stderr()


# ------------------------------------------------------------------------------------- init's wire


@pytest.mark.parametrize(
    ("wait_status", "message"),
    [
        (0, b"EXITED 0 -\n"),
        (143 << 8, b"EXITED 143 -\n"),
        (9, b"EXITED - 9\n"),
        (139, b"EXITED - 11\n"),
    ],
)
def test_inits_report_of_a_wait_status(wait_status: int, message: bytes) -> None:
    assert init.exited_message(wait_status) == message


def test_the_environment_and_arguments_pass_init_unchanged(keep: Bench, isolation: str) -> None:
    odd = ["", "ü \u2028", "-x", "a\nb", "\x7f"]
    code = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['ODD']]))"
    keep.launched((*python(code), *odd), isolation, env={"ODD": "\x01ü\n", "LC_ALL": "C.UTF-8"})
    assert json_lines(keep.wait_end()[0]) == [[odd, "\x01ü\n"]]
