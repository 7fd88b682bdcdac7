"""A plain service: numbered lines over a WebSocket, as any web framework's tutorial has it.

What number a line has is decided by the clock, since T0 (environment, seconds): whoever was away
for a while has missed what was said meanwhile.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

T0 = float(os.environ["T0"])
RATE = float(os.environ["RATE"])
PAYLOAD = "x" * 1024


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    if scope["type"] == "http":
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        number = int((time.time() - T0) * RATE) + 1
        while True:
            await asyncio.sleep(max(0.0, T0 + number / RATE - time.time()))
            await send({"type": "websocket.send", "text": f"{number} {PAYLOAD}"})
            number += 1
