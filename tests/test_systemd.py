"""systemd's protocols, against real descriptors, datagrams and child processes."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from holdoverd import systemd

# Takes its sockets and reports what it got; a second call must find nothing.
REPORT = """
import json, os, sys
from holdoverd.errors import SettingsError
from holdoverd.systemd import listen_fds
try:
    taken = listen_fds()
except SettingsError as exc:
    print(json.dumps({"error": str(exc)}))
    sys.exit()
print(json.dumps({
    "names": {name: [s.getsockname() for s in socks] for name, socks in taken.items()},
    "inheritable": any(os.get_inheritable(s.fileno()) for v in taken.values() for s in v),
    "environment": sorted(k for k in os.environ if k.startswith("LISTEN_")),
    "again": listen_fds(),
}))
"""

# Stands in for systemd: puts descriptors at 3, 4 …, names itself in LISTEN_PID, becomes the child.
SHIM = """
import fcntl, os, sys
fds = [int(fd) for fd in sys.argv[1].split(",") if fd]
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]
for target, fd in enumerate(high, 3):
    os.dup2(fd, target)
if os.environ.get("LISTEN_PID") == "self":
    os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
"""

DAEMON = str(Path(systemd.__file__).parent.parent)


def report(fds: Sequence[int], **env: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", SHIM, ",".join(map(str, fds)), REPORT],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": DAEMON, **env},
        pass_fds=fds,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        socks = []
        for name in ("public.sock", "admin.sock"):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(str(tmp_path / name))
            sock.listen()
            socks.append(sock)
        yield socks


def test_sockets_arrive_by_name_and_are_not_passed_on(listeners: list[socket.socket]) -> None:
    got = report(
        [s.fileno() for s in listeners],
        LISTEN_PID="self",
        LISTEN_FDS="2",
        LISTEN_FDNAMES="public:admin",
    )
    assert got == {
        "names": {"public": [listeners[0].getsockname()], "admin": [listeners[1].getsockname()]},
        "inheritable": False,
        "environment": [],
        "again": {},
    }


def test_two_sockets_of_one_name_stay_together(listeners: list[socket.socket]) -> None:
    got = report(
        [s.fileno() for s in listeners],
        LISTEN_PID="self",
        LISTEN_FDS="2",
        LISTEN_FDNAMES="public:public",
    )
    assert got["names"] == {"public": [s.getsockname() for s in listeners]}


def test_sockets_without_names_are_unknown(listeners: list[socket.socket]) -> None:
    got = report([listeners[0].fileno()], LISTEN_PID="self", LISTEN_FDS="1")
    assert got["names"] == {"unknown": [listeners[0].getsockname()]}


def test_sockets_meant_for_another_process_are_left_alone(listeners: list[socket.socket]) -> None:
    got = report([listeners[0].fileno()], LISTEN_PID="1", LISTEN_FDS="1")
    assert got["names"] == {}
    assert got["environment"] == [], "a stale LISTEN_PID must not reach children either"


def test_nothing_passed_is_nothing_taken() -> None:
    assert report([])["names"] == {}


@pytest.mark.parametrize("count", ["-1", "x", "1.5", "254", "²"])
def test_a_senseless_count_is_refused(count: str) -> None:
    assert "LISTEN_FDS" in str(report([], LISTEN_PID="self", LISTEN_FDS=count)["error"])


def test_a_name_too_few_is_refused(listeners: list[socket.socket]) -> None:
    got = report(
        [s.fileno() for s in listeners], LISTEN_PID="self", LISTEN_FDS="2", LISTEN_FDNAMES="one"
    )
    assert "FileDescriptorName=" in str(got["error"])


def test_a_file_a_connection_and_a_closed_descriptor_are_refused(tmp_path: Path) -> None:
    left, right = socket.socketpair()
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right, datagram, (tmp_path / "file").open("w") as file:
        for fds in ([file.fileno()], [left.fileno()], [datagram.fileno()], []):
            got = report(fds, LISTEN_PID="self", LISTEN_FDS="1", LISTEN_FDNAMES="public")
            assert "'public'" in str(got["error"])
            assert "not a listening stream socket" in str(got["error"])


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is missing"
)
def test_real_socket_activation(tmp_path: Path) -> None:
    paths = [str(tmp_path / "a.sock"), str(tmp_path / "b.sock")]
    process = subprocess.Popen(
        [
            "systemd-socket-activate",
            "-l",
            paths[0],
            "-l",
            paths[1],
            "--fdname=public:admin",
            "-E",
            f"PYTHONPATH={DAEMON}",
            sys.executable,
            "-c",
            REPORT,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:  # it listens before it says so
            if "b.sock" in line:
                break
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(paths[1])
            out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert json.loads(out)["names"] == {"public": [paths[0]], "admin": [paths[1]]}


# --- notify ----------------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if request.param == "path":
            sock.bind(str(tmp_path / "notify"))
            monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        else:
            sock.bind("")  # autobind: the kernel picks an abstract name
            monkeypatch.setenv("NOTIFY_SOCKET", "@" + sock.getsockname()[1:].decode())
        sock.setblocking(False)
        yield sock


def test_notify_sends_one_datagram(manager: socket.socket) -> None:
    assert systemd.notify(READY=1, STATUS="3 sessions")
    assert manager.recv(4096) == b"READY=1\nSTATUS=3 sessions"


def test_a_line_break_in_a_status_forges_no_variable(manager: socket.socket) -> None:
    assert systemd.notify(STATUS="title\nSTOPPING=1\r\0x")
    assert manager.recv(4096) == b"STATUS=title STOPPING=1  x"


@pytest.mark.parametrize("path", ["", "/nonexistent/notify", "vsock:2:1", "relative"])
def test_nobody_to_notify_is_no_error(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    assert systemd.notify(READY=1) is False


def test_watchdog_is_half_of_its_timeout_and_only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert systemd.watchdog_interval_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert systemd.watchdog_interval_s() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.watchdog_interval_s() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert systemd.watchdog_interval_s() is None
    for broken in ("0", "soon", "-5"):
        monkeypatch.setenv("WATCHDOG_USEC", broken)
        assert systemd.watchdog_interval_s() is None


# --- journal ---------------------------------------------------------------------------------


def decode_fields(data: bytes) -> dict[str, str]:
    """journald's side of the native protocol, strictly."""
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        assert name.decode() not in fields
        fields[name.decode()] = value.decode()
        data = rest
    return fields


