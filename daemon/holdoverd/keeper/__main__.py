"""``python -I -m holdoverd.keeper``: takes one launch from fd 0, keeps its agent to the end.

Exit status 0: the launch was refused (and told so), or the agent's end record is in the spool;
2: started wrongly.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import fcntl
import os
import pwd
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from holdoverd.errors import HoldoverError, LaunchError
from holdoverd.keeper import (
    account,
    chain,
    credentials,
    folders,
    launch,
    processors,
    skills_request,
    spool,
    transcripts,
)
from holdoverd.keeper.keeper import Keeper
from holdoverd.keeper.log import open_log

PREPARE = b"PREPARE "
"""How a request begins that wants a session made ready instead; see `prepare`."""
REQUEST_WITHIN_S = 10.0
ANSWER_WITHIN_S = 10.0
LINGER_S = 2.0
"""How long a refused sender may go on sending before it must have read why."""

_UCRED = struct.Struct("3i")
_MOST_DESCRIPTORS = 16
"""Room for more than the three we want, so that a sender's mistake shows as a wrong count."""


class _Options(NamedTuple):
    daemon_uid: int
    spool_max_bytes: int
    isolation: str


def main(arguments: list[str] | None = None) -> int:
    """Runs one launch; see the module's docstring for the exit status."""
    options = _options(arguments)
    if not _is_unix_stream(0):
        open_log("holdover-keeper")(
            "fd 0 is no Unix stream socket: the keeper is started by an agent unit's socket or "
            "by `holdover up`, not by hand"
        )
        return 2
    processors.keep_off(os.environ)
    # Away from the terminal of `holdover up`; under systemd we lead a session already.
    with contextlib.suppress(PermissionError):
        os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    connection = _take_connection()
    if _begins_with(connection, launch.CARRY_HEADER):
        _carry(connection, options, open_log("holdover-carrier"))
        return 0
    if _begins_with(connection, skills_request.WORD):
        _answer_about_skills(connection, options, open_log("holdover-skills"))
        return 0
    if _begins_with(connection, PREPARE):
        _prepare(connection, options, open_log("holdover-prepare"))
        return 0
    keeper = _launch(connection, options, open_log("holdover-keeper"))
    if keeper is not None:
        # Until here a TERM just ended us, and the kernel all that we had started.
        keeper.keep()
    return 0


def _take_connection() -> socket.socket:
    """The launch connection, taken away from the standard descriptors.

    With ``StandardInput=socket`` alone, systemd makes stdout (and stderr) the connection as well:
    then it would never close, and the daemon would read the agent's complaints.
    """
    connection = socket.socket(fileno=os.dup(0))
    null = os.open("/dev/null", os.O_RDWR)
    identity = os.fstat(0)
    os.dup2(null, 0)
    os.dup2(null, 1)  # nothing is ever printed here
    if os.path.samestat(os.fstat(2), identity):
        os.dup2(null, 2)
    os.close(null)
    return connection


def _carry(connection: socket.socket, options: _Options, log: Callable[[str], None]) -> None:
    with connection:
        if _from_daemon(connection, options, log):
            # Imported here: HTTP and TLS would cost every keeper of an agent 5 MiB.
            from holdoverd.keeper import carry

            carry.serve(connection, log)


def _prepare(connection: socket.socket, options: _Options, log: Callable[[str], None]) -> None:
    with connection:
        if _from_daemon(connection, options, log):
            # Imported here: a keeper lives for weeks and needs none of it.
            from holdoverd.keeper import prepare

            prepare.serve(connection, log)


def _from_daemon(connection: socket.socket, options: _Options, log: Callable[[str], None]) -> bool:
    """Whether the daemon asks; anybody else is refused."""
    try:
        _check_sender(connection, options.daemon_uid)
    except LaunchError as error:
        log(str(error))
        _answer(connection, launch.answer_refused(error), log, linger_s=LINGER_S)
        return False
    return True


def _begins_with(connection: socket.socket, word: bytes) -> bool:
    """Whether the request is another one than a launch. Only looked at; no descriptor is taken."""
    connection.settimeout(REQUEST_WITHIN_S)
    deadline = time.monotonic() + REQUEST_WITHIN_S
    seen = b""
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            begun, seen = seen, connection.recv(len(word), socket.MSG_PEEK)
            if not seen or not word.startswith(seen) or seen == word:
                break
            if seen == begun:
                time.sleep(0.01)  # it came in pieces
    return seen == word


def _answer_about_skills(
    connection: socket.socket, options: _Options, log: Callable[[str], None]
) -> None:
    try:
        _check_sender(connection, options.daemon_uid)
        request = skills_request.receive(connection, REQUEST_WITHIN_S)
    except LaunchError as error:
        log(str(error))
        _answer(connection, launch.answer_refused(error), log, linger_s=LINGER_S)
        return
    # Imported here: a keeper lives for weeks and needs none of it.
    from holdoverd.skills import helper

    entry = account.passwd_entry()
    home = os.environ.get("HOME") or entry.pw_dir
    env = account.agent_environment(os.environ, entry, {})
    answer = skills_request.encode_answer(helper.answer(request, home, env))
    _answer(connection, answer, log, linger_s=0)


