"""The four that an instance has of files, made together."""

from collections.abc import Callable
from dataclasses import dataclass

from holdoverd.catalogue.store import Catalogue
from holdoverd.files.links import Links
from holdoverd.files.service import Files
from holdoverd.files.sweeper import Sweeper
from holdoverd.files.uploads import Uploads
from holdoverd.ids import now_ms
from holdoverd.settings import StorageSettings
from holdoverd.storage.client import Store


@dataclass(frozen=True)
class FileServices:
    files: Files
    uploads: Uploads
    links: Links
    sweeper: Sweeper

    @classmethod
    def make(
        cls,
        catalogue: Catalogue,
        store: Store | None,
        settings: StorageSettings,
        now: Callable[[], int] = now_ms,
    ) -> "FileServices":
        files = Files(catalogue, store, settings, now)
        return cls(files, Uploads(files), Links(files), Sweeper(files))
