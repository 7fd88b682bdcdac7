"""What an agent's program may try against the host and its neighbours. Standard library alone.

    ways_out.py FACTS [--control]

FACTS is a JSON file: what an attacker might have learnt. Prints {way: what became of it}: text that
begins with ``refused``, or with ``open``, and says by what. ``--control`` takes only the ways that
do no harm and that root, outside any unit, has: so that what is refused is known to be there.
"""

import ctypes
import glob
import http.client
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

LIBC = ctypes.CDLL(None, use_errno=True)
FACTS = {}
WAYS = {}
CONTROLS = set()

# Numbers of x86-64 that the C library has no function for.
BPF, IO_URING_SETUP, KEXEC_LOAD, INIT_MODULE = 321, 425, 246, 175
PERF_EVENT_OPEN, PIDFD_OPEN, PIDFD_GETFD, KEYCTL, ADD_KEY = 298, 434, 438, 250, 248
OPEN_BY_HANDLE_AT, SETTIMEOFDAY, USERFAULTFD = 304, 164, 323
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWCGROUP, CLONE_NEWNET = (
    0x20000,
    0x10000000,
    0x2000000,
    0x40000000,
)
MS_BIND, MS_REMOUNT, MS_REC = 4096, 32, 16384


class Refused(Exception):
    """It did not work, and no errno says so."""


def way(name, *, control=False):
    def add(function):
        assert name not in WAYS, name
        WAYS[name] = function
        if control:
            CONTROLS.add(name)
        return function

    return add


def checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(*arguments):
    return checked(
        LIBC.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    )


def ran(*command):
    """A program's output; Refused when it fails."""
    environment = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=20,
        env=environment,
    )  # fmt: skip
    if done.returncode:
        raise Refused((done.stderr or done.stdout).strip()[-120:] or f"exit {done.returncode}")
    return done.stdout


def apart(attempt, flags=0):
    """The attempt in a child, in namespaces of its own (`flags`); a death is a refusal."""
    reading, writing = os.pipe()
    uid, gid = os.geteuid(), os.getegid()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            if flags:
                checked(LIBC.unshare(flags | CLONE_NEWUSER))
                write("/proc/self/setgroups", "deny")
                write("/proc/self/uid_map", f"0 {uid} 1")
                write("/proc/self/gid_map", f"0 {gid} 1")
            said = f"open: {attempt()}"
        except (OSError, Refused, MemoryError) as error:
            said = f"refused: {error!r}"
        except BaseException as error:
            said = f"broken: {error!r}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    said = b""
    while piece := os.read(reading, 65536):
        said += piece
    os.close(reading)
    _, status = os.waitpid(child, 0)
    text = said.decode() or f"refused: ended by {os.waitstatus_to_exitcode(status)}"
    if text.startswith("open: "):
        return text[6:]
    if text.startswith("broken: "):
        raise AssertionError(text)
    raise Refused(text.removeprefix("refused: "))


def write(path, text):
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def opened(path, flags=os.O_RDONLY):
    os.close(os.open(path, flags))
    return path


def made(folder):
    """A file can be made there; it is removed again."""
    path = os.path.join(folder, f"ways-out-{os.getpid()}")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)
    return folder


def connected(path, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_UNIX, kind) as door:
        door.settimeout(5)
        door.connect(path)
    return path


def first_open(attempt, candidates):
    """The first that the attempt succeeds with; the last refusal else. None at all is a mistake."""
    candidates = list(candidates)
    assert candidates, "nothing to try"
    last = None
    for candidate in candidates:
        try:
            return attempt(candidate)
        except (OSError, Refused) as error:
            last = error
    raise last


