"""One bar for one command's transfer, on stderr, where that is a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from holdover.render import one_line
from holdover.transfer.sending import Progress


@contextmanager
def bar(name: str, total: int, *, quiet: bool = False) -> Iterator[Progress]:
    """A bar with rate and time left over `total` bytes; nothing where nobody looks."""
    if quiet or not sys.stderr.isatty():
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    shown = one_line(name, 40)
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as rich:
        task = rich.add_task(shown, total=total)

        def doing(what: str) -> None:
            rich.update(task, description=f"{shown}: {what}" if what != "sending" else shown)

        yield Progress(moved=lambda count: rich.advance(task, count), doing=doing)
