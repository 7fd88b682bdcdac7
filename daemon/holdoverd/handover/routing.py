"""Sessions as the doors call them, whichever instance owns them.

`RoutedSessions` asks the local `Sessions` first; where a sibling owns the session, the request is
sent there as one `call`, one hop, and where the sibling drains and has the session at rest, it is
adopted here instead. Reading needs no owner: the catalogue answers everywhere.
"""

import json
import logging
import os
from collections.abc import Callable
from typing import Any, Literal
from uuid import uuid4

import msgspec
import trio
from sqlalchemy import Connection

from holdoverd import errors
from holdoverd.callers import Caller
from holdoverd.catalogue import sessions as sessions_table
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import (
    HandoverError,
    OwnedElsewhere,
    RequestError,
    SessionMoved,
    Unavailable,
)
from holdoverd.files.carrier import Carrier
from holdoverd.handover.siblings import Link, Siblings
from holdoverd.handover.wire import Packet, make_blob
from holdoverd.sessions.service import Page, Sessions
from holdoverd.sessions.viewer import Viewer, ViewerCursor

log = logging.getLogger(__name__)

PATIENCE_S = 8.0
"""How long a session may be on its way before whoever asks for it hears so. The owner of a stopped
instance's session is known after 3 s of silence, a death, and an adoption."""

RETRY_S = 0.05

# What may be asked of an owner by a sibling, on behalf of a caller who was authenticated there.
CALLS = frozenset(
    {
        "create",
        "patch",
        "end",
        "prompt",
        "cancel_prompt",
        "answer",
        "interrupt",
        "resume",
        "reload_skills",
    }
)

_BY_CODE: dict[str, type[RequestError]] = {
    kind.code: kind
    for kind in (
        errors.BadRequest,
        errors.Unauthorized,
        errors.Forbidden,
        errors.NotFound,
        errors.Conflict,
        errors.Gone,
        errors.TooLarge,
        errors.Unprocessable,
        errors.RateLimited,
        errors.Internal,
        errors.Capacity,
        errors.Unavailable,
    )
}