def _settle_skills(log: Callable[[str], None]) -> None:
    """No agent starts between the old skills and the new: what a killed helper left is finished."""
    home = os.environ.get("HOME") or account.passwd_entry().pw_dir
    if not os.path.lexists(f"{home}/{skills_request.JOURNAL}"):
        return
    from holdoverd.skills import changes

    try:
        changes.recover(home)
    except (OSError, HoldoverError) as error:
        log(f"a change of skills that was cut off cannot be finished ({error}), going on")


def _launch(
    connection: socket.socket, options: _Options, log: Callable[[str], None]
) -> Keeper | None:
    """Take the request, start the agent, answer. None: refused, with nothing left behind."""
    fds: list[int] = []
    try:
        _check_sender(connection, options.daemon_uid)
        request = _receive_request(connection, fds)
        listener_fd, lock_fd, spool_fd = _check_descriptors(fds)
        entry = account.passwd_entry()
        home = os.environ.get("HOME") or entry.pw_dir
        # What the configuration says of the same variable is more particular, and wins.
        asked = {**_login(log), **request.env}
        env = account.agent_environment(os.environ, entry, asked)
        if request.cwd is None:
            cwd_fd, cwd = folders.make_workspace(request.workspace, home)
        else:
            cwd_fd, cwd = folders.open_cwd(request.cwd, request.roots, home)
        fds.append(cwd_fd)
        env["PWD"] = cwd
        if request.required and not transcripts.exists(request.transcripts, home):
            raise LaunchError(
                f"the account {entry.pw_name} has no conversation of that id, in "
                f"{', '.join(request.transcripts)}; check the id, and whose it is",
                code="no_conversation",
            )
        _settle_skills(log)
        fresh = bool(request.fresh_argv) and not transcripts.exists(request.transcripts, home)
        argv = request.fresh_argv if fresh else request.argv
        found: list[str] = []
        if fresh:
            # Nothing in them is known to the agent that starts now, queued prompts included.
            for name in transcripts.set_aside(
                request.transcripts, home, time.time_ns() // 1_000_000
            ):
                log(f"a transcript without a conversation was set aside as {name}")
        else:
            found = transcripts.find_uuids(request.transcripts, request.uuids, home)
        program = account.resolve_program(argv[0], env, home)
        oom_kills_before, refused_forks_before = account.oom_kills(), account.refused_forks()
        started = chain.start_chain(
            program=program,
            argv=[program, *argv[1:]],
            env=env,
            cwd_fd=cwd_fd,
            lock_fd=lock_fd,
            isolation=options.isolation,
        )
    except LaunchError as error:
        log(f"launch refused: {error}")
        for fd in fds:
            os.close(fd)
        _answer(connection, launch.answer_refused(error), log, linger_s=LINGER_S)
        return None
    # Init and the agent hold the lock from here on. Our copy would outlive them by the end
    # record: that is wanted, so that whoever gets the lock finds the spool finished.
    os.close(cwd_fd)
    keeper = Keeper(
        chain=started,
        listener=socket.socket(fileno=listener_fd),
        spool_fd=spool_fd,
        nonce=request.nonce,
        owner_epoch=request.owner_epoch,
        peers=frozenset({options.daemon_uid, 0}),
        spool_max_bytes=options.spool_max_bytes,
        oom_kills_before=oom_kills_before,
        refused_forks_before=refused_forks_before,
        log=open_log(f"holdover-keeper {request.session} {request.launch}"),
    )
    answer = launch.answer_started(
        keeper_pid=os.getpid(),
        agent_pid=started.agent_pid,
        cwd=cwd,
        found=found,
        fresh=fresh,
        isolation=started.isolation,
    )
    # A daemon that died meanwhile changes nothing: the next owner finds the listener.
    _answer(connection, answer, log, linger_s=0)
    return keeper


def _login(log: Callable[[str], None]) -> dict[str, str]:
    try:
        return credentials.read(os.environ)
    except OSError as error:
        log(f"the account's login cannot be read ({error.strerror}), going on without")
        return {}


def _check_sender(connection: socket.socket, daemon_uid: int) -> None:
    _pid, uid, _gid = _UCRED.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    if uid != daemon_uid:
        raise LaunchError(
            f"the launch came from uid {uid}, not from the daemon's uid {daemon_uid}; "
            "start the keeper with --daemon-user naming the daemon's user",
            code="not_allowed",
        )


