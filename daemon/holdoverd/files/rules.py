"""The rules of files, uploads and links: plain functions of plain values, no I/O, no clock.

A file's states, and what moves it from one to the next::

    uploading ──complete──> ready ──delete──> deleted
        └────────abort, expiry, a mismatch───────┘
"""

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from holdoverd.errors import BadRequest, Conflict, Gone, TooLarge, Unprocessable

FileState = Literal["uploading", "ready", "deleted"]
UploadState = Literal["opening", "open", "completed", "aborted"]
Verified = Literal["sha256", "parts", "size"]

# {state: the states it may go to}
FILE_MOVES: Mapping[FileState, frozenset[FileState]] = {
    "uploading": frozenset({"ready", "deleted"}),
    "ready": frozenset({"deleted"}),
    "deleted": frozenset(),
}
# `opening`: the row is there, storage's upload may be or not.
UPLOAD_MOVES: Mapping[UploadState, frozenset[UploadState]] = {
    "opening": frozenset({"open", "aborted"}),
    "open": frozenset({"completed", "aborted"}),
    "completed": frozenset(),
    "aborted": frozenset(),
}

MIB = 1024 * 1024
PART_BYTES = 16 * MIB
MAX_PARTS = 10_000  # S3's own limit
MAX_FILE_BYTES = 5 * 1024 * 1024 * MIB  # S3's own limit, 5 TiB
# URLs in the answer that opens an upload: 1 GiB of file, 45 KiB of JSON.
WINDOW = 64
# URLs in one answer at most.
MAX_NUMBERS = 500

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 1024

OCTETS = "application/octet-stream"
# What a browser shows without running it. SVG and HTML are programs.
INLINE_TYPES = frozenset(
    {
        "application/pdf",
        "audio/aac",
        "audio/flac",
        "audio/mp4",
        "audio/mpeg",
        "audio/ogg",
        "audio/wav",
        "audio/webm",
        "image/avif",
        "image/gif",
        "image/jpeg",
        "image/png",
        "image/webp",
        "text/plain",
        "video/mp4",
        "video/ogg",
        "video/webm",
    }
)
# RFC 9110, section 8.3.1: two tokens and parameters; any of it is only kept, never obeyed.
_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}(?:;[ -~]*)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# RFC 8187, section 3.2.1: attr-char, beside letters and digits.
_ATTR_CHARS = "!#$&+-.^_`|~"


# --- names ------------------------------------------------------------------------------------


