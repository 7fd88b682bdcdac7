"""A process that writes a session through the real catalogue and tells what was acknowledged.

`python writer_process.py URL SESSION COUNT [LINGER]`: opens the session if need be, then stores
messages one change after another until its last seq is COUNT (0: until it is killed), each on
from what is stored. Prints ``SEQ`` when a change has been acknowledged, ``done`` at the end.
"""

from __future__ import annotations

import sys

import trio

from holdoverd.catalogue import sessions
from holdoverd.catalogue.records import Change
from holdoverd.catalogue.store import Catalogue
from tests.catalogue.examples import a_session, main_thread, messages


async def write(url: str, session: str, count: int) -> None:
    catalogue = Catalogue.open(url)
    row = await catalogue.read(lambda cx: sessions.session_row(cx, session))
    if row is None:
        row = a_session(id=session)
        opened = Change(threads=[main_thread()])
        await catalogue.write(lambda cx: sessions.create_session(cx, row, opened))
    last = row.last_seq
    while not count or last < count:
        change = Change(messages=messages(last + 1, last + 3), session={"updated_at": last})
        await catalogue.write(lambda cx, c=change: sessions.apply_change(cx, session, 1, c))
        last += 3
        sys.stdout.write(f"{last}\n")
        sys.stdout.flush()
    catalogue.close()
    print("done", flush=True)


if __name__ == "__main__":
    trio.run(write, sys.argv[1], sys.argv[2], int(sys.argv[3]))
