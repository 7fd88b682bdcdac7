"""The bare relay: the same lines out of a file, through trio-websocket, and nothing else.

``python -m tests.bench.relay LINES COUNTS``. COUNTS is a JSON list: how many lines each frame
carries. Prints its port, serves one viewer, tells it ``live`` and begins when its own stdin says
so.
"""

import json
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import trio
from trio_websocket import WebSocketRequest, serve_websocket

from tests.bench.lines import read_lines


def frames(path: Path, counts: list[int]) -> Iterator[str]:
    lines = chain.from_iterable(read_lines(path))
    for count in counts:
        batch = b",".join(islice(lines, count)).decode()
        yield f'{{"type":"messages","messages":[{batch}]}}'
    yield f'{{"type":"messages","messages":[{b",".join(lines).decode()}]}}'  # the result


async def main(path: Path, counts: list[int]) -> None:
    async def serve(request: WebSocketRequest) -> None:
        connection = await request.accept(subprotocol="holdover.v1")
        await connection.send_message('{"type":"live"}')
        await trio.to_thread.run_sync(sys.stdin.readline)
        for frame in frames(path, counts):
            await connection.send_message(frame)
        await connection.aclose()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, serve, "127.0.0.1", 0, None)
        print(server.port, flush=True)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