def check_name(name: str) -> str:
    """A file's name as it is: data, any Unicode. Unprocessable for what no filesystem can hold."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise Unprocessable("The file's name holds half a character; send it as UTF-8.") from error
    if not 1 <= size <= MAX_NAME_BYTES:
        raise Unprocessable(
            f"The file's name has {size} bytes and may have 1 to {MAX_NAME_BYTES}; shorten it."
            if size
            else "The file's name is empty; give it one."
        )
    if name in (".", "..") or "/" in name or "\0" in name:
        raise Unprocessable(
            f"{name[:50]!r} cannot be a file's name: not `.`, not `..`, no `/`, no NUL. The folder"
            " goes into `path`."
        )
    return name


def check_path(path: str) -> str:
    """A virtual folder in the one form that is stored: ``a/b``, "" for the root."""
    path = path.strip("/")
    if not path:
        return ""
    for segment in path.split("/"):
        if not segment:
            raise Unprocessable("The path has an empty folder name (`//`); remove one slash.")
        check_name(segment)
    if len(path.encode()) > MAX_PATH_BYTES:
        raise Unprocessable(f"The path has over {MAX_PATH_BYTES} bytes; shorten it.")
    return path


def check_type(content_type: str) -> str:
    if len(content_type) > 255 or not _TYPE.fullmatch(content_type):
        raise Unprocessable(
            f"`content_type` is {content_type[:50]!r} and has to be like `image/png`; leave it out"
            " where it is not known."
        )
    return content_type


def check_sha256(digest: str, name: str = "sha256") -> str:
    """A digest in lower case."""
    digest = digest.lower()
    if not _SHA256.fullmatch(digest):
        raise Unprocessable(f"`{name}` has to be a SHA-256 in hex, 64 digits.")
    return digest


def words(name: str) -> list[str]:
    """What a file is found by: the runs of letters and digits in its name, folded, each once."""
    found = re.findall(r"[^\W_]+", name.casefold())
    return sorted({word[:64] for word in found})[:32]


def needed(wanted: Sequence[str]) -> list[str]:
    """The beginnings of words that have to be looked for, the longest first.

    One that another begins with is found with it.
    """
    kept: list[str] = []
    for text in sorted(set(wanted), key=lambda text: (-len(text), text)):
        if not any(other.startswith(text) for other in kept):
            kept.append(text)
    return kept


def leading(wanted: Sequence[str], word: str) -> str:
    """Which of the `needed` led a search that has come to `word`; BadRequest: none of them."""
    for text in wanted:
        if word.startswith(text):
            return text
    raise BadRequest("The cursor is not one of ours for these words; begin without it.")


# --- parts ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parts:
    """How a file of `size` bytes is cut: all parts have `part_size` bytes, the last what is left.

    An empty file is one empty part.
    """

    size: int
    part_size: int

    @property
    def count(self) -> int:
        return max(1, -(-self.size // self.part_size))

    def size_of(self, number: int) -> int:
        """The bytes of part `number`, which counts from 1."""
        if number < self.count:
            return self.part_size
        return self.size - self.part_size * (self.count - 1)

    def check_numbers(self, numbers: Iterable[int]) -> list[int]:
        """The numbers, each once, in order; Unprocessable when one is no part of this file."""
        found = sorted(set(numbers))
        if not found or len(found) > MAX_NUMBERS:
            raise Unprocessable(f"`numbers` has to name 1 to {MAX_NUMBERS} parts; ask in windows.")
        for number in found:
            if not 1 <= number <= self.count:
                raise Unprocessable(
                    f"There is no part {number}: this upload has parts 1 to {self.count} of"
                    f" {self.part_size} bytes."
                )
        return found


def cut(size: int) -> Parts:
    """16 MiB a part, more where that would be over 10,000 parts. TooLarge over 5 TiB."""
    if size > MAX_FILE_BYTES:
        raise TooLarge(
            f"A file may have {MAX_FILE_BYTES} bytes (5 TiB), and this one has {size}; split it."
        )
    needed = math.ceil(size / MAX_PARTS / MIB) * MIB
    return Parts(size, max(PART_BYTES, needed))


def first_window(parts: Parts, *, digests: bool, known: bool) -> list[int]:
    """The parts whose URLs come with a new upload.

    `digests`: the upload takes parts with their SHA-256 alone. `known`: those are known already,
    as for a file of one part, whose digest is the file's own.
    """
    if digests and not known:
        return []
    return list(range(1, min(parts.count, WINDOW) + 1))


# --- completing -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """A part that storage holds."""

    size: int
    etag: str


def check_parts(parts: Parts, held: Mapping[int, Held], named: Mapping[int, str]) -> None:
    """Is all there, as large as declared, and what the client means? Conflict names what is not.

    `named` is what the client says: {number: etag}.
    """
    missing = [number for number in range(1, parts.count + 1) if number not in held]
    if missing:
        some = ", ".join(map(str, missing[:10])) + (" …" if len(missing) > 10 else "")
        raise Conflict(
            f"{len(missing)} of {parts.count} parts are not in storage ({some}); put them, then"
            " complete again.",
            extra={"missing": missing[:1000]},
        )
    for number in range(1, parts.count + 1):
        found = held[number]
        if found.size != parts.size_of(number):
            raise Conflict(
                f"Part {number} has {found.size} bytes in storage and should have"
                f" {parts.size_of(number)}; put it again, then complete again.",
                extra={"missing": [number]},
            )
        said = named.get(number)
        if said is None:
            raise Unprocessable(
                f"`parts` does not name part {number}; it has to name all {parts.count}."
            )
        if said.strip('"').lower() != found.etag.lower():
            raise Conflict(
                f"Part {number} in storage is another one than you sent (its ETag is not"
                f" {said[:80]!r}); put it again, then complete again.",
                extra={"missing": [number]},
            )


def composite(digests: Sequence[str]) -> str:
    """S3's checksum of an object of parts: the digest of their digests, and how many there are.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
    """
    whole = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).digest()
    return f"{base64.b64encode(whole).decode()}-{len(digests)}"


def how_verified(digests: Sequence[str], checksum: str | None) -> Verified | None:
    """What storage's `checksum` proves about an object of parts with these digests.

    "sha256": one part, and it is that of the whole file. "parts": each part is. "size": nothing
    but the size, since there is no digest, or storage keeps none. None: it is not what was sent.
    """
    if not digests or checksum is None:
        return "size"
    whole = base64.b64encode(bytes.fromhex(digests[0])).decode() if len(digests) == 1 else None
    if checksum not in (composite(digests), whole):
        return None
    return "sha256" if len(digests) == 1 else "parts"


# --- downloading ------------------------------------------------------------------------------


def content_disposition(kind: Literal["attachment", "inline"], name: str) -> str:
    """Content-Disposition for a name of any Unicode; nothing of it can end the header or the value.

    RFC 6266, appendix D: a plain ``filename`` for old clients, in which what they might take amiss
    is replaced, and ``filename*`` with all of it.
    """
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%;/' else "_" for c in name)
    encoded = quote(name, safe=_ATTR_CHARS)
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


def served_as(content_type: str, *, inline: bool) -> tuple[Literal["attachment", "inline"], str]:
    """(disposition, Content-Type) that a file is served with, whatever type it claims to have."""
    bare = content_type.partition(";")[0].strip().lower()
    if not inline or bare not in INLINE_TYPES:
        return "attachment", OCTETS
    return "inline", f"{bare}; charset=utf-8" if bare.startswith("text/") else bare


# --- links ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkTerms:
    """What a link may still do. Times in ms; None: without end. `used` of `limit`."""

    revoked: bool
    expires_at: int | None
    used: int
    limit: int | None

    def check(self, now: int) -> None:
        """Gone when it may do nothing any more; the message is for whoever followed it."""
        if self.revoked:
            raise Gone("This link was revoked by whoever made it; ask for another.")
        if self.expires_at is not None and self.expires_at <= now:
            raise Gone("This link has expired; ask whoever sent it for another.")
        if self.limit is not None and self.used >= self.limit:
            raise Gone("This link has been used as often as it may be; ask for another.")


def check_quota(owner: str, used: int, size: int, quota: int) -> None:
    """TooLarge when `size` bytes more are over the owner's quota; 0 is no quota."""
    if quota and used + size > quota:
        raise TooLarge(
            f"{owner!r} has {used} of {quota} bytes in storage, and these are {size} more; delete"
            " files, or ask for a larger quota ([storage] quota_bytes)."
        )
