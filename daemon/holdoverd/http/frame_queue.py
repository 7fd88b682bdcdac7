"""The bounded queue between who receives a stream's frames and who answers them."""

from collections.abc import Iterable

import trio

from holdoverd.http.frames import MAX_FRAME_BYTES

MAX_QUEUED_FRAMES = 64
MAX_QUEUED_CHARS = MAX_FRAME_BYTES


class FrameQueue:
    """Received and not yet done: 64 frames, and 16 MiB beside a first one. For one putter.

    It may be held: then `get` waits, whatever there is. `frames` are there from the start.
    """

    def __init__(self, frames: Iterable[str | bytes] = ()) -> None:
        # Few, and mostly none: an empty deque takes as much as a hundred of a list's.
        self._frames = list(frames)
        self._chars = sum(map(len, self._frames))
        self._closed = False
        self._held = False
        self._bounded = True
        self._getting = False
        self._changed = trio.Event()

    def _signal(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def close(self) -> None:
        """Nothing more comes; `get` gives what is left, then raises EndOfChannel."""
        self._closed = True
        self._signal()

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        self._held = False
        self._signal()

    def take_all(self) -> None:
        """No bound any more: what has been received has to be somewhere."""
        self._bounded = False
        self._signal()

    async def wait_getting(self) -> None:
        """Until somebody waits in `get`: what was got before is done."""
        while not self._getting:
            await self._changed.wait()

    def frames(self) -> tuple[str | bytes, ...]:
        """What is there, in order."""
        return tuple(self._frames)

    async def put(self, frame: str | bytes) -> None:
        """Waits for room."""
        while (self._frames and self._bounded) and (
            len(self._frames) >= MAX_QUEUED_FRAMES or self._chars + len(frame) > MAX_QUEUED_CHARS
        ):
            await self._changed.wait()
        self._frames.append(frame)
        self._chars += len(frame)
        self._signal()

    async def get(self) -> str | bytes:
        while self._held or not self._frames:
            if self._closed and not self._held:
                raise trio.EndOfChannel
            if not self._getting:
                self._getting = True
                self._signal()
            await self._changed.wait()
        self._getting = False
        frame = self._frames.pop(0)
        self._chars -= len(frame)
        self._signal()
        return frame
