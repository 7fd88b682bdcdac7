"""The control socket of `holdover up`: who deploys asks the supervisor through it.

A connection each; one line of JSON there, ``{"op": …, …}``, one back: ``{"ok": …}`` or
``{"error": "what and what to do"}``. Only the user that runs `up` may connect (mode 0600).
"""

import contextlib
import json
from typing import Any

import trio

from holdoverd.supervisor.generations import Generations, RefusedError

MAX_LINE_BYTES = 64 * 1024
MAX_AT_ONCE = 16
ANSWER_S = 30.0


async def serve_control(
    listener: trio.SocketListener,
    generations: Generations,
) -> None:
    """Answer until cancelled."""
    limit = trio.CapacityLimiter(MAX_AT_ONCE)

    async def answer(stream: trio.SocketStream) -> None:
        async with limit, stream:
            with trio.move_on_after(ANSWER_S), contextlib.suppress(trio.BrokenResourceError):
                try:
                    reply = {"ok": await _done(generations, await _read(stream))}
                except RefusedError as error:
                    reply = {"error": str(error)}
                await stream.send_all(json.dumps(reply).encode() + b"\n")

    await trio.serve_listeners(answer, [listener])


async def _read(stream: trio.SocketStream) -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        data = await stream.receive_some(MAX_LINE_BYTES)
        line += data
        if not data or len(line) > MAX_LINE_BYTES:
            raise RefusedError("This is no request: one line of JSON is expected.")
    try:
        asked = json.loads(line)
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        raise RefusedError("This is no request: one line of JSON is expected.")
    return asked


async def _done(generations: Generations, asked: dict[str, Any]) -> Any:
    """What `asked` came to. Raises RefusedError."""
    generation = asked.get("generation")
    match asked.get("op"), generation:
        case "deploy" | "prepare" as what, None:
            python = asked.get("python")
            if python is not None and not isinstance(python, str):
                raise RefusedError("`python` names an interpreter.")
            if what == "prepare":
                return await generations.prepare(python)
            return await generations.deploy(python)
        case "rollback", None:
            return await generations.deploy(generations.earlier())
        case "deploying", None:
            return generations.deploying()
        case "current", None:
            return generations.current
        case "address", None:
            return generations.address()
        case "chosen", None:
            return generations.chosen()
        case "living", None:
            return generations.living()
        case "state", int(number):
            return generations.state(number)
        case "command", int(number):
            return generations.command(number)
        case "start", int(number):
            return generations.start(number)
        case "kill", int(number):
            return generations.kill(number)
        case "stop", int(number):
            return await generations.stop(number)
        case "commit", int(number):
            return generations.commit(number)
    raise RefusedError(f"The request {str(asked)[:200]} is not understood.")
