"""The client's files: which there are, of what type, from which release.

A page outlives the instance that sent it: it may ask its successor for a chunk that only its own
release has. All releases of a host lie side by side, so the others' folders are looked into. They
are immutable, and so are their files' names, which carry a digest of the contents.
"""

import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

STATIC = Path(__file__).parent / "static"

# {suffix: (media type, worth compressing)}; nothing else is served
TYPES = {
    "js": ("text/javascript; charset=utf-8", True),
    "css": ("text/css; charset=utf-8", True),
    "svg": ("image/svg+xml", True),
    "json": ("application/json", True),
    "png": ("image/png", False),
    "woff2": ("font/woff2", False),
}

# `name-DIGEST.suffix`, as Vite writes it. No separator and no leading dot: a name is never a path.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,98}-[A-Za-z0-9_-]{8,64}\.([a-z0-9]{2,5})")

# Where a release keeps its files, as seen from the folder of all releases.
_IN_RELEASES = "*/lib/python3*/site-packages/holdoverd/web/static/assets"


@dataclass(frozen=True)
class Asset:
    """One file. `etag` is quoted, as HTTP wants it; `compressed` is None where it gains nothing."""

    content: bytes
    media_type: str
    compressible: bool

    @cached_property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    @cached_property
    def compressed(self) -> bytes | None:
        if not self.compressible:
            return None
        small = gzip.compress(self.content, 9, mtime=0)
        return small if len(small) < len(self.content) else None


def media_type(name: str) -> tuple[str, bool] | None:
    """(type, compressible) of an asset's name; None for what cannot be one."""
    match = _NAME.fullmatch(name)
    return TYPES.get(match[1]) if match is not None else None


def releases_of(package: Path) -> Path | None:
    """The folder of all releases that `package`, a release's ``holdoverd/web``, lies in.

    None where it is no installed release: a checkout, or somebody's own environment.
    """
    # RELEASES/NAME/lib/python3.X/site-packages/holdoverd/web
    if len(package.parts) < 7 or package.parents[1].name != "site-packages":
        return None
    release = package.parents[4]
    return release.parent if (release / "release.json").is_file() else None


class Client:
    """The built client of this release, held in memory, and the way to the files of others."""

    def __init__(self, static: Path = STATIC, releases: Path | None = None) -> None:
        self._releases = releases or releases_of(static.parent)
        self._assets: dict[str, Asset] = {}
        self.index: Asset | None = None
        """The front page; None where the client was not built."""
        self.worker: Asset | None = None
        """The service worker; None where the client was not built."""
        index = static / "index.html"
        if not index.is_file():
            return
        for path in sorted((static / "assets").iterdir()):
            if kind := media_type(path.name):
                self._assets[path.name] = Asset(path.read_bytes(), *kind)
        if (worker := static / "sw.js").is_file():
            self.worker = Asset(worker.read_bytes(), *TYPES["js"])
        self.index = Asset(index.read_bytes(), "text/html; charset=utf-8", True)

    def asset(self, name: str) -> Asset | None:
        """An asset of this release; None where it has none of that name."""
        return self._assets.get(name)

    def asset_of_others(self, name: str) -> Asset | None:
        """An asset of another release of this host. Reads from disk: not for the loop's thread."""
        kind = media_type(name)
        if kind is None or self._releases is None:
            return None
        for folder in self._releases.glob(_IN_RELEASES):
            try:
                return Asset((folder / name).read_bytes(), *kind)
            except OSError:
                continue
        return None
