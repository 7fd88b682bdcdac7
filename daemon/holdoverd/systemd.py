"""systemd's side of a service, without libsystemd: sockets, readiness, watchdog, journal.

Four small protocols, all plain environment variables and datagrams: sd_listen_fds(3), sd_notify(3),
sd_watchdog_enabled(3) and https://systemd.io/JOURNAL_NATIVE_PROTOCOL. Written out here because the
binding to libsystemd needs a compiler and headers on every host, and the protocols are frozen.

Owns no thread and never blocks for long: a notification waits at most a second, a log record not at
all (one that the journal cannot take at once is counted, and the count is logged later).
"""

import array
import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import stat
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import TextIO

from holdoverd.errors import SettingsError

_FIRST_FD = 3  # SD_LISTEN_FDS_START
_MAX_LISTEN_FDS = 253  # more would not fit one SCM_RIGHTS message at a handover either
_JOURNAL_SOCKET = "/run/systemd/journal/socket"
_MAX_FIELD_BYTES = 256 * 1024
_FIELD_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")  # journald drops any other, silently

# --- sockets: sd_listen_fds(3) ---------------------------------------------------------------


def listen_fds() -> dict[str, list[socket.socket]]:
    """Take the listening sockets that systemd (or `holdover up`) passed, by their names.

    Sockets without a name are under ``unknown``, as systemd calls them. Nothing was passed, or it
    was passed to another process (LISTEN_PID): an empty dict. The variables are removed from the
    environment and every descriptor is close-on-exec, so that no child inherits them; a second
    call finds nothing. The caller owns the sockets.

    Raises SettingsError when a descriptor is not a listening stream socket: a unit is wrong then.
    """
    pid = os.environ.pop("LISTEN_PID", "")
    count_text = os.environ.pop("LISTEN_FDS", "")
    names_text = os.environ.pop("LISTEN_FDNAMES", None)
    os.environ.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not count_text:
        return {}
    if not count_text.isascii() or not count_text.isdigit() or int(count_text) > _MAX_LISTEN_FDS:
        raise SettingsError(
            f"LISTEN_FDS={count_text!r} is not a number of descriptors from 0 to {_MAX_LISTEN_FDS};"
            " start the daemon through its units or `holdover up`."
        )
    fds = range(_FIRST_FD, _FIRST_FD + int(count_text))
    names = names_text.split(":") if names_text is not None else ["unknown"] * len(fds)
    if len(names) != len(fds):
        raise SettingsError(
            f"LISTEN_FDNAMES has {len(names)} names for {len(fds)} descriptors; every socket"
            " needs one FileDescriptorName=."
        )
    for fd in fds:  # all of them before anything can fail and start a child
        with contextlib.suppress(OSError):  # a closed one is reported by name below
            os.set_inheritable(fd, False)
    taken: dict[str, list[socket.socket]] = {}
    for fd, name in zip(fds, names, strict=True):
        taken.setdefault(name or "unknown", []).append(_listening_socket(fd, name))
    return taken


def _listening_socket(fd: int, name: str) -> socket.socket:
    wrong = f"Descriptor {fd} ({name!r}), passed by systemd, is not a listening stream socket"
    hint = "check ListenStream= and Accept=no in its socket unit."
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise SettingsError(f"{wrong}; {hint}")
        sock = socket.socket(fileno=fd)
    except OSError as exc:
        raise SettingsError(f"{wrong} ({exc.strerror}); {hint}") from exc
    # SO_ACCEPTCONN, because with Accept=yes systemd passes a connection, which looks alike.
    is_stream = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
    if not is_stream or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise SettingsError(f"{wrong}; {hint}")
    return sock


# --- readiness: sd_notify(3) -----------------------------------------------------------------


def notify(**state: object) -> bool:
    """Tell the service manager, for instance ``notify(READY=1, STATUS="3 sessions")``.

    False when nobody listens (NOTIFY_SOCKET unset) or the datagram could not be sent; never
    raises for that, since a daemon that cannot report still has to serve. A line break in a value
    becomes a space: it would otherwise forge another variable. NOTIFY_SOCKET stays set, so it has
    to be removed from the environment of children.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path or path[0] not in "/@":  # vsock: addresses only exist for virtual machines
        return False
    lines = [f"{key}={str(value).translate(_ONE_LINE)}" for key, value in state.items()]
    address = "\0" + path[1:] if path[0] == "@" else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        # A full queue at PID 1 empties in milliseconds; a second bounds what a stuck one costs us.
        sock.settimeout(1.0)
        try:
            sock.sendto("\n".join(lines).encode(), address)
        except OSError:
            return False
    return True


_ONE_LINE = {ord(c): " " for c in "\n\r\0"}


def watchdog_interval_s() -> float | None:
    """How often to send ``WATCHDOG=1``, in seconds: half of WatchdogSec=; None when not asked for."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not usec.isascii() or not usec.isdigit() or int(usec) == 0:
        return None
    if pid and pid != str(os.getpid()):
        return None
    return int(usec) / 2_000_000


# --- the journal -----------------------------------------------------------------------------


