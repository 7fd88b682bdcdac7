"""The keeper's loop: moves bytes between owner, agent and spool as the rules say.

One thread, one selector. The only calls that may wait are those on the spool's file (a disk).
Every other descriptor is non-blocking, and is watched only while something can be done with it,
so that nobody's silence or flood holds up anybody else:

    listener      always            new connections, at most a batch a round
    connections   rules.reading     and while little is waiting to be sent to them
    agent stdin   a line is out     64 KiB a round
    agent stdout  spool.reading     64 KiB a round
    init          until its EOF     how the agent ended
    signals       always            TERM: the unit stops
"""

from __future__ import annotations

import functools
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable

from holdoverd.keeper import init, keeper_side, spool
from holdoverd.keeper.account import oom_kills, refused_forks
from holdoverd.keeper.chain import Chain

HELLO_WITHIN_S = 5.0
TERM_WITHIN_S = 5.0
"""What an agent has between the unit's TERM and our KILL; the unit's own stop timeout is 10 s."""
KILL_WITHIN_S = 2.0
"""After that, init itself is killed, and the kernel ends the rest."""
READ_BYTES = 64 * 1024
UNSENT_PAUSE_BYTES = 64 * 1024
"""An owner that does not take its answers is not read: answers are never longer than what they
answer, so what waits for it stays below this and one read."""
UNSENT_MAX_BYTES = 256 * 1024
"""Cannot be reached by answers (see above); an owner that gets here is dropped."""
ACCEPT_BATCH = 16
ACCEPT_RETRY_S = 1.0

_UCRED = struct.Struct("3i")


class _Connection:
    def __init__(self, number: int, accepted: socket.socket) -> None:
        self.number = number
        self.socket = accepted
        self.greet_by = time.monotonic() + HELLO_WITHIN_S
        self.unsent = bytearray()


