"""When all of memory is looked through for garbage: seldom, for everything stands still meanwhile.

With two hundred sessions that takes 60 to 90 ms. Python does it whenever a quarter more objects than there are
have outlived two smaller collections, whatever has become of them since: under two hundred short connections a
second every ten seconds, and more often while sessions come over from another instance. It found some five
hundred objects each time. So it is done by what it is for: when memory has grown, or when there may be some after all.
"""

import gc
import os

import trio

from holdoverd.instance import memory_bytes

LOOK_S = 1.0

GROWN = 2.0
"""Memory as a multiple of what was left the last time."""

LONGEST_S = 600.0
"""Between two, however little memory has grown."""

_NEVER = 2**31 - 1


def due(now_bytes: int, left_bytes: int, since_s: float) -> bool:
    """Whether to look: of a process that takes `now_bytes`, and took `left_bytes` after the last time."""
    return now_bytes > left_bytes * GROWN or since_s >= LONGEST_S


async def run() -> None:
    """Collect the garbage of all generations when it is due, until cancelled. Younger is left to Python."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)
    own = os.getpid()
    left, at = memory_bytes(own), trio.current_time()
    while True:
        await trio.sleep(LOOK_S)
        if due(memory_bytes(own), left, trio.current_time() - at):
            gc.collect()
            left, at = memory_bytes(own), trio.current_time()
