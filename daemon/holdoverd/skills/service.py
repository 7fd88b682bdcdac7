"""Skills as the doors call them: the daemon's side, which reads and writes no home.

What is asked goes to a helper in the account's own unit, reached as a keeper is (keeper/PROTOCOL.md,
Skills). What it did is put into the audit, and sessions of that account are told.
"""

import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import trio
from sqlalchemy import Connection

from holdoverd.callers import Caller
from holdoverd.catalogue import audit
from holdoverd.catalogue import sessions as sessions_table
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import (
    Conflict,
    NotFound,
    RequestError,
    Unavailable,
    Unprocessable,
)
from holdoverd.http.shapes import Json
from holdoverd.ids import now_ms
from holdoverd.keeper import skills_request
from holdoverd.settings import Settings

log = logging.getLogger(__name__)

CONNECT_S = 30.0
ANSWER_S = 170.0
"""Longer than the helper gives itself, so that its own reason is heard."""

_BY_CODE: dict[str, type[RequestError]] = {
    "refused": Unprocessable,
    "untrusted": Conflict,
    "not_found": NotFound,
    "conflict": Conflict,
    "timed_out": Unprocessable,
    "cwd_missing": Unprocessable,
    "cwd_outside": Unprocessable,
    "cwd_denied": Unprocessable,
}
# What an audit row says was done.
_DONE = {
    "add": "installed",
    "update": "updated",
    "rollback": "rolled_back",
    "pin": "pinned",
    "unpin": "unpinned",
    "enable": "enabled",
    "disable": "disabled",
    "remove": "removed",
}


