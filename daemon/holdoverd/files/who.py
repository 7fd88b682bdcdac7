"""Whoever asks something of files: a caller at a door, or the holder of an upload link."""

from dataclasses import dataclass
from typing import Protocol

from holdoverd.callers import Caller
from holdoverd.catalogue.files import FileRow, UploadRow
from holdoverd.catalogue.links import UploadLinkRow


class Who(Protocol):
    """Whoever asks: what it may see, whose the things are that it makes, and its name in the audit."""

    @property
    def owner(self) -> str: ...
    @property
    def actor(self) -> str: ...
    def may_see(self, file: FileRow, /) -> bool: ...
    def may_send(self, upload: UploadRow, /) -> bool: ...


@dataclass(frozen=True)
class AsCaller:
    """Somebody with a token, or behind the admin door."""

    caller: Caller

    @property
    def owner(self) -> str:
        return self.caller.owner

    @property
    def actor(self) -> str:
        return self.caller.token_id or "admin"

    def may_see(self, file: FileRow, /) -> bool:
        return self.caller.admin or file.owner == self.caller.owner

    def may_send(self, upload: UploadRow, /) -> bool:
        return self.caller.admin or upload.owner == self.caller.owner


@dataclass(frozen=True)
class ByUploadLink:
    """Somebody who has an upload link, and may go on with what came by it."""

    link: UploadLinkRow

    @property
    def owner(self) -> str:
        return self.link.owner

    @property
    def actor(self) -> str:
        return self.link.id

    def may_see(self, _file: FileRow, /) -> bool:
        return False

    def may_send(self, upload: UploadRow, /) -> bool:
        return upload.upload_link == self.link.id
