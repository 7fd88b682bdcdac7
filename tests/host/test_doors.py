"""The doors and who stands behind them: sockets, boot service, generations, agents' units.

systemd and the units are real; a stand-in of a few lines plays the daemon, since what is asked here
is whether a visitor is ever turned away while daemons fail, change and stop.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.host.machine import Machine
from tests.live.up import wait_until

pytestmark = pytest.mark.host

# Answers every connection with its generation, and says what it got from systemd.
STAND_IN = r"""
import os, selectors, socket, sys
generation = sys.argv[2]
names = os.environ["LISTEN_FDNAMES"].split(":")
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.connect(os.environ["NOTIFY_SOCKET"])
    notify.send(b"READY=1")
doors = selectors.DefaultSelector()
for fd, name in enumerate(names, start=3):
    listener = socket.socket(fileno=fd)
    listener.setblocking(False)
    doors.register(listener, selectors.EVENT_READ, name)
while True:
    for key, _ in doors.select():
        try:
            connection, _ = key.fileobj.accept()
        except BlockingIOError:
            continue  # the other generation was faster
        with connection:
            connection.send(f"{generation} {key.data}\n".encode())
"""
# Says in a pipe of the test that it has been started, and fails.
FAILS = "import sys; open('/run/starts', 'w').write('.'); sys.exit(1)"

LAUNCH = r"""
import socket, sys
launch = socket.socket(socket.AF_UNIX)
launch.connect("/run/holdover/agents/holdover-agent.sock")
print("connected", flush=True)
if sys.argv[1] == "read":  # until the unit has closed its end
    print(launch.makefile().read(), end="", flush=True)
else:
    sys.stdin.read()
"""


def put_generation(machine: Machine, number: int, program: str) -> None:
    """A generation whose unit is the real one, but for the program behind it."""
    script = f"/usr/local/lib/stand-in-{number}.py"
    machine.write(script, program)
    unit = machine.read("/etc/systemd/system/holdoverd@1.service")
    start = f"ExecStart=/usr/bin/python3 -I {script} --generation {number}"
    unit, count = re.subn(r"^ExecStart=.*$", start, unit, flags=re.MULTILINE)
    assert count == 1
    machine.write(f"/etc/systemd/system/holdoverd@{number}.service", unit)
    machine.systemctl("daemon-reload")


def read_line(machine: Machine, process: subprocess.Popen[bytes]) -> str:
    """The next line a process inside prints; fails with what systemd did meanwhile."""
    assert process.stdout is not None
    line = b""
    # Byte by byte: what a buffer has taken already, select does not see.
    while not line.endswith(b"\n"):
        if not select.select([process.stdout], [], [], 90)[0]:
            process.kill()
            seen = machine.run(["journalctl", "--no-pager", "--lines=80"]).stdout
            jobs = machine.systemctl("list-jobs").stdout
            processes = machine.run(["ps", "-ef"]).stdout
            pytest.fail(f"no line came\n{jobs}\n{processes[-4000:]}\n{seen}")
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, f"the process ended after {line!r}"
        line += byte
    return line.decode()


def make_current(machine: Machine, number: int) -> None:
    machine.run(["ln", "-sfn", str(number), "/var/lib/holdover/current"])


def knock(machine: Machine) -> socket.socket:
    connection = machine.connect_tcp(8780)
    connection.settimeout(60)
    return connection


def answer(connection: socket.socket) -> str:
    with connection, connection.makefile() as lines:
        return lines.readline().strip()


@contextlib.contextmanager
def counted_starts(machine: Machine) -> Iterator[Callable[[int], None]]:
    """A way to wait until the failing generation has been started so many times."""
    pipe = machine.path("/run/starts")
    os.mkfifo(pipe)
    pipe.chmod(0o666)
    reading = os.open(pipe, os.O_RDWR)  # with a writer of its own it never ends

    def wait(starts: int) -> None:
        for _ in range(starts):
            assert select.select([reading], [], [], 60)[0], "it is not started any more"
            os.read(reading, 1)

    try:
        yield wait
    finally:
        os.close(reading)
        pipe.unlink()


@pytest.fixture(scope="module")
def installed(clean_host: Machine) -> Machine:
    clean_host.install("--no-start")
    put_generation(clean_host, 90, STAND_IN)
    put_generation(clean_host, 91, FAILS)
    put_generation(clean_host, 92, STAND_IN)
    return clean_host


@pytest.fixture
def doors(installed: Machine) -> Iterator[Machine]:
    """The doors open, nobody behind them, generation 90 current."""
    make_current(installed, 90)
    sockets = ["holdover.socket", "holdover-admin.socket", "holdover-agent-holdover-agent.socket"]
    installed.systemctl("start", *sockets)
    yield installed
    installed.systemctl("stop", "holdover.target", "holdover*.socket", "holdover*.service")
    installed.systemctl("reset-failed", check=False)


@contextlib.contextmanager
def agent_runs(machine: Machine, command: str, *, socket_lines: str = "") -> Iterator[None]:
    """While inside, launches of the default account start `command` instead of a keeper."""
    service = "/run/systemd/system/holdover-agent-holdover-agent@.service.d"
    of_socket = "/run/systemd/system/holdover-agent-holdover-agent.socket.d"
    machine.write(f"{service}/test.conf", f"[Service]\nExecStart=\nExecStart={command}\n")
    machine.write(f"{of_socket}/test.conf", f"[Socket]\n{socket_lines}\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", "holdover-agent-holdover-agent.socket")
    try:
        yield
    finally:
        machine.systemctl("stop", "holdover-agent-*.service")
        machine.run(["rm", "-r", service, of_socket])
        machine.systemctl("daemon-reload")


def launch(machine: Machine, mode: str = "hold") -> subprocess.Popen[bytes]:
    """Connect to the agents' socket as the daemon's user; ends when its stdin is closed."""
    command = ["/usr/bin/python3", "-I", "-c", LAUNCH, mode]
    pipe = subprocess.PIPE
    process = machine.popen(command, user="holdover", stdin=pipe, stdout=pipe)
    assert read_line(machine, process) == "connected\n"
    return process


def agent_units(machine: Machine) -> list[str]:
    listing = machine.systemctl("list-units", "--plain", "--no-legend", "holdover-agent-*.service")
    return [line.split()[0] for line in listing.stdout.splitlines()]


def test_a_knock_starts_the_current_generation(doors: Machine) -> None:
    assert answer(knock(doors)) == "90 public"
    with socket.socket(socket.AF_UNIX) as admin:
        admin.settimeout(60)
        admin.connect(str(doors.path("/run/holdover/admin.sock")))
        assert admin.makefile().readline() == "90 admin\n"
    assert doors.show("holdoverd@90.service", "ActiveState") == "active"


def test_a_daemon_that_always_fails_takes_no_door_down_and_the_visitor_waits(
    doors: Machine,
) -> None:
    """systemd's own start limit is five in ten seconds; beyond it the socket would fail."""
    make_current(doors, 91)
    with counted_starts(doors) as wait_starts, contextlib.closing(knock(doors)) as visitor:
        wait_starts(8)
        for unit in ("holdover.socket", "holdover-admin.socket"):
            assert doors.show(unit, "ActiveState") == "active"
        make_current(doors, 90)
        assert answer(visitor) == "90 public"