def asked(method, path, body=None, port=8780, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    if answer.status >= 400:
        raise Refused(f"{answer.status}")
    return f"{answer.status} {text[:80]!r}"


# --- Files -------------------------------------------------------------------------------------


@way("read the catalogue", control=True)
def _():
    return opened("/var/lib/holdover/catalogue.db")


@way("write the catalogue", control=True)
def _():
    return opened("/var/lib/holdover/catalogue.db", os.O_RDWR)


@way("list the spools", control=True)
def _():
    return os.listdir("/var/lib/holdover/spool")


@way("point `current` at another release", control=True)
def _():
    return made("/var/lib/holdover")


@way("read the bytes of files", control=True)
def _():
    return os.listdir("/var/lib/holdover-storage")


@way("read the keys to storage", control=True)
def _():
    return opened("/etc/holdover/storage-keys.json")


@way("read the logins of all accounts", control=True)
def _():
    return os.listdir("/etc/holdover/credentials")


@way("read what systemd laid down for the daemon", control=True)
def _():
    return opened(f"/run/credentials/{FACTS['daemon_unit']}/storage")


@way("read another account's home", control=True)
def _():
    return os.listdir(FACTS["victim_home"])


@way("read a file of known name in another account's home", control=True)
def _():
    return opened(FACTS["victim_secret"])


@way("write into another account's home", control=True)
def _():
    return made(FACTS["victim_home"])


@way("change the daemon's code", control=True)
def _():
    return opened(FACTS["daemon_code"], os.O_WRONLY)


@way("put a release beside the others", control=True)
def _():
    return made("/opt/holdover/releases")


@way("put a program where agents of all accounts find theirs", control=True)
def _():
    return made("/opt/holdover")


@way("change a unit file", control=True)
def _():
    return opened("/etc/systemd/system/holdover.socket", os.O_WRONLY)


@way("add a drop-in", control=True)
def _():
    return made("/etc/systemd/system")


@way("add a unit for this boot", control=True)
def _():
    return made("/run/systemd/system")


@way("change the configuration", control=True)
def _():
    return made("/etc/holdover")


@way("replace the `holdover` command", control=True)
def _():
    return made("/usr/local/bin")


@way("read the passwords", control=True)
def _():
    return opened("/etc/shadow")


@way("change who is who", control=True)
def _():
    return opened("/etc/passwd", os.O_WRONLY)


@way("have cron run something")
def _():
    return first_open(made, ["/etc/cron.d", "/etc/cron.hourly", "/var/spool/cron", "/etc"])


@way("have every login run something", control=True)
def _():
    return made("/etc/profile.d")


@way("link another's file into a folder of one's own")
def _():
    with tempfile.TemporaryDirectory(dir=os.path.expanduser("~")) as folder:
        os.link("/etc/shadow", f"{folder}/mine")
        return opened(f"{folder}/mine")


@way("find what others have in /tmp")
def _():
    found = [
        f for folder in ("/tmp", "/var/tmp") for f in glob.glob(f"{folder}/{FACTS['marker']}*")
    ]
    if not found:
        raise Refused("a /tmp of its own")
    return first_open(opened, found)


@way("find the neighbours' shared memory")
def _():
    found = glob.glob(f"/dev/shm/{FACTS['marker']}*")
    if not found:
        raise Refused("a /dev/shm of its own")
    return first_open(opened, found)


@way("find the neighbours' message queues")
def _():
    name = f"/{FACTS['marker']}".encode()
    runtime = ctypes.CDLL("librt.so.1", use_errno=True)
    checked(runtime.mq_open(name, os.O_RDWR))
    return name


@way("find the neighbours' System V memory")
def _():
    return syscall(29, FACTS["sysv_key"], 0, 0)  # shmget of what is there


@way("fill a folder that everybody shares")
def _():
    return first_open(made, ["/run/lock", "/var/lock", "/run", "/run/user"])


@way("open a file by its handle, past all folders")
def _():
    handle = ctypes.create_string_buffer(struct.pack("<IiQI", 12, 1, 2, 0) + bytes(128))
    root = os.open("/", os.O_RDONLY)
    try:
        return syscall(OPEN_BY_HANDLE_AT, root, handle, os.O_RDONLY)
    finally:
        os.close(root)


# --- Doors -------------------------------------------------------------------------------------


@way("open the admin door", control=True)
def _():
    return connected("/run/holdover/admin.sock")


@way("open the instances' door", control=True)
def _():
    return first_open(
        lambda kind: connected(f"/run/holdover/instances/{FACTS['generation']}.sock", kind),
        [socket.SOCK_STREAM, socket.SOCK_SEQPACKET],
    )


@way("list the ways to keepers", control=True)
def _():
    return os.listdir("/run/holdover/sessions")


@way("greet another session's keeper", control=True)
def _():
    return first_open(connected, FACTS["keepers"])


@way("launch an agent as itself", control=True)
def _():
    return connected(f"/run/holdover/agents/{FACTS['attacker']}.sock")


@way("launch an agent as another account", control=True)
def _():
    return connected(f"/run/holdover/agents/{FACTS['victim']}.sock")


@way("launch a processor as another account", control=True)
def _():
    return connected(f"/run/holdover/processors/{FACTS['victim']}.sock")


@way("start a worker", control=True)
def _():
    return connected("/run/holdover/workers.sock")


@way("replace one of these doors by one's own", control=True)
def _():
    return first_open(made, ["/run/holdover", "/run/holdover/agents", "/run/holdover/workers"])


@way("open storage's own socket", control=True)
def _():
    return connected("/run/holdover-storage/s3.sock")


@way("reach storage's side ports")
def _():
    ports = [8888, 9333, 8080, 8333, 18888, 19333, 18080, 18333]
    return first_open(lambda port: socket.create_connection(("127.0.0.1", port), 2).close(), ports)


@way("list storage without a signature")
def _():
    return first_open(lambda path: asked("GET", path, port=8781), ["/", "/holdover", "/holdover/x"])


@way("write to storage without a signature")
def _():
    return asked("PUT", "/holdover/ways-out", b"x", port=8781)


@way("list sessions without a token")
def _():
    return asked("GET", "/v1/sessions")


@way("make itself a token")
def _():
    return asked("POST", "/v1/tokens", '{"name":"x","scopes":["admin"]}')


@way("read the metrics without a token")
def _():
    return asked("GET", "/metrics")


@way("pass for the proxy, or for the host itself")
def _():
    return first_open(
        lambda headers: asked("GET", "/v1/admin/instances", **headers),
        [
            {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1"},
            {"Authorization": "Bearer "},
            {"Cookie": "holdover="},
            {"Host": "admin.sock"},
        ],
    )


@way("listen beside the public door, and take its visitors")
def _():
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return first_open(
            lambda at: (thief.bind(at), thief.listen()),
            [("127.0.0.1", 8780), ("0.0.0.0", 8780), ("127.0.0.1", 8781)],
        )


@way("listen where only the host's own may", control=True)
def _():
    with socket.socket() as door:
        door.bind(("127.0.0.1", 623))
    return 623


@way("reach an abstract socket of Holdover or systemd")
def _():
    with open("/proc/net/unix") as table:
        names = [line.split()[-1] for line in table if "@" in line.split()[-1]]
    ours = [n for n in names if "holdover" in n or "systemd" in n]
    if not ours:
        raise Refused("there is none")
    return first_open(lambda name: connected("\0" + name[1:]), ours)


# --- systemd and its bus -----------------------------------------------------------------------


@way("talk to systemd itself", control=True)
def _():
    return connected("/run/systemd/private")


@way("stop the daemon")
def _():
    return ran("systemctl", "--no-ask-password", "stop", FACTS["daemon_unit"])


@way("end another's agent through systemd")
def _():
    return ran("systemctl", "--no-ask-password", "kill", FACTS["victim_unit"])


@way("lift its own limits through systemd")
def _():
    return ran(
        *("systemctl", "--no-ask-password", "set-property", "--runtime"),
        *(FACTS["attacker_unit"], "MemoryMax=infinity", "TasksMax=infinity"),
    )


@way("have systemd run something, as root")
def _():
    return ran("systemd-run", "--no-ask-password", "--wait", "true")


@way("have systemd run something, outside its unit")
def _():
    return ran("systemd-run", "--no-ask-password", "--user", "--scope", "true")


@way("have itself a manager of its own that lingers")
def _():
    return ran("loginctl", "--no-ask-password", "enable-linger")


@way("set the clock through the bus")
def _():
    return ran("timedatectl", "--no-ask-password", "set-time", "2001-01-01 00:00:00")


@way("say that the daemon has stopped")
def _():
    """Seen from outside: the datagram itself is taken from everybody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect("/run/systemd/notify")
        notify.send(b"STATUS=ways-out\nSTOPPING=1\nMAINPID=1")
    raise Refused("sent; see the daemon's unit")


@way("write into the journal under the daemon's name")
def _():
    """Seen from outside, too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.connect("/run/systemd/journal/socket")
        unit = FACTS["daemon_unit"]
        journal.send(f"MESSAGE=ways-out\n_SYSTEMD_UNIT={unit}\nUNIT={unit}\n".encode())
        journal.send(f"MESSAGE=ways-out\nOBJECT_SYSTEMD_UNIT={unit}\n".encode())
    raise Refused("sent; see the daemon's journal")


@way("read the daemon's journal", control=True)
def _():
    field = f"_SYSTEMD_UNIT={FACTS['daemon_unit']}"
    if ran("journalctl", "--no-pager", "--output=json", "-n", "4", field):
        return "read"
    raise Refused("nothing of it")


@way("become somebody by a setuid program")
def _():
    tries = [
        ("su", "-c", "true", "root"),
        ("sudo", "-n", "true"),
        ("mount", "-t", "tmpfs", "none", "/mnt"),
        ("newgrp", "holdover-admin"),
        ("pkexec", "true"),
    ]
    known = [t for t in tries if os.path.exists(f"/usr/bin/{t[0]}")]
    return first_open(lambda command: ran(*command), known)


# --- Processes ---------------------------------------------------------------------------------


def theirs(pids):
    """Numbers as the host counts; one that is there in our namespace is a process of our own."""
    return [pid for pid in pids if FACTS["control"] or not os.path.exists(f"/proc/{pid}")]


@way("see the processes of others", control=True)
def _():
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                if b"--generation" in file.read():
                    return entry
    raise Refused("a /proc of its own")


@way("signal the daemon", control=True)
def _():
    return first_open(lambda pid: os.kill(pid, 0), theirs(FACTS["daemon_pids"]))


@way("signal its own keeper", control=True)
def _():
    return first_open(lambda pid: os.kill(pid, 0), theirs(FACTS["keeper_pids"]))


@way("signal another session's agent", control=True)
def _():
    return first_open(lambda pid: os.kill(pid, 0), theirs(FACTS["others_pids"]))


@way("stop the namespace's init, which holds the lock")
def _():
    os.kill(1, signal.SIGSTOP)  # the kernel keeps it from whoever is process 1
    with open("/proc/1/stat") as stat:
        if stat.read().rpartition(") ")[2][0] == "T":
            return "stopped"
    raise Refused("it goes on")


@way("trace another session's agent", control=True)
def _():
    def trace(pid):
        checked(LIBC.ptrace(0x4206, ctypes.c_long(pid), None, None))  # PTRACE_SEIZE
        return pid

    return apart(lambda: first_open(trace, theirs(FACTS["others_pids"])))


@way("trace its own keeper", control=True)
def _():
    def trace(pid):
        checked(LIBC.ptrace(0x4206, ctypes.c_long(pid), None, None))
        return pid

    return apart(lambda: first_open(trace, theirs(FACTS["keeper_pids"])))


@way("read the memory of its own keeper", control=True)
def _():
    return first_open(lambda pid: opened(f"/proc/{pid}/mem"), theirs(FACTS["keeper_pids"]))


@way("take a descriptor from its own keeper", control=True)
def _():
    def take(pid):
        process = syscall(PIDFD_OPEN, pid, 0)
        return syscall(PIDFD_GETFD, process, 0, 0)

    return first_open(take, theirs(FACTS["keeper_pids"]))


@way("trace the namespace's init, which holds the lock")
def _():
    def trace():
        checked(LIBC.ptrace(0x4206, ctypes.c_long(1), None, None))
        return "traced"

    return apart(trace)


@way("take a descriptor from the namespace's init")
def _():
    return syscall(PIDFD_GETFD, syscall(PIDFD_OPEN, 1, 0), 0, 0)


@way("find a descriptor that it should not have")
def _():
    """Pipes, the journal as its stderr, and its session's lock, which it has to hold."""
    folder = f"/proc/{os.getppid()}/fd"
    have = {number: os.readlink(f"{folder}/{number}") for number in os.listdir(folder)}
    strange = {
        number: what
        for number, what in have.items()
        if not what.startswith(("pipe:", "/dev/null"))
        and not (what.startswith("socket:") and number == "2")
        and not (what.startswith("/run/holdover/sessions/s_") and what.endswith(".lock"))
    }
    if strange:
        return str(strange)
    raise Refused(f"{len(have)} of its own")


@way("enter the namespaces of the daemon", control=True)
def _():
    def enter():
        with open(f"/proc/{theirs(FACTS['daemon_pids'])[0]}/ns/mnt") as space:
            return checked(LIBC.setns(space.fileno(), 0))

    return apart(enter)


@way("become root", control=True)
def _():
    def become():
        os.setresuid(0, 0, 0)
        return os.getresuid()

    return apart(become)


@way("become the daemon's user", control=True)
def _():
    def become():
        os.setresuid(FACTS["daemon_uid"], FACTS["daemon_uid"], FACTS["daemon_uid"])
        return os.getresuid()

    return apart(become)


@way("join the group of the admin door", control=True)
def _():
    def join():
        os.setgroups([FACTS["admin_gid"]])
        return os.getgroups()

    return apart(join)


@way("map another user into a namespace")
def _():
    def become():
        checked(LIBC.unshare(CLONE_NEWUSER))
        write("/proc/self/uid_map", f"0 {FACTS['daemon_uid']} 1")
        return "mapped"

    return apart(become)


@way("have more rights than none")
def _():
    with open("/proc/self/status") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name in ("CapPrm", "CapEff", "CapAmb") and int(value, 16):
                return line
            if name == "NoNewPrivs" and value.strip() != "1":
                return line
    raise Refused("no capability, and none to be had")


@way("outlive its session, as a child of nobody")
def _():
    """Left behind by a fork that lets go of everything; looked for from outside, afterwards."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in range(3):
                os.close(number)
            os.execv("/bin/sleep", [f"ways-out-{FACTS['marker']}", "600"])
        os._exit(0)
    os.wait()
    raise Refused("started; see its unit")


# --- Namespaces of its own, in which it is root ------------------------------------------------


def mount(source, target, kind, flags=0):
    checked(LIBC.mount(source.encode(), target.encode(), kind.encode(), flags, None))
    return target


def lifted(path):
    checked(LIBC.umount2(path.encode(), 2))
    os.listdir(path)
    return path


@way("lift the wall over the daemon's state, as root of a namespace")
def _():
    return apart(lambda: lifted("/var/lib/holdover"), CLONE_NEWNS)


@way("look behind that wall by binding what lies under it")
def _():
    def look():
        mount("/var/lib", "/mnt", "none", MS_BIND)
        return os.listdir("/mnt/holdover")

    return apart(look, CLONE_NEWNS)


@way("make /usr writable again")
def _():
    def remount():
        mount("none", "/usr", "none", MS_REMOUNT | MS_BIND)
        return made("/usr/bin")

    return apart(remount, CLONE_NEWNS)


@way("make the control groups writable again")
def _():
    def remount():
        mount("none", "/sys/fs/cgroup", "none", MS_REMOUNT | MS_BIND | MS_REC)
        return first_open(opened_for_write, cgroup_files("cgroup.procs"))

    return apart(remount, CLONE_NEWNS | CLONE_NEWCGROUP)


@way("mount control groups of its own")
def _():
    def mounted():
        first_open(
            lambda kind: mount("none", "/mnt", kind),
            ["cgroup2", "cgroup"],
        )
        return first_open(opened_for_write, glob.glob("/mnt/**/cgroup.procs", recursive=True))

    return apart(mounted, CLONE_NEWNS | CLONE_NEWCGROUP)


@way("mount the host's /proc")
def _():
    def mounted():
        mount("proc", "/mnt", "proc")
        if "--generation" in ran("cat", f"/mnt/{FACTS['daemon_pids'][0]}/cmdline"):
            return "the daemon"
        raise Refused("its own processes")

    return apart(mounted, CLONE_NEWNS)


@way("mount a disk")
def _():
    def mounted():
        with open("/proc/partitions") as table:
            names = [line.split()[3] for line in table if line.strip() and "name" not in line]
        return first_open(lambda name: mount(f"/dev/{name}", "/mnt", "ext4"), names or ["vda"])

    return apart(mounted, CLONE_NEWNS)


@way("configure the host's network, as root of a namespace")
def _():
    return apart(lambda: ran("ip", "link", "set", "lo", "down"), CLONE_NEWNS)


# --- The kernel --------------------------------------------------------------------------------


def opened_for_write(path):
    return opened(path, os.O_WRONLY)


def cgroup_files(name):
    found = glob.glob(f"/sys/fs/cgroup/**/{name}", recursive=True)
    return found or [f"/sys/fs/cgroup/{name}"]


@way("leave its control group", control=True)
def _():
    return first_open(opened_for_write, cgroup_files("cgroup.procs"))


@way("raise its memory limit", control=True)
def _():
    names = ("memory.limit_in_bytes", "memory.max")
    return first_open(opened_for_write, [f for name in names for f in cgroup_files(name)])


@way("be the last that the kernel kills for memory")
def _():
    def protect():
        write("/proc/self/oom_score_adj", "-1000")
        return "protected"

    return apart(protect)


@way("go before everybody else", control=True)
def _():
    return apart(lambda: os.nice(-20))


@way("run in real time", control=True)
def _():
    def real_time():
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
        return "real time"

    return apart(real_time)


@way("open more files than it was given")
def _():
    def raise_limit():
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1] + 1
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        except ValueError as error:  # Python's word for EPERM
            raise Refused(str(error)) from None
        return limit

    return apart(raise_limit)


@way("change what happens to every crash on the host")
def _():
    return opened_for_write("/proc/sys/kernel/core_pattern")


@way("press the magic key")
def _():
    return opened_for_write("/proc/sysrq-trigger")


@way("read the kernel's log", control=False)
def _():
    return first_open(opened, ["/dev/kmsg", "/proc/kmsg"])


@way("read the kernel's log by its call")
def _():
    text = ctypes.create_string_buffer(4096)
    return syscall(103, 3, text, 4096)


@way("read the machine's memory")
def _():
    return first_open(opened, ["/dev/mem", "/dev/port", "/proc/kcore"])


@way("read a disk")
def _():
    names = ["/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/loop0", "/dev/dm-0"]
    return first_open(opened, names)


@way("make a device")
def _():
    with tempfile.TemporaryDirectory() as folder:
        os.mknod(f"{folder}/disk", 0o660 | 0o060000, os.makedev(254, 0))
        return opened(f"{folder}/disk")


@way("load a program into the kernel")
def _():
    return syscall(BPF, 0, ctypes.create_string_buffer(128), 72)


@way("load a module")
def _():
    return syscall(INIT_MODULE, ctypes.create_string_buffer(8), 8, b"")


@way("load another kernel")
def _():
    return syscall(KEXEC_LOAD, 0, 0, 0, 0)


@way("watch the whole machine's work")
def _():
    attributes = ctypes.create_string_buffer(struct.pack("<II", 1, 112) + bytes(120))
    return syscall(PERF_EVENT_OPEN, attributes, -1, 0, -1, 0)


@way("handle faults for the kernel")
def _():
    return syscall(USERFAULTFD, 0)


@way("set the clock")
def _():
    now = struct.pack("<qq", int(time.time()), 0)
    return syscall(SETTIMEOFDAY, now, 0)


@way("name the host", control=True)
def _():
    name = os.uname().nodename.encode()
    return checked(LIBC.sethostname(name, len(name)))


@way("restart the machine")
def _():
    return checked(LIBC.reboot(0x89ABCDEF))  # what Ctrl-Alt-Del does, and no more


@way("swap on a file")
def _():
    return checked(LIBC.swapon(b"/etc/hostname", 0))


@way("change the root")
def _():
    return apart(lambda: os.chroot("/tmp"))


@way("read a key of the daemon's user")
def _():
    keyring = syscall(KEYCTL, 0, -4, 0)  # the user's keyring, made anew where there is none
    found = syscall(KEYCTL, 10, keyring, b"user", FACTS["marker"].encode(), 0)
    return f"key {found}"


@way("read packets that are not its own")
def _():
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300):
        return "packets"


@way("send packets of its own making", control=True)
def _():
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP):
        return "raw"


@way("speak a protocol that no agent needs")
def _():
    families = [38, 40, 31, 29, 21, 44]  # crypto, vsock, bluetooth, CAN, RDS, XDP
    return first_open(
        lambda family: socket.socket(family, socket.SOCK_SEQPACKET, 0).close(), families
    )


# --- More than its share -----------------------------------------------------------------------


@way("take all memory")
def _():
    def eat():
        taken = []
        while len(taken) < 128:
            taken.append(b"x" * (16 << 20))
        return "2 GiB"

    return apart(eat)


@way("take all memory through /dev/shm, and leave it there")
def _():
    path = f"/dev/shm/ways-out-{FACTS['marker']}"

    def fill():
        with open(path, "wb") as file:
            for _ in range(128):
                file.write(b"x" * (16 << 20))
        return "2 GiB"

    try:
        return apart(fill)
    finally:
        if os.path.exists(path):
            os.unlink(path)


@way("take all processes")
def _():
    def fork():
        children = []
        try:
            for _ in range(1000):
                child = os.fork()
                if child == 0:
                    signal.pause()
                children.append(child)
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        return f"{len(children)} processes"

    return apart(fork)


@way("take the disk that the catalogue is on")
def _():
    """No unit has a wall for that: homes have a disk of their own here, as the README asks."""
    path = os.path.expanduser("~/fill")

    def fill():
        with open(path, "wb") as file:
            for _ in range(64):
                file.write(b"x" * (1 << 20))
        return "64 MiB"

    try:
        return apart(fill)
    finally:
        os.unlink(path)


def main():
    with open(sys.argv[1]) as file:
        FACTS.update(json.load(file))
    FACTS["control"] = "--control" in sys.argv
    chosen = CONTROLS if FACTS["control"] else WAYS
    became = {}
    for name in (name for name in WAYS if name in chosen):
        try:
            became[name] = f"open: {WAYS[name]()}"
        except (OSError, Refused) as error:
            became[name] = f"refused: {error!r}"
        except subprocess.TimeoutExpired as error:
            became[name] = f"refused: {error}"
        except Exception as error:  # a mistake of this script, which must not pass for a refusal
            became[name] = f"broken: {error!r}"
    print(json.dumps(became))


if __name__ == "__main__":
    main()