class Journal:
    """A journald of our own: one datagram socket, descriptors accepted."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.path)
        self.sock.setblocking(False)

    def read(self) -> dict[str, str]:
        data, fds, _, _ = socket.recv_fds(self.sock, 1 << 20, 1)
        if fds:
            assert data == b""
            seals = fcntl.fcntl(fds[0], fcntl.F_GET_SEALS)
            assert seals & fcntl.F_SEAL_WRITE
            assert seals & fcntl.F_SEAL_SHRINK
            size = os.fstat(fds[0]).st_size
            data = os.pread(fds[0], size, 0)
            os.close(fds[0])
        return decode_fields(data)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal")
    with journal.sock:
        yield journal


@pytest.fixture
def logger(journal: Journal) -> Iterator[logging.Logger]:
    logger = logging.Logger("holdoverd.test")
    handler = systemd.JournalHandler({"GENERATION": 7, "RELEASE": "1.2.3"}, path=journal.path)
    logger.addHandler(handler)
    yield logger
    handler.close()


def test_a_record_carries_the_fields_to_filter_by(logger: logging.Logger, journal: Journal) -> None:
    logger.warning("spool of %s is short", "l_1", extra={"session": "s_1"})
    fields = journal.read()
    assert fields.pop("CODE_LINE").isdigit()
    assert fields.pop("CODE_FILE") == __file__
    assert fields == {
        "MESSAGE": "spool of l_1 is short [s_1]",
        "PRIORITY": "4",
        "LOGGER": "holdoverd.test",
        "CODE_FUNC": "test_a_record_carries_the_fields_to_filter_by",
        "SESSION_ID": "s_1",
        "SYSLOG_IDENTIFIER": "holdoverd",
        "GENERATION": "7",
        "RELEASE": "1.2.3",
    }


def test_a_line_break_in_a_value_forges_no_field(logger: logging.Logger, journal: Journal) -> None:
    logger.error("said\nPRIORITY=0\n_UID=0", extra={"session": "s\nRELEASE=9", "error_id": "e_1"})
    fields = journal.read()
    assert fields["MESSAGE"] == "said [s?RELEASE=9]\nPRIORITY=0\n_UID=0"
    assert fields["SESSION_ID"] == "s\nRELEASE=9"
    assert fields["RELEASE"] == "1.2.3"
    assert fields["PRIORITY"] == "3"
    assert fields["ERROR_ID"] == "e_1"


def test_a_traceback_is_part_of_the_message(logger: logging.Logger, journal: Journal) -> None:
    try:
        raise RuntimeError("boom \ud800")  # what surrogateescape makes of bytes that are not UTF-8
    except RuntimeError:
        logger.exception("went wrong")
    message = journal.read()["MESSAGE"]
    assert message.startswith("went wrong\nTraceback")
    assert "boom \\ud800" in message


@pytest.mark.parametrize(
    ("level", "priority"), [("debug", "7"), ("info", "6"), ("error", "3"), ("critical", "2")]
)
def test_priorities_are_syslogs(
    logger: logging.Logger, journal: Journal, level: str, priority: str
) -> None:
    getattr(logger, level)("x")
    assert journal.read()["PRIORITY"] == priority


def test_a_record_too_large_for_a_datagram_goes_as_a_sealed_file(
    logger: logging.Logger, journal: Journal
) -> None:
    text = "é" * 120_000  # 240,000 bytes: over the usual send buffer of 212,992
    logger.info("%s", text)
    assert journal.read()["MESSAGE"] == text


def test_a_value_over_the_bound_is_cut_and_says_so(
    logger: logging.Logger, journal: Journal
) -> None:
    logger.info("%s", "x" * (256 * 1024))
    assert journal.read()["MESSAGE"] == "x" * (256 * 1024), "at the bound: whole"
    logger.info("%s", "x" * (256 * 1024 + 1))
    assert journal.read()["MESSAGE"] == "x" * (256 * 1024) + " [cut: 262145 bytes in all]"


def test_a_slow_journal_never_blocks_and_the_loss_is_told(
    logger: logging.Logger, journal: Journal
) -> None:
    # net.unix.max_dgram_qlen bounds the queue, usually at 10; far more are logged here.
    for number in range(1000):
        logger.info("record %d", number)
    kept = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            assert journal.read()["MESSAGE"] == f"record {kept}"
            kept += 1
    assert 0 < kept < 1000
    logger.info("after")
    told = journal.read()
    assert told["MESSAGE"].startswith(f"{1000 - kept} log records were lost")
    assert told["RELEASE"] == "1.2.3"
    assert journal.read()["MESSAGE"] == "after"


def test_without_a_journald_records_go_to_stderr(
    logger: logging.Logger, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = systemd.JournalHandler({}, path=journal.path + ".gone")
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "still here", None, None)
    handler.emit(record)
    handler.close()
    assert "INFO still here" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["_UID", "lower", "", "A" * 65, "A=B", "9A"])
def test_a_field_name_that_journald_would_drop_is_a_mistake(name: str) -> None:
    with pytest.raises(ValueError, match="no journal field name"):
        systemd.encode_fields({name: "x"})


def test_lines_for_people_cannot_be_forged() -> None:
    record = logging.LogRecord(
        "x", logging.INFO, __file__, 1, "one\n09:00:00 ERROR two \x1b[2J", None, None
    )
    record.session = "s_1\nx"
    text = systemd.StderrFormatter().format(record)
    first, second = text.split("\n")
    assert first.endswith("INFO one [SESSION_ID=s_1?x]")
    assert second == "    09:00:00 ERROR two \\x1b[2J"


def test_the_journal_is_recognised_by_device_and_inode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert isinstance(systemd.log_handler(generation=1, release="1"), systemd.StderrHandler)
    with (tmp_path / "stream").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert systemd.under_journal(stream)
        monkeypatch.setattr(sys, "stderr", stream)
        handler = systemd.log_handler(generation=1, release="1")
        assert isinstance(handler, systemd.JournalHandler)
        handler.close()
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
        assert not systemd.under_journal(stream)