def _receive_request(connection: socket.socket, fds: list[int]) -> launch.LaunchRequest:
    """The request; descriptors are appended to `fds` as they come, so that they can be closed."""
    deadline = time.monotonic() + REQUEST_WITHIN_S
    space = socket.CMSG_SPACE(_MOST_DESCRIPTORS * array.array("i").itemsize)
    reader = launch.RequestReader()
    while True:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data, ancillary, flags, _ = connection.recvmsg(65536, space, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            raise LaunchError(
                f"the launch request did not arrive whole within {REQUEST_WITHIN_S:.0f} s",
                code="bad_request",
            ) from None
        except OSError as error:
            raise LaunchError(
                f"the launch connection failed: {error.strerror}", code="bad_request"
            ) from error
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                fds.extend(received)
        if flags & socket.MSG_CTRUNC or len(fds) > launch.DESCRIPTORS:
            raise LaunchError(
                "the launch request came with too many descriptors, or more than this keeper may "
                "open; it takes listener, lock and spool",
                code="bad_request",
            )
        request = reader.receive(data)
        if request is not None:
            return request


def _check_descriptors(fds: list[int]) -> tuple[int, int, int]:
    if len(fds) != launch.DESCRIPTORS:
        raise LaunchError(
            f"the launch request came with {len(fds)} descriptors; it takes three, with its "
            "first byte: listener, lock and spool",
            code="bad_request",
        )
    listener, lock, spool_fd = fds
    if not _is_unix_stream(listener) or not _listens(listener):
        raise LaunchError(
            "the first descriptor is no listening Unix stream socket", code="bad_request"
        )
    for name, fd in (("second (lock)", lock), ("third (spool)", spool_fd)):
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise LaunchError(f"the {name} descriptor is no regular file", code="bad_request")
    flags = fcntl.fcntl(spool_fd, fcntl.F_GETFL)
    if flags & os.O_ACCMODE == os.O_RDONLY:
        raise LaunchError("the third descriptor (spool) is not writable", code="bad_request")
    # The end of the file is where the spool goes on, wherever another holder's reads have moved
    # the offset of the shared description.
    fcntl.fcntl(spool_fd, fcntl.F_SETFL, flags | os.O_APPEND)
    try:
        # Succeeds on the daemon's own description, that holds the lock already. A descriptor of
        # a lock file that somebody else has locked must not start a second agent.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise LaunchError(
            "the session's lock is held by somebody else: its agent still runs",
            code="not_allowed",
        ) from None
    return listener, lock, spool_fd


def _answer(
    connection: socket.socket, answer: bytes, log: Callable[[str], None], *, linger_s: float
) -> None:
    """Send the answer and hang up; before that, take what a refused sender still has to say.

    Closing with bytes unread resets the connection: a daemon in the middle of a long request
    would see a broken pipe instead of our reason. Descriptors among it are dropped by the kernel.
    """
    try:
        with connection:
            connection.settimeout(ANSWER_WITHIN_S)
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_WR)
            until = time.monotonic() + linger_s
            left = launch.MAX_REQUEST_BYTES + launch.MAX_HEADER_BYTES
            while left > 0 and (wait_s := until - time.monotonic()) > 0:
                connection.settimeout(wait_s)
                data = connection.recv(65536)
                left -= len(data)
                if not data:
                    break
    except OSError as error:
        log(f"the answer did not reach the daemon whole ({error}), ignoring")


def _is_unix_stream(fd: int) -> bool:
    try:
        probe = socket.socket(fileno=os.dup(fd))
    except OSError:
        return False
    with probe:
        return probe.family == socket.AF_UNIX and probe.type == socket.SOCK_STREAM


def _listens(fd: int) -> bool:
    with socket.socket(fileno=os.dup(fd)) as probe:
        return probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def _options(arguments: list[str] | None) -> _Options:
    parser = argparse.ArgumentParser(
        prog="python -I -m holdoverd.keeper",
        description="Keeps one agent: takes the launch request on fd 0 (a Unix stream socket).",
    )
    sender = parser.add_mutually_exclusive_group()
    sender.add_argument("--daemon-uid", type=int, help="who may launch (default: own uid)")
    sender.add_argument("--daemon-user", help="the same, by name")
    parser.add_argument(
        "--spool-max-bytes",
        type=int,
        default=spool.MAX_BYTES,
        help="hold the agent up while its spool has more allocated (default: %(default)s)",
    )
    parser.add_argument(
        "--isolation",
        choices=["auto", chain.NAMESPACES, chain.NONE],
        default="auto",
        help="auto: namespaces where the machine allows them (default)",
    )
    options = parser.parse_args(arguments)
    uid = os.getuid() if options.daemon_uid is None else options.daemon_uid
    if options.daemon_user is not None:
        try:
            uid = pwd.getpwnam(options.daemon_user).pw_uid
        except KeyError:
            parser.error(f"there is no user {options.daemon_user!r}")
    if options.spool_max_bytes < 1:
        parser.error("--spool-max-bytes is at least 1")
    return _Options(uid, options.spool_max_bytes, options.isolation)


if __name__ == "__main__":
    sys.exit(main())
