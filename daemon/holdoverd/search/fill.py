"""Indexing what was stored without: bursts, and what an earlier release stored.

Nobody waits for it. A slice is one short write, and between two slices the catalogue is left to the
others for longer than that; while they keep it busy, for much longer: whoever watches a burst should
not share the disk with the index of what was said a moment ago.
"""

import logging
from collections.abc import Callable
from functools import partial

import trio

from holdoverd.catalogue import searched
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import CatalogueError

log = logging.getLogger(__name__)

# A slice takes a third of the time at most.
PAUSES = 2
# A twentieth at most while others' commits take more than this part of the time.
BUSY = 0.25
BUSY_PAUSES = 20
LOOK_S = 2.0
RETRY_S = 30.0


async def run(catalogue: Catalogue, serving: Callable[[], bool]) -> None:
    """Index what is behind, for ever; only while this instance serves (a candidate writes nothing)."""
    swept = False
    while True:
        if serving():
            try:
                await fill(catalogue)
                if not swept:
                    await sweep(catalogue)
                    swept = True
            except CatalogueError as error:
                log.warning("indexing messages for search: %s Retrying in %.0f s", error, RETRY_S)
                await trio.sleep(RETRY_S)
            except Exception:
                # A defect of the index's must not cost anybody the instance.
                log.exception("indexing messages for search, retrying in %.0f s", RETRY_S)
                await trio.sleep(RETRY_S)
        await trio.sleep(LOOK_S)


async def fill(catalogue: Catalogue) -> None:
    """Index every session to its end. Raises CatalogueError; what was indexed until then stays."""
    while (session := await catalogue.read(searched.session_behind)) is not None:
        done = False
        while not done:
            began = trio.current_time()
            done = await catalogue.write(partial(searched.fill_slice, session=session))
            await _leave_room(catalogue, trio.current_time() - began)


async def _leave_room(catalogue: Catalogue, slice_s: float) -> None:
    """Pause as long as a slice of `slice_s` seconds demands."""
    others = catalogue.counts.commit_s
    before = others.total
    pause = PAUSES * slice_s
    await trio.sleep(pause)
    if others.total - before > BUSY * pause:
        await trio.sleep(BUSY_PAUSES * slice_s - pause)


async def sweep(catalogue: Catalogue) -> None:
    """Remove what is indexed of sessions that exist no more. Raises CatalogueError."""
    after: int | None = 0
    while after is not None:
        began = trio.current_time()
        gone, after = await catalogue.read(partial(searched.orphans, after=after))
        for session in gone:
            while not await catalogue.write(partial(searched.remove_slice, session=session)):
                pass
        await trio.sleep(PAUSES * (trio.current_time() - began))