def test_a_broken_current_link_says_so_and_recovers(doors: Machine) -> None:
    doors.run(["ln", "-sfn", "../etc/passwd", "/var/lib/holdover/current"])
    with contextlib.closing(knock(doors)) as visitor:
        failed = doors.systemctl("start", "holdover-boot.service", check=False)
        assert failed.returncode != 0
        assert "no generation is current" in doors.journal("holdover-boot.service")
        make_current(doors, 90)
        assert answer(visitor) == "90 public"


def test_two_generations_share_the_doors_and_either_may_stop(doors: Machine) -> None:
    doors.systemctl("start", "holdoverd@90.service")
    doors.systemctl("start", "holdoverd@92.service")
    doors.systemctl("stop", "holdoverd@90.service")
    assert {answer(knock(doors)) for _ in range(20)} == {"92 public"}
    doors.systemctl("start", "holdoverd@90.service")
    doors.systemctl("stop", "holdoverd@92.service")
    assert {answer(knock(doors)) for _ in range(20)} == {"90 public"}
    # The runtime folders belong to neither.
    for folder in ("instances", "sessions"):
        assert doors.run(["stat", "-c", "%a %U", f"/run/holdover/{folder}"]).stdout == (
            "700 holdover\n"
        )


def test_starting_anything_leaves_a_running_daemons_sockets_nonblocking(doors: Machine) -> None:
    """The flag belongs to the socket, not to its holder; blocking, a daemon hangs in accept()."""
    nonblocking = 0o4000
    doors.systemctl("start", "holdoverd@90.service")
    pid = doors.show("holdoverd@90.service", "MainPID")
    for unit in ("holdover-boot.service", "holdoverd@92.service", "holdover.target"):
        doors.systemctl("start", unit)
        for fd in (3, 4):
            info = doors.run(["cat", f"/proc/{pid}/fdinfo/{fd}"]).stdout
            flags = re.search(r"^flags:\s+(\d+)$", info, re.MULTILINE)
            assert flags is not None
            assert int(flags[1], 8) & nonblocking, unit


def test_a_killed_daemon_comes_back_and_no_connection_is_refused(doors: Machine) -> None:
    assert answer(knock(doors)) == "90 public"
    before = doors.show("holdoverd@90.service", "MainPID")
    doors.systemctl("kill", "--signal=KILL", "holdoverd@90.service")
    assert [answer(knock(doors)) for _ in range(5)] == ["90 public"] * 5
    assert doors.show("holdoverd@90.service", "MainPID") not in ("0", before)


def wait_inactive(machine: Machine, unit: str) -> None:
    """`systemctl stop holdover.target` waits for the target, and not for all that stops with it."""
    wait_until(lambda: machine.show(unit, "ActiveState") == "inactive", f"{unit} is inactive")


