"""The owner's connection to a keeper: the greeting, then numbered commands out and receipts in.

PROTOCOL.md beside the keeper has the bytes. This end never trusts a connect: a listener can be
held by a process that no longer serves it, so only a WELCOME counts.
"""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from holdoverd.errors import KeeperError, StaleEpoch
from holdoverd.keeper import protocol
from holdoverd.keeper.owner_side import Event as OwnerEvent

GREETING_S = 5.0


class AgentDeafError(KeeperError):
    """The agent has closed its stdin, or exited: no command reaches it any more."""


class KeeperLink:
    """One greeted connection. `last` is the highest command that the keeper holds whole."""

    def __init__(
        self,
        stream: trio.SocketStream,
        rules: protocol.OwnerSide,
        welcome: protocol.Welcome,
        following: Sequence[OwnerEvent],
    ) -> None:
        self._stream = stream
        self._rules = rules
        self._following = following
        self.last = welcome.last
        self.exited = welcome.state == "exited"

    @classmethod
    async def greet(cls, path: Path, owner_epoch: int) -> "KeeperLink":
        """Connect and greet.

        Raises StaleEpoch when the keeper has heard a newer owner, KeeperError when no keeper
        answers there within `GREETING_S`.
        """
        stream: trio.SocketStream | None = None
        try:
            with trio.fail_after(GREETING_S):
                sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    await sock.connect(str(path))
                except BaseException:
                    sock.close()
                    raise
                stream = trio.SocketStream(sock)
                await stream.send_all(protocol.hello(owner_epoch))
                rules = protocol.OwnerSide()
                events: Sequence[OwnerEvent] = ()
                while not events:
                    events = rules.receive(await _receive(stream))
                match events[0]:
                    case protocol.Welcome() as welcome:
                        return cls(stream, rules, welcome, events[1:])
                    case protocol.Stale(epoch=epoch):
                        raise StaleEpoch(
                            f"The keeper at {path.name} has heard owner epoch {epoch}; "
                            f"{owner_epoch} is stale."
                        )
                    case other:
                        raise KeeperError(f"The keeper greeted with {other!r}.")
        except (OSError, trio.TooSlowError, trio.BrokenResourceError) as error:
            if stream is not None:
                await trio.aclose_forcefully(stream)
            raise KeeperError(f"No keeper answers at {path.name}.") from error
        except BaseException:
            if stream is not None:
                await trio.aclose_forcefully(stream)
            raise

    async def send(self, data: bytes) -> None:
        """Raises KeeperError when the connection is gone; whatever was cut is sent anew later."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise KeeperError("The keeper's connection is gone.") from error

    async def receive_loop(
        self, *, acked: Callable[[int], None], disk: Callable[[bool], None]
    ) -> None:
        """Hear receipts until the connection ends. `disk(full)` tells of the spool's disk.

        Returns when the agent has exited or the connection is gone; raises StaleEpoch when a
        newer owner has replaced this one.
        """
        events = self._following
        while True:
            for event in events:
                match event:
                    case protocol.Ack(n=n):
                        self.last = max(self.last, n)
                        acked(n)
                    case protocol.Full():
                        disk(True)
                    case protocol.Room():
                        disk(False)
                    case protocol.Exited():
                        self.exited = True
                    case protocol.Replaced() | protocol.Stale():
                        raise StaleEpoch("A newer owner greeted the keeper.")
                    case protocol.Error(text=text):
                        if "not delivered" in text:
                            raise AgentDeafError(f"The keeper could not deliver: {text}")
                        raise KeeperError(f"The keeper refused a command: {text}")
                    case _:
                        pass
            try:
                data = await _receive(self._stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError, KeeperError):
                return
            events = self._rules.receive(data)

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


async def _receive(stream: trio.SocketStream) -> bytes:
    data = await stream.receive_some(65536)
    if not data:
        raise KeeperError("The keeper closed the connection.")
    return bytes(data)