def under_journal(stream: TextIO | None = None) -> bool:
    """Is `stream` (default: stderr) connected to the journal? See JOURNAL_STREAM, systemd.exec(5)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat((stream or sys.stderr).fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def encode_fields(fields: Mapping[str, object]) -> bytes:
    """Fields in the native protocol's form; a value with a line break goes in the binary form.

    A name that journald would drop raises ValueError, since it is a mistake in our own code. A
    value over 256 KiB is cut and says so.
    """
    parts: list[bytes] = []
    for name, value in fields.items():
        if not _FIELD_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no journal field name: A-Z, 0-9 and _, at most 64.")
        data = str(value).encode("utf-8", "backslashreplace")
        if len(data) > _MAX_FIELD_BYTES:
            data = data[:_MAX_FIELD_BYTES] + b" [cut: %d bytes in all]" % len(data)
        if b"\n" in data:
            parts.append(b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(data)), data))
        else:
            parts.append(b"%s=%s\n" % (name.encode(), data))
    return b"".join(parts)


def _priority(level: int) -> int:
    """Syslog's numbers, sd-daemon(3)."""
    for floor, priority in ((50, 2), (40, 3), (30, 4), (20, 6)):
        if level >= floor:
            return priority
    return 7


class JournalHandler(logging.Handler):
    """Sends log records to journald with fields to filter by.

    Every record carries PRIORITY, SYSLOG_IDENTIFIER, LOGGER, CODE_FILE, CODE_LINE, CODE_FUNC and
    the `fields` given here (GENERATION, RELEASE); ``extra={"session": id}`` adds SESSION_ID, and
    ``extra={"error_id": id}`` adds ERROR_ID, so that ``journalctl SESSION_ID=s_…`` finds all of it.

    Never blocks: while journald cannot take more, records are counted, and the next one that goes
    through is preceded by that number. Where there is no journald, records go to stderr.
    """

    def __init__(
        self,
        fields: Mapping[str, object],
        *,
        identifier: str = "holdoverd",
        path: str = _JOURNAL_SOCKET,
    ) -> None:
        super().__init__()
        self._constant = encode_fields({"SYSLOG_IDENTIFIER": identifier, **fields})
        self._path = path
        self._lost = 0
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._sock.setblocking(False)
        self._fallback = StderrHandler()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._lost:
                lost = f"{self._lost} log records were lost: the journal could not take them."
                self._send(encode_fields({"MESSAGE": lost, "PRIORITY": 4}) + self._constant)
                self._lost = 0
            self._send(encode_fields(record_fields(record)) + self._constant)
        except BlockingIOError:
            self._lost += 1
        except OSError:
            self._fallback.emit(record)
        except Exception:
            self.handleError(record)

    def _send(self, data: bytes) -> None:
        try:
            self._sock.sendto(data, self._path)
        except OSError as exc:
            # EMSGSIZE: larger than the send buffer; ENOBUFS: than what the kernel has just now.
            if isinstance(exc, BlockingIOError) or exc.errno not in _TOO_LARGE:
                raise
            self._send_as_file(data)

    def _send_as_file(self, data: bytes) -> None:
        """The protocol's way for large records: an empty datagram with a sealed memfd."""
        fd = os.memfd_create("holdover-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            self._sock.sendmsg([], ancillary, 0, self._path)
        finally:
            os.close(fd)

    def close(self) -> None:
        self._sock.close()
        super().close()


_TOO_LARGE = (errno.EMSGSIZE, errno.ENOBUFS)


def record_fields(record: logging.LogRecord) -> dict[str, object]:
    """A log record as journal fields: MESSAGE with the session it is about behind its first line, and
    the traceback (if any) at its end."""
    message = _PLAIN.format(record)
    if session := getattr(record, "session", None):
        # `journalctl` shows no other field unless it is asked for one.
        first, end, rest = message.partition("\n")
        shown = "".join(c if c.isprintable() else "?" for c in f"{session!s:.100}")
        message = f"{first} [{shown}]{end}{rest}"
    fields: dict[str, object] = {
        "MESSAGE": message,
        "PRIORITY": _priority(record.levelno),
        "LOGGER": record.name,
        "CODE_FILE": record.pathname,
        "CODE_LINE": record.lineno,
        "CODE_FUNC": record.funcName,
    }
    fields.update(_extra_fields(record))
    return fields


def _extra_fields(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    for attribute, field in (("session", "SESSION_ID"), ("error_id", "ERROR_ID")):
        value = getattr(record, attribute, None)
        if value is not None:
            yield field, value


_PLAIN = logging.Formatter("%(message)s")


class StderrFormatter(logging.Formatter):
    """For people: time, level, message, then the fields. Later lines are indented.

    The indentation is what keeps a line break in a message (a path, an agent's text) from looking
    like a record of its own; other control characters are shown as escapes.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        text = "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
        extra = " ".join(f"{name}={value!s:.100}" for name, value in _extra_fields(record))
        first, *rest = text.split("\n")
        if extra:
            first += " [" + "".join(c if c.isprintable() else "?" for c in extra) + "]"
        return "\n    ".join([first, *rest])


class StderrHandler(logging.StreamHandler[TextIO]):
    """Plain lines on stderr, where no journal listens (`holdover up`, tests, a container)."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(StderrFormatter())


def log_handler(*, generation: int, release: str) -> logging.Handler:
    """The handler that fits: the journal when stderr leads there, else plain lines on stderr."""
    if under_journal():
        return JournalHandler({"GENERATION": generation, "RELEASE": release})
    return StderrHandler()
