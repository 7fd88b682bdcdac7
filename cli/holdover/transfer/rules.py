"""How a transfer is cut, what is left of it to do, and what an answer of storage means. No I/O."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

MIB = 1 << 20
# What a new upload's parts will have, unless the file is so large that it needs larger ones; the
# daemon decides, and when it decides otherwise the digests of the parts are computed once more.
USUAL_PART_BYTES = 16 * MIB
DOWNLOAD_PART_BYTES = 16 * MIB
MAX_PARTS = 10_000
# URLs asked for at a time: few requests for a large file, and not many that expire unused. With each
# the daemon has storage's disk go on, so that little is left for the end.
WINDOW = 16


@dataclass(frozen=True)
class Cut:
    """A file of `size` bytes in parts of `part_size`; an empty file is one empty part."""

    size: int
    part_size: int

    @property
    def count(self) -> int:
        return max(1, -(-self.size // self.part_size))

    @property
    def numbers(self) -> range:
        return range(1, self.count + 1)

    def span(self, number: int) -> tuple[int, int]:
        """(offset, length) of part `number`, which counts from 1."""
        offset = (number - 1) * self.part_size
        return offset, min(self.part_size, self.size - offset)

    def bytes_of(self, numbers: Collection[int]) -> int:
        return sum(self.span(number)[1] for number in numbers)


def usual_part_size(size: int) -> int:
    """The part size that the daemon will most probably choose."""
    return max(USUAL_PART_BYTES, -(-size // (MAX_PARTS * MIB)) * MIB)


def left_to_send(cut: Cut, held: Mapping[int, int]) -> list[int]:
    """The parts that storage does not hold; `held` is {number: size there}."""
    return [number for number in cut.numbers if held.get(number) != cut.span(number)[1]]


def window(number: int, left: Sequence[int]) -> list[int]:
    """The parts to ask URLs for when `number` needs one: it, and those that come after it."""
    return [number, *[other for other in left if other > number]][:WINDOW]


@dataclass(frozen=True)
class Identity:
    """What a local file is recognised by: the same three, the same content."""

    size: int
    mtime_ns: int
    inode: int


class Verdict(Enum):
    """What to do after an answer of storage."""

    OK = "ok"
    AGAIN = "again"  # it may be better later
    RENEW = "renew"  # the URL is too old, or was signed under other keys
    GONE = "gone"  # the upload or the object is not there any more
    CHANGED = "changed"  # not the object that the transfer began with
    DAMAGED = "damaged"  # what arrived is not what was signed
    REFUSED = "refused"


_DAMAGED = ("BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "InvalidDigest",
            "IncompleteBody")  # fmt: skip


def judge(status: int, body: str = "") -> Verdict:
    """What the answer `status` with the XML `body` means."""
    if 200 <= status < 300:
        return Verdict.OK
    if status == 400 and any(f"<Code>{code}</Code>" in body for code in _DAMAGED):
        return Verdict.DAMAGED
    if status == 400 and "<Code>RequestTimeout</Code>" in body:
        return Verdict.AGAIN
    if status in {408, 425, 429} or status >= 500:
        return Verdict.AGAIN
    return {
        401: Verdict.RENEW,
        403: Verdict.RENEW,
        404: Verdict.GONE,
        410: Verdict.GONE,
        412: Verdict.CHANGED,
    }.get(status, Verdict.REFUSED)


FIRST_DELAY_S = 0.2
MAX_DELAY_S = 5.0
# Longer than a restart of storage, and than a deploy.
PATIENCE_S = 60.0
MAX_RENEWALS = 3
"""A URL that is refused when it is fresh three times over is refused for another reason."""


@dataclass
class Patience:
    """How long one part is tried again: so many seconds of waiting, not counting the tries."""

    _waited_s: float = 0.0
    _delay_s: float = FIRST_DELAY_S
    _renewals: int = 0

    def delay_s(self) -> float | None:
        """How long to wait before the next try; None: give up."""
        if self._waited_s >= PATIENCE_S:
            return None
        delay = self._delay_s
        self._waited_s += delay
        self._delay_s = min(MAX_DELAY_S, delay * 2)
        return delay

    def moved(self) -> None:
        """Bytes got through that will not be sent again: the next trouble is a new story."""
        self._waited_s, self._delay_s = 0.0, FIRST_DELAY_S

    def may_renew(self) -> bool:
        """Whether a refused URL may be asked for anew; counts."""
        self._renewals += 1
        return self._renewals <= MAX_RENEWALS
