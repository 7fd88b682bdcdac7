"""Skills and sources of them, for tests."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from pathlib import Path


def skill(folder: Path, name: str, said: str = "Says nothing", *, body: str = "Do it.\n") -> Path:
    """A skill by the book in ``folder/name``."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "SKILL.md").write_text(f"---\nname: {name}\ndescription: {said}\n---\n{body}")
    return place


def image(folder: Path) -> dict[str, str]:
    """{path: mode and digest, or a link's target} of everything beneath `folder`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name] = f"{stat.S_IMODE(status.st_mode):o}"
        else:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = f"{stat.S_IMODE(status.st_mode):o} {digest}"
    return found


def archive(path: Path, entries: dict[str, bytes], *, links: dict[str, str] | None = None) -> Path:
    """A zip with these entries, whatever their names are."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in entries.items():
            packed.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            packed.writestr(info, target)
    return path


TEXT = b"---\nname: ok\ndescription: Fine\n---\nx\n"