def test_stopping_everything_leaves_agents_running(doors: Machine) -> None:
    doors.systemctl("start", "holdover.target")
    with agent_runs(doors, "/bin/cat"), launch(doors) as held:
        (agent,) = agent_units(doors)
        pid = doors.show(agent, "MainPID")
        doors.systemctl("stop", "holdover.target")
        for unit in ("holdover.socket", "holdover-admin.socket", "holdoverd@90.service"):
            wait_inactive(doors, unit)
        wait_inactive(doors, "holdover-agent-holdover-agent.socket")
        assert doors.show(agent, "MainPID") == pid
        assert doors.show(agent, "ActiveState") == "active"
        held.communicate()


def test_only_the_daemon_may_launch(doors: Machine) -> None:
    command = ["/usr/bin/python3", "-I", "-c", LAUNCH, "hold"]
    for user in ("holdover-agent", "nobody"):
        refused = doors.run(command, user=user, check=False)
        assert "PermissionError" in refused.stderr
        refused = doors.run(["ls", "/var/lib/holdover"], user=user, check=False)
        assert "Permission denied" in refused.stderr
    assert agent_units(doors) == []


def test_more_than_64_agents_fit(doors: Machine) -> None:
    """systemd's default for MaxConnections= is 64, and it refuses without a word."""
    many = r"""
import socket, sys
held = []
for _ in range(70):
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].connect("/run/holdover/agents/holdover-agent.sock")
    assert held[-1].recv(1) == b"!"
print("all", flush=True)
sys.stdin.read()
"""
    with agent_runs(doors, '/bin/sh -c "printf ! >&0; exec cat"'):
        pipe = subprocess.PIPE
        command = ["/usr/bin/python3", "-I", "-c", many]
        with doors.popen(command, user="holdover", stdin=pipe, stdout=pipe) as held:
            assert read_line(doors, held) == "all\n"
            assert len(agent_units(doors)) == 70
            held.communicate()


def test_failed_agents_give_their_slot_back(doors: Machine) -> None:
    with agent_runs(doors, "/bin/false", socket_lines="MaxConnections=4"):
        before = int(doors.show("holdover-agent-holdover-agent.socket", "NAccepted"))
        for _ in range(12):
            assert launch(doors, "read").communicate()[0] == b""
        assert doors.show("holdover-agent-holdover-agent.socket", "ActiveState") == "active"
        after = int(doors.show("holdover-agent-holdover-agent.socket", "NAccepted"))
        assert after - before == 12
        assert agent_units(doors) == []


def test_an_agents_unit_has_limits_walls_and_namespaces(doors: Machine) -> None:
    """The report is made where an agent runs: behind `unshare`, inside the unit's sandbox."""
    report = r"""
import json, os
def refused(path):
    try:
        os.listdir(path)
    except PermissionError:
        return True
    return False
status = dict(line.split(":\t", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "pid": os.getpid(), "uid": os.getuid(), "home": os.environ["HOME"], "cwd": os.getcwd(),
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "no_new_privs": status["NoNewPrivs"].strip(), "state_hidden": refused("/var/lib/holdover"),
    "etc_writable": os.access("/etc", os.W_OK), "home_writable": os.access(".", os.W_OK),
    "devices": os.path.exists("/dev/loop-control") or os.path.exists("/dev/mem"),
}), file=open("report.json", "w"))
"""
    doors.write("/usr/local/lib/report.py", report)
    unshare = "/usr/bin/unshare --user --map-current-user --pid --mount --mount-proc --fork"
    command = f"{unshare} --kill-child /usr/bin/python3 -I /usr/local/lib/report.py"
    with agent_runs(doors, command):
        assert launch(doors, "read").communicate()[0] == b""
    uid, _, home = doors.account("holdover-agent")
    assert json.loads(doors.read(f"{home}/report.json")) == {
        "pid": 1,
        "uid": uid,
        "home": home,
        "cwd": home,
        "processes": [1],
        "no_new_privs": "1",
        "state_hidden": True,
        "etc_writable": False,
        "home_writable": True,
        "devices": False,
    }
    with agent_runs(doors, "/bin/cat"), launch(doors) as held:
        (agent,) = agent_units(doors)
        assert doors.show(agent, "Slice") == "holdover-agents.slice"
        assert int(doors.show(agent, "MemoryMax")) < 2**50
        assert doors.show(agent, "TasksMax") == "4096"
        assert doors.show(agent, "OOMPolicy") == "continue"
        held.communicate()


def test_memory_eaten_inside_an_agent_kills_the_eater_alone(doors: Machine) -> None:
    eat = '/bin/sh -c "/usr/bin/python3 -c \\"b\'x\' * (300 << 20)\\"; echo survived $? >&0"'
    with agent_runs(doors, eat):
        service = "/run/systemd/system/holdover-agent-holdover-agent@.service.d/memory.conf"
        doors.write(service, "[Service]\nMemoryMax=60M\n")
        doors.systemctl("daemon-reload")
        assert launch(doors, "read").communicate()[0] == b"survived 137\n"


def test_a_reboot_needs_no_visitor(doors: Machine) -> None:
    doors.reboot()
    assert doors.show("holdoverd@90.service", "ActiveState") == "active"
    assert answer(knock(doors)) == "90 public"