class Skills:
    """Made once by `main`. `agents`: the folder of the accounts' agent sockets."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        settings: Settings,
        agents: Path,
        nursery: trio.Nursery,
        reload: Callable[[Caller, str], Awaitable[None]],
    ) -> None:
        """`reload`: have the agent of a session look at its skills again, once it is idle."""
        self._catalogue = catalogue
        self._settings = settings
        self._agents = agents
        self._nursery = nursery
        self._reload = reload

    async def list_skills(self, caller: Caller, place: Json) -> Json:
        answer = await self._ask(caller, {"op": "list", **place})
        return {"items": answer["items"], "next": None}

    async def diff(self, caller: Caller, name: str, to: str | None, place: Json) -> Json:
        return _plain(await self._ask(caller, {"op": "diff", "names": [name], "to": to, **place}))

    async def change(self, caller: Caller, op: str, request: Json) -> Json:
        """Do `op` (of `_DONE`) to one or many: all or nothing. Returns ``{"changed": […]}``."""
        where = {key: request[key] for key in ("scope", "cwd", "source") if request.get(key)}
        # The change is the helper's, and no transaction spans both: what was asked stands in the audit
        # before it, and what was done after. Nothing is done that no row speaks of.
        names = cast("Sequence[str]", request.get("names") or ())
        asked = str(request.get("source") or ", ".join(names))[:200]
        await self._record(caller, "skill.asked", {asked: {"op": op, "names": names, **where}})
        answer = await self._ask(caller, {"op": op, **request})
        changed: list[dict[str, Any]] = answer["changed"]
        await self._record(
            caller,
            f"skill.{_DONE[op]}",
            {
                one["name"]: {**where, "from": one.get("from"), "to": one.get("to")}
                for one in changed
                if one["changed"]
            },
        )
        if any(one["changed"] for one in changed) and op not in ("pin", "unpin"):
            self._nursery.start_soon(self._tell_sessions, caller)
        return {"changed": changed}

    async def marketplaces(self, caller: Caller) -> Json:
        answer = await self._ask(caller, {"op": "marketplaces"})
        return {"items": answer["items"], "next": None}

    async def add_marketplace(self, caller: Caller, source: str) -> Json:
        answer = await self._ask(caller, {"op": "add_marketplace", "source": source})
        made: Json = answer["marketplace"]
        await self._record(caller, "marketplace.added", {str(made["name"]): {}})
        return made

    async def remove_marketplace(self, caller: Caller, name: str) -> None:
        await self._ask(caller, {"op": "remove_marketplace", "name": name})
        await self._record(caller, "marketplace.removed", {name: {}})

    async def browse(
        self, caller: Caller, name: str, q: str | None, *, refresh: bool, limit: int, start: int
    ) -> Json:
        """`limit` of the plugins that match, from the `start`-th on."""
        answer = await self._ask(caller, {"op": "browse", "name": name, "q": q, "refresh": refresh})
        items: list[Any] = answer["items"]
        end = start + limit
        return {
            "name": name,
            "items": items[start:end],
            "total": len(items),
            "problems": answer["problems"],
            "next": str(end) if end < len(items) else None,
        }

    # -- the helper ------------------------------------------------------------------------------

    async def _ask(self, caller: Caller, request: Mapping[str, object]) -> dict[str, Any]:
        """Have the account's helper do it. Raises the RequestError that its refusal means."""
        data = skills_request.encode_request(
            {**request, "roots": list(self._settings.sessions.roots), **self._claude()}
        )
        path = self._agents / f"{caller.account}.sock"
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            try:
                with trio.fail_after(CONNECT_S):
                    await sock.connect(str(path))
                with trio.fail_after(ANSWER_S):
                    received = await _exchange(sock, data)
            except (OSError, trio.TooSlowError) as error:
                raise Unavailable(
                    f"The agent socket {path} does not answer; see `systemctl status"
                    f" 'holdover-agent-{caller.account}.socket'`, or start `holdover up` again."
                ) from error
        try:
            answer = json.loads(received) if received.endswith(b"\n") else None
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise Unavailable(
                "Whoever was to look at the account's skills was killed, or is of another release;"
                " what it had begun is finished or undone at the next request. Try again."
            )
        if answer.get("ok") is True:
            return answer
        refused = answer.get("error") or {}
        message = str(refused.get("message") or "no reason was given")
        if refused.get("code") == "bad_request":
            message = f"the account's unit is of a release that cannot do this yet ({message})"
        details = refused.get("details") or {}
        kind = _BY_CODE.get(str(refused.get("code")), Unavailable)
        raise kind(f"{message[:1].upper()}{message[1:]}.", extra=details)

    def _claude(self) -> Json:
        """How the helper starts Claude Code: as sessions do."""
        default = self._settings.agent(None)
        for agent in [*([default] if default is not None else []), *self._settings.agents.values()]:
            if agent.preset == "claude":
                return {"claude": list(agent.command), "env": dict(agent.env)}
        return {"claude": ["claude"], "env": {}}

    async def _record(
        self, caller: Caller, action: str, done: Mapping[str, Mapping[str, object]]
    ) -> None:
        at = now_ms()

        def write(cx: Connection) -> None:
            for subject, details in done.items():
                audit.record(
                    cx,
                    at=at,
                    owner=caller.owner,
                    actor=caller.token_id or "admin",
                    action=action,
                    subject=subject,
                    details={"account": caller.account, **details},
                )

        if done:
            await self._catalogue.write(write)

    # -- sessions --------------------------------------------------------------------------------

    async def _tell_sessions(self, caller: Caller) -> None:
        """Every living agent of the account looks again: at once, or after its turn."""
        account = caller.account
        try:
            ids: Sequence[str] = await self._catalogue.read(
                lambda cx: sessions_table.live_of_account(cx, account)
            )
        except RequestError as error:
            log.warning("sessions are not told of changed skills: %s", error)
            return
        for session in ids:
            try:
                await self._reload(caller, session)
            except RequestError as error:
                log.info("not told of changed skills: %s", error, extra={"session": session})


def _plain(answer: Mapping[str, Any]) -> Json:
    return {key: value for key, value in answer.items() if key != "ok"}


async def _exchange(sock: trio.socket.SocketType, data: bytes) -> bytes:
    view = memoryview(data)
    while view:
        view = view[await sock.send(view) :]
    received = bytearray()
    while not received.endswith(b"\n"):
        chunk = await sock.recv(65536)
        received += chunk
        if not chunk or len(received) > skills_request.MAX_ANSWER_BYTES:
            break
    return bytes(received)
