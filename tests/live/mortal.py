"""A daemon that ends or stops itself at a named step of a handover.

``python -m tests.live.mortal STEP SIGNAL NTH ARGUMENTS…``: the real daemon with ARGUMENTS, which
sends itself SIGNAL when it comes to STEP for the NTH time. The steps are the places where one side
of a transfer does something that the other, or the world, can see.
"""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from holdoverd import main as daemon
from holdoverd.handover.siblings import Link
from holdoverd.http.server import Server
from holdoverd.sessions.service import Sessions

PACKETS = ("offer", "connection", "go", "taken")
GIVER = (
    "before detach",
    "after detach",
    "before let_go",
    "after let_go",
    *(f"{when} {packet}" for packet in PACKETS[:3] for when in ("before", "after")),
)
TAKER = (
    "before take",
    "after take",
    "before taken",
    "after taken",
    "before attach",
    "after attach",
)


class Fate:
    """Counts the steps, and strikes at the one that was named."""

    def __init__(self, step: str, number: signal.Signals, nth: int) -> None:
        self._step = step
        self._number = number
        self._left = nth

    def at(self, step: str) -> None:
        if step == self._step:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), self._number)


def arm(fate: Fate) -> None:
    def around(name: str, real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def wrapped(*arguments: Any, **options: Any) -> Any:
            fate.at(f"before {name}")
            result = await real(*arguments, **options)
            fate.at(f"after {name}")
            return result

        return wrapped

    send = Link.send

    async def sending(self: Link, fields: dict[str, Any], fds: Any = ()) -> None:
        fate.at(f"before {fields['t']}")
        await send(self, fields, fds)
        fate.at(f"after {fields['t']}")

    attach = Server.attach

    def attaching(self: Server, detached: Any) -> None:
        fate.at("before attach")
        attach(self, detached)
        fate.at("after attach")

    Link.send = sending  # type: ignore[method-assign]
    Server.attach = attaching  # type: ignore[method-assign]
    Server.detach_session = around("detach", Server.detach_session)  # type: ignore[method-assign]
    Sessions.let_go_of = around("let_go", Sessions.let_go_of)  # type: ignore[method-assign]
    Sessions.take = around("take", Sessions.take)  # type: ignore[method-assign]


if __name__ == "__main__":
    step, name, nth, *rest = sys.argv[1:]
    arm(Fate(step, signal.Signals[name], int(nth)))
    sys.exit(daemon.main(rest))
