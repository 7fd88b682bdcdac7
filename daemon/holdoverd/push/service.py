"""Sends what `rules` finds worth saying to whoever has asked for it."""

import base64
import http.client
import logging
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from holdoverd.callers import Caller
from holdoverd.catalogue import subscriptions
from holdoverd.catalogue.store import Catalogue
from holdoverd.catalogue.subscriptions import Subscription
from holdoverd.errors import Forbidden, NotFound, SettingsError, Unavailable
from holdoverd.ids import new_id, now_ms
from holdoverd.push import rules

if TYPE_CHECKING:
    from holdoverd.push.sealing import Sealing

log = logging.getLogger(__name__)

MAX_WAITING = 256
"""Changes of sessions that wait to be told; more are dropped."""

SENDERS = 4
SEND_S = 10.0
"""For one message, from the name's look-up to the answer's first line."""

KEPT_S = 6 * 3600
"""How long a push service keeps a message for a phone that is off."""

AUTHORIZED_S = 12 * 3600
"""How long a push service may take our word for who we are; 24 hours at most (RFC 8292)."""

GONE = (404, 410)


class PushRefusedError(Exception):
    """This was not sent, and why."""


class Push:
    """Made once by `main`. `hosts` may be sent to wherever they are; others on the internet only.

    `load` is called in a thread when somebody is to be told for the first time, or asks who tells.
    """

    def __init__(
        self, catalogue: Catalogue, load: "Callable[[], Sealing]", *, hosts: Sequence[str] = ()
    ) -> None:
        self._catalogue = catalogue
        self._load = load
        self._loading = trio.Lock()
        self._sealing: Sealing | None = None
        self._hosts = frozenset(hosts)
        self._trust: ssl.SSLContext | None = None
        self._send, self._receive = trio.open_memory_channel[tuple[str, bool, dict[str, str]]](
            MAX_WAITING
        )

    async def _sealed_by(self) -> "Sealing":
        """Raises Unavailable where this host's key cannot be read."""
        async with self._loading:
            if self._sealing is None:
                try:
                    self._sealing = await trio.to_thread.run_sync(self._load)
                except SettingsError as error:
                    raise Unavailable(f"This host cannot push: {error}") from error
            return self._sealing

    # -- what the doors ask ------------------------------------------------------------------------

    async def public_key(self) -> str:
        """What browsers subscribe for. Raises Unavailable."""
        return (await self._sealed_by()).public_key

    async def subscribe(
        self, caller: Caller, endpoint: str, p256dh: str, auth: str, *, shared: bool = False
    ) -> str:
        """Have this browser told; its id. The same endpoint again replaces what was known of it.

        `shared`: also of sessions that others share with everyone to write, as long as its token may
        answer there.
        """
        found = rules.target(endpoint, p256dh, auth)
        if caller.token_id is None:
            raise Forbidden("A subscription belongs to a token; subscribe at the public door.")
        sealing = await self._sealed_by()
        sealing.check_key(found)
        row = Subscription(
            new_id("n"),
            caller.owner,
            caller.token_id,
            found.endpoint,
            p256dh,
            auth,
            sealing.public_key,
            shared,
        )
        await self._catalogue.write(partial(subscriptions.put, row=row, now=now_ms()))
        return row.id

    async def unsubscribe(self, caller: Caller, subscription: str) -> None:
        owner = None if caller.admin else caller.owner
        gone = await self._catalogue.write(lambda cx: subscriptions.remove(cx, subscription, owner))
        if not gone:
            raise NotFound(f"There is no subscription {subscription[:50]!r}.")

    # -- what sessions tell ------------------------------------------------------------------------

    def levels_changed(self, before: str, asked: frozenset[str], view: dict[str, Any]) -> None:
        """A session's levels are others than they were; see `sessions.means`. Never waits."""
        message = rules.word(before, view, asked)
        if message is None:
            return
        try:
            self._send.send_nowait((view["owner"], view["share"] == "write", message))
        except trio.WouldBlock:
            log.warning("push: too much waits; a message is dropped")

    # -- sending -----------------------------------------------------------------------------------

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(SENDERS):
                nursery.start_soon(self._sender)

    async def _sender(self) -> None:
        async for owner, shared, message in self._receive.clone():
            try:
                # Nearly no host has any: then there is nothing to load.
                if self._sealing is None and not await self._catalogue.read(subscriptions.exist):
                    continue
                sealing = await self._sealed_by()
                found = await self._catalogue.read(
                    partial(
                        subscriptions.of,
                        owner=owner,
                        key=sealing.public_key,
                        now=now_ms(),
                        shared=shared,
                    )
                )
                for one in found:
                    await self._tell(sealing, one, message)
            except Unavailable as error:
                log.warning("push: %s A message is dropped.", error)
            except Exception:
                # A defect here costs a message, not the instance.
                log.exception("push: a message was not sent")

    async def _tell(self, sealing: "Sealing", one: Subscription, message: dict[str, str]) -> None:
        to = rules.target(one.endpoint, one.p256dh, one.auth)
        body = sealing.seal(to, message)
        headers = {
            "Authorization": sealing.authorization(to, int(time.time()) + AUTHORIZED_S),
            "Content-Encoding": "aes128gcm",
            "Content-Type": "application/octet-stream",
            "TTL": str(KEPT_S),
            "Urgency": "high",
            # What is newer about the same session takes the place of what has not arrived yet.
            "Topic": base64.urlsafe_b64encode(message["session"].encode())
            .decode()
            .rstrip("=")[:32],
        }
        try:
            status = await trio.to_thread.run_sync(
                partial(self._post, to, body, headers), abandon_on_cancel=True
            )
        except (OSError, http.client.HTTPException, PushRefusedError) as error:
            log.warning("push: %s did not take a message: %s", to.host, error)
            return
        if status in GONE:
            await self._catalogue.write(lambda cx: subscriptions.remove(cx, one.id, None))
            log.info("push: %s has forgotten a subscription; removed", to.host)
        elif status >= 300:
            log.warning("push: %s answered %d", to.host, status)

    def _post(self, to: rules.Target, body: bytes, headers: dict[str, str]) -> int:
        """In a thread. The address that was judged is the one that is connected to."""
        found = socket.getaddrinfo(to.host, to.port, type=socket.SOCK_STREAM)
        addresses = [str(info[4][0]) for info in found]
        public = bool(addresses) and all(map(rules.may_be_sent_to, addresses))
        if not public and to.host not in self._hosts:
            raise PushRefusedError("it is not on the public internet")
        if self._trust is None:
            self._trust = ssl.create_default_context()
        connection = http.client.HTTPSConnection(to.host, to.port, timeout=SEND_S)
        raw = socket.create_connection((addresses[0], to.port), timeout=SEND_S)
        try:
            connection.sock = self._trust.wrap_socket(raw, server_hostname=to.host)
            path = to.endpoint.split("/", 3)
            connection.request("POST", "/" + (path[3] if len(path) > 3 else ""), body, headers)
            return connection.getresponse().status
        finally:
            connection.close()
            raw.close()