class Keeper:
    """Keeps one running agent until its end record is in the spool.

    Owns all the descriptors it is given. `peers` are the uids that may connect. `keep` returns
    when the agent has ended and the spool is finished.
    """

    def __init__(
        self,
        *,
        chain: Chain,
        listener: socket.socket,
        spool_fd: int,
        nonce: str,
        owner_epoch: int,
        peers: frozenset[int],
        spool_max_bytes: int,
        oom_kills_before: int,
        refused_forks_before: int,
        log: Callable[[str], None],
    ) -> None:
        self._chain = chain
        self._listener = listener
        self._spool_fd = spool_fd
        self._peers = peers
        self._oom_kills_before = oom_kills_before
        self._refused_forks_before = refused_forks_before
        self._log = log
        self._rules = keeper_side.KeeperSide(owner_epoch)
        self._spool = spool.SpoolRules(nonce, limit_bytes=spool_max_bytes)
        self._selector = selectors.DefaultSelector()
        self._watched: dict[int, int] = {}  # {descriptor: events}
        self._connections: dict[int, _Connection] = {}  # {number: connection}
        self._accepted = 0
        self._listen_at: float | None = None  # when to accept again after a failure
        self._line: memoryview | None = None  # the rest of the line being written to the agent
        self._stdin: int | None = chain.stdin
        self._stdout: int | None = chain.stdout
        self._reports = chain.reports
        self._end: tuple[int | None, int | None] | None = None  # (status, signal)
        self._chain_gone = False
        self._retry_at: float | None = None
        self._ended = False
        self._stop_steps: list[tuple[float, Callable[[], None]]] = []  # [(when, what)]
        self._stopping = False
        listener.setblocking(False)
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)

    def keep(self) -> None:
        """Run until the end record is written."""
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._take_reports(b"")
        while not self._spool.done:
            self._watch_all()
            for key, events in self._selector.select(self._timeout()):
                # An earlier one of this batch may have closed it.
                if self._watched.get(key.fd, 0) & events:
                    key.data(events)
            self._on_time()
            self._finish_spool()
        for connection in list(self._connections.values()):
            self._send_unsent(connection)
            connection.socket.close()
        self._listener.close()
        self._selector.close()
        self._chain.process.wait()

    # ---------------------------------------------------------------------- what is watched, when

    def _watch_all(self) -> None:
        read, write = selectors.EVENT_READ, selectors.EVENT_WRITE
        listen = read if self._listen_at is None else 0
        self._watch(self._listener.fileno(), listen, self._on_listener)
        self._watch(self._wake_r, read, self._on_signal)
        if not self._chain_gone:
            self._watch(self._chain.control.fileno(), read, self._on_control)
        if self._stdout is not None:
            events = read if self._spool.reading and not self._chain_gone else 0
            self._watch(self._stdout, events, self._on_stdout)
        if self._stdin is not None:
            self._watch(self._stdin, write if self._line else 0, self._on_stdin)
        for connection in list(self._connections.values()):
            reading = (
                self._rules.reading(connection.number)
                and len(connection.unsent) < UNSENT_PAUSE_BYTES
            )
            events = (read if reading else 0) | (write if connection.unsent else 0)
            self._watch(
                connection.socket.fileno(),
                events,
                functools.partial(self._on_connection, connection),
            )

    def _watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        before = self._watched.get(fd, 0)
        if events == before:
            return
        if before == 0:
            self._selector.register(fd, events, callback)
        elif events == 0:
            self._selector.unregister(fd)
        else:
            self._selector.modify(fd, events, callback)
        self._watched[fd] = events

    def _unwatch(self, fd: int) -> None:
        """Must come before a descriptor is closed: its number may be another's at once."""
        if self._watched.pop(fd, 0):
            self._selector.unregister(fd)

    def _timeout(self) -> float | None:
        times = [c.greet_by for c in self._connections.values() if self._rules.greeting(c.number)]
        times += [when for when, _ in self._stop_steps]
        times += [when for when in (self._retry_at, self._listen_at) if when is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _on_time(self) -> None:
        now = time.monotonic()
        for connection in list(self._connections.values()):
            if now >= connection.greet_by and self._rules.greeting(connection.number):
                self._obey(self._rules.greeting_expired(connection.number))
        while self._stop_steps and now >= self._stop_steps[0][0]:
            self._stop_steps.pop(0)[1]()
        if self._listen_at is not None and now >= self._listen_at:
            self._listen_at = None
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            self._obey_spool(self._spool.retry())

    # --------------------------------------------------------------------------------- the owners

    def _on_listener(self, _events: int) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                accepted, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Out of descriptors or memory; the listener stays readable, so do not spin.
                self._log(f"accepting a connection failed: {error.strerror}, retrying in 1 s")
                self._listen_at = time.monotonic() + ACCEPT_RETRY_S
                return
            accepted.setblocking(False)
            _pid, uid, _gid = _UCRED.unpack(
                accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            )
            if uid not in self._peers:
                self._log(f"refused a connection of uid {uid}: only the daemon may greet")
                accepted.close()
                continue
            self._accepted += 1
            number = self._accepted
            self._connections[number] = _Connection(number, accepted)
            self._obey(self._rules.connected(number))

    def _on_connection(self, connection: _Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._send_unsent(connection)
        if not events & selectors.EVENT_READ:
            return
        try:
            data = connection.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # reset: it hung up
        if data:
            self._obey(self._rules.receive(connection.number, data))
        else:
            self._obey(self._rules.closed(connection.number))
            self._drop(connection)

    def _send_unsent(self, connection: _Connection) -> None:
        if connection.unsent:
            try:
                sent = connection.socket.send(connection.unsent)
            except BlockingIOError:
                sent = 0
            except OSError:
                # Nobody is there to answer. What it has sent before it went still counts, so the
                # rules hear of its end where it is read, not here.
                sent = len(connection.unsent)
            del connection.unsent[:sent]

    def _drop(self, connection: _Connection) -> None:
        if self._connections.pop(connection.number, None) is not None:
            self._unwatch(connection.socket.fileno())
            connection.socket.close()

    def _obey(self, commands: list[keeper_side.Command]) -> None:
        for command in commands:
            match command:
                case keeper_side.Send(number, data):
                    connection = self._connections.get(number)
                    if connection is None:
                        continue
                    connection.unsent += data
                    if len(connection.unsent) > UNSENT_MAX_BYTES:
                        self._obey(self._rules.closed(number))
                        self._drop(connection)
                        continue
                    self._send_unsent(connection)
                case keeper_side.Close(number):
                    connection = self._connections.get(number)
                    if connection is not None:
                        # Its last words are in its socket's buffer, or it is stuck and has
                        # filled that: such ones are not waited for, they would pile up.
                        self._drop(connection)
                case keeper_side.WriteLine(_, data):
                    self._line = memoryview(data)
                case keeper_side.CloseStdin():
                    self._close_stdin()
                case keeper_side.Signal(name):
                    self._signal_agent(signal.Signals[f"SIG{name}"])

    # ---------------------------------------------------------------------------------- the agent

    def _on_stdin(self, _events: int) -> None:
        assert self._stdin is not None
        assert self._line is not None
        try:
            written = os.write(self._stdin, self._line[:READ_BYTES])
        except BlockingIOError:
            return
        except OSError as error:
            self._log(f"the agent has closed its stdin ({error.strerror}) with a line unread")
            self._line = None
            self._obey(self._rules.stdin_broken())
            return
        self._line = self._line[written:]
        if not self._line:
            self._line = None
            self._obey(self._rules.line_written())

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            self._unwatch(self._stdin)
            os.close(self._stdin)
            self._stdin = None

    def _signal_agent(self, number: int) -> None:
        if self._chain_gone:
            return
        try:
            self._chain.control.send(init.signal_message(number), socket.MSG_NOSIGNAL)
        except OSError:
            # A stuck init takes no more (thousands are waiting) or it is gone; KILL must work.
            if number == signal.SIGKILL:
                self._chain.process.kill()

    def _on_control(self, _events: int) -> None:
        try:
            data = self._chain.control.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._take_reports(data)
            return
        # Init is gone, and with it the namespace: nobody is left to write to the pipe.
        self._unwatch(self._chain.control.fileno())
        self._chain.control.close()
        self._chain_gone = True
        if self._end is None:
            # Killed before it could tell (the OOM killer, an operator): the agent died with it,
            # by the same signal.
            self._log("init ended without a report; the agent was killed with it")
            self._exited(None, int(signal.SIGKILL))
        self._obey_spool(self._spool.agent_gone())

    def _take_reports(self, data: bytes) -> None:
        *lines, self._reports = (self._reports + data).split(b"\n")
        for line in lines:
            verb, *fields = line.split(b" ")
            if verb == b"EXITED" and len(fields) == 2 and self._end is None:
                status, number = (int(f) if f.isdigit() else None for f in fields)
                self._exited(status, number)

    def _exited(self, status: int | None, number: int | None) -> None:
        self._end = (status, number)
        self._line = None
        self._obey(self._rules.agent_exited())

    def _on_signal(self, _events: int) -> None:
        try:
            numbers = os.read(self._wake_r, 512)
        except BlockingIOError:
            return
        if self._stopping or not {signal.SIGTERM, signal.SIGINT} & set(numbers):
            return
        self._stopping = True
        self._log(f"asked to stop: the agent has {TERM_WITHIN_S:.0f} s")
        self._signal_agent(signal.SIGTERM)
        now = time.monotonic()
        self._stop_steps = [
            (now + TERM_WITHIN_S, lambda: self._signal_agent(signal.SIGKILL)),
            (now + TERM_WITHIN_S + KILL_WITHIN_S, self._chain.process.kill),
        ]

    # ---------------------------------------------------------------------------------- the spool

    def _on_stdout(self, _events: int) -> None:
        self._take_stdout()

    def _take_stdout(self) -> bool:
        """Spool one chunk of the agent's stdout; False when there is none to take now."""
        if self._stdout is None:
            return False
        try:
            chunk = os.read(self._stdout, spool.CHUNK_BYTES)
        except BlockingIOError:
            return False
        if chunk:
            self._obey_spool(self._spool.data(chunk))
            return True
        self._unwatch(self._stdout)
        os.close(self._stdout)
        self._stdout = None
        return False

    def _finish_spool(self) -> None:
        """Once nobody can write to the pipe: take what it holds, then the end record.

        Not its EOF but its being empty is the end: a writer outside of the namespace that was
        passed the descriptor could keep it open for ever.
        """
        if not self._chain_gone or self._ended:
            return
        while self._spool.reading:
            if not self._take_stdout():
                self._ended = True
                assert self._end is not None, "the chain's end settles how the agent ended"
                status, number = self._end
                self._obey_spool(
                    self._spool.end(
                        status=status,
                        signal=number,
                        oom=oom_kills() > self._oom_kills_before,
                        forks_refused=refused_forks() > self._refused_forks_before,
                        stopped=self._stopping,
                        at_ms=time.time_ns() // 1_000_000,
                    )
                )

    def _obey_spool(self, commands: list[spool.Command]) -> None:
        while commands:
            command, *commands = commands
            match command:
                case spool.Write(data):
                    try:
                        written = os.write(self._spool_fd, data)
                    except OSError as error:
                        if not self._spool.waiting:
                            self._log(
                                f"the spool cannot be written ({error.strerror}); the agent is "
                                f"held up, retrying every {spool.RETRY_S:.0f} s"
                            )
                        commands = self._spool.failed() + commands
                    else:
                        commands = self._spool.wrote(written) + commands
                case spool.Measure():
                    allocated = os.fstat(self._spool_fd).st_blocks * 512
                    before = self._spool.waiting
                    commands = self._spool.measured(allocated) + commands
                    if self._spool.waiting and not before:
                        self._log(
                            f"the spool holds {allocated} bytes that no daemon has taken; the "
                            f"agent is held up, looking again every {spool.RETRY_S:.0f} s"
                        )
                case spool.Tell(full):
                    self._obey(self._rules.spool_full(full))
        if self._spool.waiting and self._retry_at is None:
            self._retry_at = time.monotonic() + spool.RETRY_S