class RoutedSessions:
    """The `SessionService` of an instance with siblings."""

    def __init__(
        self,
        local: Sessions,
        catalogue: Catalogue,
        siblings: Siblings,
        heir: Callable[[], int | None],
        carrier: Carrier | None = None,
    ) -> None:
        """`carrier` brings what is attached to a prompt into its session's workspace."""
        self._carrier = carrier
        self._local = local
        self._catalogue = catalogue
        self._siblings = siblings
        self._heir = heir

    # -- what changes a session -------------------------------------------------------------------

    async def create(self, caller: Caller, spec: dict[str, Any]) -> str:
        """Where this instance drains, its heir makes the session: nothing new begins here."""
        heir = self._heir()
        link = self._siblings.link(heir) if heir is not None else None
        if link is not None:
            try:
                return str(await self._call(link, "create", caller, "", {"spec": spec}))
            except HandoverError as error:
                log.info("generation %d made no session: %s Making it here.", heir, error)
        return await self._local.create(caller, spec)

    async def patch(self, caller: Caller, session: str, changes: dict[str, Any]) -> str:
        return str(await self._ask("patch", caller, session, {"changes": changes}))

    async def end(self, caller: Caller, session: str, *, purge: bool) -> None:
        await self._ask("end", caller, session, {"purge": purge})

    async def prompt(
        self, caller: Caller, session: str, prompt: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        # Without an id of the client's, one is made here: a retry must not say it twice.
        prompt = {**prompt, "id": prompt.get("id") or str(uuid4())}
        if prompt.get("attachments") and self._carrier is not None:
            prompt = await self._carrier.attach(caller, session, prompt)
        status, body = await self._ask("prompt", caller, session, {"prompt": prompt})
        return int(status), dict(body)

    async def cancel_prompt(self, caller: Caller, session: str, prompt_id: str) -> None:
        await self._ask("cancel_prompt", caller, session, {"prompt_id": prompt_id})

    async def answer(self, caller: Caller, session: str, answer: dict[str, Any]) -> dict[str, Any]:
        return dict(await self._ask("answer", caller, session, {"answer": answer}))

    async def interrupt(
        self, caller: Caller, session: str, *, cancel_queued: bool
    ) -> dict[str, Any]:
        return dict(await self._ask("interrupt", caller, session, {"cancel_queued": cancel_queued}))

    async def resume(self, caller: Caller, session: str) -> dict[str, Any]:
        return dict(await self._ask("resume", caller, session, {}))

    async def reload_skills(self, caller: Caller, session: str) -> None:
        await self._ask("reload_skills", caller, session, {})

    # -- watching ---------------------------------------------------------------------------------

    async def open_viewer(
        self,
        caller: Caller,
        session: str,
        *,
        after: int | None,
        epoch: str | None,
        threads: Literal["all", "main"],
    ) -> Viewer:
        """Raises OwnedElsewhere where the connection has to go to a sibling."""
        deadline = trio.current_time() + PATIENCE_S
        while True:
            try:
                return await self._local.open_viewer(
                    caller, session, after=after, epoch=epoch, threads=threads
                )
            except OwnedElsewhere as error:
                if await self._adopted_from(session, error.generation):
                    continue
                if self._siblings.link(error.generation) is not None:
                    raise
                await self._patience(deadline, error)
            except SessionMoved as error:
                await self._patience(deadline, error)

    async def attach_viewer(self, caller: Caller, session: str, cursor: ViewerCursor) -> Viewer:
        """Watch on from a cursor; raises as `open_viewer` does."""
        deadline = trio.current_time() + PATIENCE_S
        while True:
            try:
                return await self._local.attach_viewer(caller, session, cursor)
            except OwnedElsewhere as error:
                if self._siblings.link(error.generation) is not None:
                    raise
                await self._patience(deadline, error)
            except SessionMoved as error:
                await self._patience(deadline, error)

    # -- reading ----------------------------------------------------------------------------------

    def list_sessions(
        self,
        cx: Connection,
        caller: Caller,
        *,
        state: str | None,
        q: str | None,
        agent: str | None,
        limit: int,
        cursor: str | None,
    ) -> str:
        return self._local.list_sessions(
            cx, caller, state=state, q=q, agent=agent, limit=limit, cursor=cursor
        )

    def get(self, cx: Connection, caller: Caller, session: str) -> str:
        return self._local.get(cx, caller, session)

    async def page(
        self, caller: Caller, session: str, thread: str, page: int, epoch: str | None
    ) -> Page:
        return await self._local.page(caller, session, thread, page, epoch)

    async def log(self, caller: Caller, session: str, after: int, limit: int) -> str:
        return await self._local.log(caller, session, after, limit)

    async def body(self, caller: Caller, session: str, seq: int) -> str:
        return await self._local.body(caller, session, seq)

    # -- between instances ------------------------------------------------------------------------

    async def _ask(
        self, method: str, caller: Caller, session: str, arguments: dict[str, Any]
    ) -> Any:
        """Have it done by whoever owns the session. Raises RequestError.

        What was asked of an owner that died meanwhile is asked again of the next one: a prompt is
        accepted once by its id, an answer by its request, and the others may be said twice.
        """
        deadline = trio.current_time() + PATIENCE_S
        while True:
            error: RequestError
            try:
                return await getattr(self._local, method)(caller, session, **arguments)
            except OwnedElsewhere as elsewhere:
                error = elsewhere
                link = self._siblings.link(elsewhere.generation)
                if link is not None:
                    try:
                        return await self._call(link, method, caller, session, arguments)
                    except _YoursError:
                        if await self._adopt(session, elsewhere.generation):
                            continue
                    except HandoverError as gone:
                        log.info("asking generation %d: %s", elsewhere.generation, gone)
            except SessionMoved as moved:
                error = moved
            await self._patience(deadline, error)

    async def _patience(self, deadline: float, error: RequestError) -> None:
        if trio.current_time() > deadline:
            raise error
        await trio.sleep(RETRY_S)

    async def _adopted_from(self, session: str, generation: int) -> bool:
        """Whether the session has just become ours because a draining sibling has it at rest."""
        link = self._siblings.link(generation)
        if link is None or link.state != "draining":
            return False
        try:
            await self._call(link, "yield", None, session, {})
        except _YoursError:
            return await self._adopt(session, generation)
        except (HandoverError, RequestError):
            return False
        return False

    async def _adopt(self, session: str, generation: int) -> bool:
        row = await self._catalogue.read(lambda cx: sessions_table.session_row(cx, session))
        if row is None or row.generation != generation:
            return row is not None
        try:
            await self._local.take(session, row.owner_epoch, generation)
        except RequestError:
            return False
        return True

    async def _call(
        self,
        link: Link,
        method: str,
        caller: Caller | None,
        session: str,
        arguments: dict[str, Any],
    ) -> Any:
        """One hop. Raises RequestError (its answer), HandoverError (it is gone, or not its own)."""
        who = None if caller is None else msgspec.to_builtins(caller)
        fd, size = make_blob([json.dumps({"caller": who, "arguments": arguments}).encode()])
        try:
            with link.conversation() as (number, answers):
                await link.send(
                    {
                        "t": "call",
                        "id": number,
                        "method": method,
                        "session": session,
                        "blob": size,
                    },
                    [fd],
                )
                packet = await answers.next()
        finally:
            os.close(fd)
        if packet is None:
            raise HandoverError(f"Generation {link.generation} went away without an answer.")
        try:
            answer = json.loads(packet.take_blob())
        except ValueError as error:
            raise HandoverError(f"Generation {link.generation} answered no JSON.") from error
        finally:
            packet.close()
        if answer.get("yours"):
            raise _YoursError(f"Generation {link.generation} has the session at rest.")
        if answer.get("elsewhere"):
            raise HandoverError(f"Generation {link.generation} does not own it any more.")
        if (refused := answer.get("error")) is not None:
            kind = _BY_CODE.get(str(refused.get("code")), Unavailable)
            raise kind(
                str(refused.get("message")),
                extra=refused.get("extra") or {},
                headers=refused.get("headers") or {},
            )
        return answer.get("result")

    async def called(self, link: Link, packet: Packet, *, draining: bool) -> None:
        """Answer a sibling's `call`."""
        number = packet.integer("id")
        method, session = packet.text("method"), packet.text("session")
        try:
            asked = json.loads(packet.take_blob())
        finally:
            packet.close()
        fd, size = make_blob(
            [json.dumps(await self._done(method, session, asked, draining)).encode()]
        )
        try:
            await link.send({"t": "answer", "id": number, "blob": size}, [fd])
        except HandoverError as error:
            log.info("an answer to generation %d: %s", link.generation, error)
        finally:
            os.close(fd)

    async def _done(
        self, method: str, session: str, asked: dict[str, Any], draining: bool
    ) -> dict[str, Any]:
        if method != "create" and draining and self._local.yields(session):
            return {"yours": True}
        if method == "yield":
            return {"result": None}
        if method not in CALLS:
            return {"error": {"code": "unavailable", "message": f"There is no call {method!r}."}}
        caller = msgspec.convert(asked["caller"], Caller)
        arguments = dict(asked["arguments"])
        try:
            if method == "create":
                return {"result": await self._local.create(caller, **arguments)}
            return {"result": await getattr(self._local, method)(caller, session, **arguments)}
        except (OwnedElsewhere, SessionMoved):
            return {"elsewhere": True}
        except RequestError as error:
            return {
                "error": {
                    "code": error.code,
                    "message": error.message,
                    "extra": error.extra,
                    "headers": error.headers,
                }
            }
        except Exception:
            log.exception("a sibling's call %s failed", method, extra={"session": session})
            return {
                "error": {
                    "code": "internal",
                    "message": "The owner of the session failed; its log tells.",
                }
            }


class _YoursError(HandoverError):
    """The sibling has the session at rest, and lets whoever asks adopt it."""
