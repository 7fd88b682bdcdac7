"""Writing a small file: whole or not at all, and never through a link. Standard library only."""

import os
from pathlib import Path


def write_whole(path: Path, text: str, *, mode: int = 0o600, sync: bool = False) -> None:
    """Have `path` hold `text`, with `mode` whatever the umask.

    What lies there is replaced in one rename, be it a link that somebody else has put there, for
    root writes in folders of the daemon's, too. `sync`: it is on the disk before it gets its name.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(draft, flags, mode), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    draft.replace(path)
