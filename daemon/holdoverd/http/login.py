"""Logging in with a browser: a token or a short-lived code becomes a cookie.

A code is 128 random bits, single use, five minutes; only its sha256 is stored. Whoever redeems it
gets a token of its own with the owner and the scopes of the code's maker, so that a phone can be
logged out without the laptop.
"""

import hashlib
import math
import secrets
from collections import OrderedDict, deque
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select

from holdoverd.callers import Caller
from holdoverd.catalogue import tokens
from holdoverd.catalogue.schema import login_codes
from holdoverd.catalogue.schema import tokens as token_table
from holdoverd.errors import Capacity

CODE_LIFETIME_MS = 5 * 60 * 1000
MAX_OPEN_CODES = 1000
REDEEMED = "login code"  # the name of a token that a code was redeemed for
# Browsers keep a cookie for at most 400 days whatever it says (RFC 6265bis); logging in once a
# year is rare enough.
LOGIN_LIFETIME_MS = 365 * 24 * 3600 * 1000


def new_code() -> str:
    """A fresh code. Made outside of the write that stores it, which may run twice."""
    return secrets.token_urlsafe(16)


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


def store_code(cx: Connection, code: str, caller: Caller, now: int) -> int:
    """Store a code for `caller`; when it expires, in ms. Raises Capacity with 1,000 open ones."""
    cx.execute(delete(login_codes).where(login_codes.c.expires_at <= now))
    open_codes = cx.execute(select(func.count()).select_from(login_codes)).scalar_one()
    if open_codes >= MAX_OPEN_CODES:
        raise Capacity(
            f"{MAX_OPEN_CODES} login codes wait to be used; each expires after five minutes, try"
            " again then."
        )
    # The owner behind the admin door may never have had a token; redeeming needs its row.
    tokens.ensure_owner(cx, caller.owner, account=None, default_account=caller.account, now=now)
    cx.execute(
        insert(login_codes).values(
            digest=_digest(code),
            owner=caller.owner,
            scopes=" ".join(sorted(caller.scopes)),
            expires_at=now + CODE_LIFETIME_MS,
        )
    )
    return now + CODE_LIFETIME_MS


def redeem_code(cx: Connection, code: str, token: str, now: int) -> bool:
    """Spend `code` and store `token` in its place; False when the code is unknown or expired."""
    found = cx.execute(
        delete(login_codes)
        .where(login_codes.c.digest == _digest(code))
        .returning(login_codes.c.owner, login_codes.c.scopes, login_codes.c.expires_at)
    ).first()
    if found is None or found.expires_at <= now:
        return False
    tokens.create_token(
        cx,
        token,
        name=REDEEMED,
        owner=found.owner,
        scopes=found.scopes.split(),
        now=now,
        expires_at=now + LOGIN_LIFETIME_MS,
    )
    return True


def end_login(cx: Connection, token_id: str) -> bool:
    """Remove a token that a code was redeemed for; any other stays, it is used elsewhere too."""
    query = delete(token_table).where(token_table.c.id == token_id, token_table.c.name == REDEEMED)
    return cx.execute(query).rowcount > 0


@dataclass
class LoginFailures:
    """Ten failures from an address within a minute, then nothing for the rest of it. No clock.

    Knows at most `max_addresses`; beyond, the one that failed longest ago is forgotten. An
    attempt counts as a failure until it has succeeded, so that many at once gain nothing.
    """

    limit: int = 10
    window_s: float = 60.0
    max_addresses: int = 10_000

    def __post_init__(self) -> None:
        # {address: times of its failures}, the address that failed last at the end
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def retry_after_s(self, address: str, now: float) -> int | None:
        """How long `address` has to wait, in whole seconds; None when it may try."""
        times = self._failures.get(address)
        if times is None:
            return None
        while times and times[0] <= now - self.window_s:
            times.popleft()
        if len(times) < self.limit:
            return None
        return max(1, math.ceil(times[0] + self.window_s - now))

    def attempt(self, address: str, now: float) -> None:
        self._failures.setdefault(address, deque(maxlen=self.limit)).append(now)
        self._failures.move_to_end(address)
        if len(self._failures) > self.max_addresses:
            self._failures.popitem(last=False)

    def succeeded(self, address: str, at: float) -> None:
        """Take back the attempt made at `at`."""
        times = self._failures.get(address)
        if times is not None and at in times:
            times.remove(at)
            if not times:
                del self._failures[address]
