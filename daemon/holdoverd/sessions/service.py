"""Sessions as the doors call them: who may do what to which, and what the answer looks like.

Methods raise `RequestError`s and return JSON text or plain values of contract.md, Sessions. Which
sessions are in this instance's hands is `holding`, how new ones come about `making`.
"""

import socket
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import trio
from sqlalchemy import Connection

from holdoverd.agents import host_frames
from holdoverd.agents.presets import check_model
from holdoverd.callers import Caller
from holdoverd.catalogue import messages as messages_table
from holdoverd.catalogue import sessions as sessions_table
from holdoverd.catalogue.records import PromptRow, SessionRow
from holdoverd.errors import Conflict, Forbidden, Gone, NotFound, Unavailable
from holdoverd.ids import new_id, now_ms
from holdoverd.sessions import acts
from holdoverd.sessions.making import Making
from holdoverd.sessions.model import Step
from holdoverd.sessions.owner import OwnedSession
from holdoverd.sessions.prompts import (
    MAX_COMMANDS_WAITING,
    PromptKnown,
    accept_prompt,
    check_prompt,
)
from holdoverd.sessions.rights import may_see, may_write, no_session, seen
from holdoverd.sessions.viewer import CLOSE_UNSHARED, Viewer, ViewerCursor
from holdoverd.sessions.wire import dumps, message_json, session_view

PAGE_SIZE = messages_table.PAGE_SIZE

WITHDRAW_S = 5.0
"""How long a prompt's withdrawal waits for the agent's word. It may come later; the log tells."""

LOG_LIMIT = 500
LOG_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a thread as JSON text. A sealed page is full and never changes."""

    json_text: str
    sealed: bool
    etag: str


class Sessions(Making):
    """Every session this instance knows; made once, in `main`."""

    # -- rights -----------------------------------------------------------------------------------

    async def _row(self, caller: Caller, session: str, *, write: bool) -> SessionRow:
        """The session if `caller` may do that. Raises NotFound or Forbidden."""
        found = await self._in.catalogue.read(lambda cx: sessions_table.session_row(cx, session))
        row = seen(caller, session, found)
        if write and not may_write(caller, row):
            raise Forbidden(f"Session {session} is shared with you for reading only.")
        return row

    async def writable(self, caller: Caller, session: str) -> SessionRow:
        """The session, if `caller` may write to it. Raises NotFound or Forbidden."""
        return await self._row(caller, session, write=True)

    async def _own(self, caller: Caller, session: str, *, write: bool) -> OwnedSession:
        await self._row(caller, session, write=write)
        return await self.owned(session)

    # -- looking and changing ---------------------------------------------------------------------

    def list_sessions(
        self,
        cx: Connection,
        caller: Caller,
        *,
        state: str | None = None,
        q: str | None = None,
        agent: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> str:
        """A page of those `caller` may see; in a thread of the catalogue's."""
        owner = None if caller.admin else caller.owner
        rows, following = sessions_table.list_sessions(
            cx, owner=owner, state=state, q=q, agent=agent, limit=limit, cursor=cursor
        )
        items = [
            session_view(v.row, v.threads, v.pending, v.queued)
            for v in sessions_table.session_view_rows(cx, rows)
        ]
        return dumps({"items": items, "next": following})

    def get(self, cx: Connection, caller: Caller, session: str) -> str:
        """One session, if `caller` may see it; in a thread of the catalogue's."""
        row = sessions_table.session_row(cx, session)
        (view,) = sessions_table.session_view_rows(cx, [seen(caller, session, row)])
        return dumps(session_view(view.row, view.threads, view.pending, view.queued))

    async def patch(self, caller: Caller, session: str, changes: dict[str, Any]) -> str:
        """Set title, model, permission_mode or share; the agent is told of what concerns it."""
        owned = await self._own(caller, session, write=True)
        model = owned.model
        if "share" in changes and not (caller.admin or model.row.owner == caller.owner):
            raise Forbidden(f"Only the owner of session {session} may share it.")
        lines: list[str] = []
        if (mode := changes.get("permission_mode")) is not None:
            lines.append(host_frames.set_permission_mode(new_id("holdover"), mode))
        if "model" in changes:
            name = changes["model"]
            lines.append(
                host_frames.set_model(
                    new_id("holdover"), check_model(name) if name is not None else None
                )
            )

        def change(step: Step) -> None:
            owned.check_room(MAX_COMMANDS_WAITING)
            acts.set_columns(model, step, changes)
            if owned.takes_commands:
                for line in lines:
                    model.control(step, line)

        await owned.act(change)
        if "share" in changes and changes["share"] is None:
            owned.hub.close_others(model.row.owner, CLOSE_UNSHARED)
        return dumps(owned.current_view())

    async def end(self, caller: Caller, session: str, purge: bool) -> None:
        """No further prompt; the agent is stopped, gently. `purge`: as if it had never been."""
        owned = await self._own(caller, session, write=True)
        at = now_ms()
        await owned.act(lambda step: acts.end(owned.model, step, at, purge=purge))
        owned.stop_agent()

    # -- prompts, answers ---------------------------------------------------------------------------

    async def prompt(
        self, caller: Caller, session: str, prompt: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """Accept a prompt: (202, answer), or (200, the same answer) for one that is known."""
        owned = await self._own(caller, session, write=True)
        accepted = check_prompt(owned, prompt)

        def change(step: Step) -> tuple[int, dict[str, Any]]:
            seq = accept_prompt(step, owned, accepted)
            return 202, {"id": accepted.id, "seq": seq}

        for _attempt in range(2):
            # Asked before and inside the turn: two requests with one id can be on their way.
            known = await self._in.catalogue.read(
                lambda cx: sessions_table.prompt(cx, session, accepted.id)
            )
            if known is not None:
                if known.digest != accepted.digest:
                    raise Conflict(
                        f"Prompt {accepted.id} of session {session} has another content; give a "
                        "new prompt a new id."
                    )
                return 200, {"id": known.id, "seq": known.seq}
            needs_agent = not owned.live and owned.model.row.ended_at is None
            async with self._admit() if needs_agent else nullcontext():
                try:
                    answer = await owned.act(change)
                except PromptKnown:
                    continue
                owned.starter.want_agent_for_prompts()
            return answer
        raise Unavailable(f"Prompt {accepted.id} is being accepted by another request; try again.")

    async def cancel_prompt(self, caller: Caller, session: str, prompt_id: str) -> None:
        """Withdraw a queued prompt; it stays in the log, with a notice.

        Raises NotFound where none of that id waits, Conflict where its agent keeps it.
        """
        owned = await self._own(caller, session, write=True)
        at = now_ms()

        def change(step: Step) -> PromptRow:
            owned.check_room(MAX_COMMANDS_WAITING)
            return acts.cancel_prompt(owned.model, step, prompt_id, at)

        prompt = await owned.act(change)
        if prompt.state == "queued":
            await owned.wait_withdrawn(prompt_id, WITHDRAW_S)
        if prompt.state != "cancelled":
            raise Conflict(
                f"Prompt {prompt_id} is with the agent, which has not given it back; interrupt "
                "the turn instead."
            )

    async def job_ended(self, session: str, job: str, text: str, data: dict[str, Any]) -> None:
        """Tell a session, once, of the end of a job that it asked for.

        Raises NotFound for one that is gone, Conflict for one that has ended or has heard;
        OwnedElsewhere, and Unavailable, as any change does.
        """
        owned = await self.owned(session)

        def change(step: Step) -> None:
            if owned.model.row.ended_at is not None:
                raise Conflict(f"Session {session} has ended.")
            owned.model.notice(step, "job_ended", text, now_ms(), data)
            step.change.job_told = job

        await owned.act(change)

    async def answer(self, caller: Caller, session: str, answer: dict[str, Any]) -> dict[str, Any]:
        """Answer a permission; the first answer stands, later ones hear whose it was."""
        owned = await self._own(caller, session, write=True)
        request_id = answer["request_id"]

        def change(step: Step) -> dict[str, Any]:
            owned.check_room(MAX_COMMANDS_WAITING)
            permission = acts.answer(
                owned.model,
                step,
                request_id,
                behavior=answer["behavior"],
                answered_by=caller.owner,
                updated_input=answer.get("updated_input"),
                message=answer.get("message"),
                remember=answer.get("remember"),
                at=now_ms(),
            )
            return {
                "request_id": request_id,
                "behavior": permission.state,
                "answered_by": caller.owner,
                "seq": step.change.messages[-1].seq,
            }

        try:
            return await owned.act(change)
        except NotFound:
            known = await self._in.catalogue.read(
                lambda cx: sessions_table.permission(cx, session, request_id)
            )
        if known is None:
            raise NotFound(f"Session {session} never asked {request_id}.")
        if known.state == "withdrawn":
            raise Gone(
                f"The agent has withdrawn {request_id}, or it is gone; nothing waits for it."
            )
        raise Conflict(
            f"{request_id} was answered ({known.state}) by {known.answered_by}.",
            extra={"answered_by": known.answered_by},
        )

    async def interrupt(self, caller: Caller, session: str, cancel_queued: bool) -> dict[str, Any]:
        """Stop the turn that runs. Without an agent there is nothing to stop: accepted as well."""
        owned = await self._own(caller, session, write=True)
        line = host_frames.interrupt(new_id("holdover"), cancel_queued=cancel_queued)

        def change(step: Step) -> None:
            model = owned.model
            if model.row.ended_at is not None:
                raise Gone(f"Session {session} has ended.")
            owned.check_room(MAX_COMMANDS_WAITING)
            if owned.takes_commands:
                model.control(step, line)

        await owned.act(change)
        return {}

    async def reload_skills(self, caller: Caller, session: str) -> None:
        """Have its agent look at its skills again; one that knows no such request is left alone."""
        owned = await self._own(caller, session, write=False)
        settings = self._in.agents(owned.model.row.agent)
        if settings is not None and settings.preset == "claude":
            await owned.reload_skills()

    async def resume(self, caller: Caller, session: str) -> dict[str, Any]:
        """See to it that an agent runs."""
        owned = await self._own(caller, session, write=True)
        if owned.model.row.ended_at is not None:
            raise Conflict(f"Session {session} has ended; start a new one.")
        if not owned.live:
            async with self._admit():
                owned.starter.want_agent()
        return {}

    # -- reading ------------------------------------------------------------------------------------

    async def page(
        self, caller: Caller, session: str, thread: str, page: int, epoch: str | None
    ) -> Page:
        """One page of a thread (contract.md); raises Conflict for another epoch."""

        def read(cx: Connection) -> Page:
            row = seen(caller, session, sessions_table.session_row(cx, session))
            if epoch is not None and epoch != row.epoch:
                raise Conflict(
                    f"Session {session} is at epoch {row.epoch}, not {epoch}: the catalogue was "
                    "restored; load its pages anew.",
                    extra={"epoch": row.epoch},
                )
            rows = messages_table.page(cx, session, thread, page)
            sealed = len(rows) == PAGE_SIZE
            last = rows[-1].seq if rows else 0
            text = (
                f'{{"thread":{dumps(thread)},"page":{page},"sealed":{"true" if sealed else "false"},'
                f'"epoch":{dumps(row.epoch)},"messages":[{",".join(map(message_json, rows))}]}}'
            )
            return Page(text, sealed, f'"{row.epoch}-{page}-{last}"')

        return await self._in.catalogue.read(read)

    async def log(self, caller: Caller, session: str, after: int, limit: int) -> str:
        """The whole log after a seq, all threads."""

        def read(cx: Connection) -> str:
            row = seen(caller, session, sessions_table.session_row(cx, session))
            rows = messages_table.log_after(cx, session, after, min(limit, LOG_LIMIT), LOG_BYTES)
            messages = ",".join(map(message_json, rows))
            return f'{{"epoch":{dumps(row.epoch)},"messages":[{messages}]}}'

        return await self._in.catalogue.read(read)

    async def body(self, caller: Caller, session: str, seq: int) -> str:
        """One message's body, whole."""

        def read(cx: Connection) -> str | None:
            seen(caller, session, sessions_table.session_row(cx, session))
            return messages_table.body(cx, session, seq)

        found = await self._in.catalogue.read(read)
        if found is None:
            raise NotFound(f"Session {session} has no message {seq}.")
        return found

    async def open_viewer(
        self,
        caller: Caller,
        session: str,
        *,
        after: int | None,
        epoch: str | None,
        threads: Literal["all", "main"],
    ) -> Viewer:
        """Watch a session; see `viewer`. Raises NotFound where it is not to be seen."""
        while True:
            if (moving := self._moving.get(session)) is not None:
                await moving.wait()
            owned = await self._own(caller, session, write=False)
            viewer = await owned.view(
                after=after,
                epoch=epoch,
                threads=threads,
                owner=None if caller.admin else caller.owner,
            )
            if session not in self._moving and not owned.lost.is_set():
                break
            viewer.close()  # it is about to move, or has: look again who has it
            await trio.lowlevel.checkpoint()
        return self._let_watch(caller, owned, viewer)

    async def attach_viewer(self, caller: Caller, session: str, cursor: ViewerCursor) -> Viewer:
        """Go on watching where another viewer was detached; raises as `open_viewer` does."""
        while True:
            # What is in our hands says itself who may watch it, see `_let_watch`: those who come
            # with it in a handover wait for no look at the catalogue each.
            owned = self.held(session) or await self._own(caller, session, write=False)
            if (moving := self._moving.get(session)) is None:
                break
            await moving.wait()  # its viewers were detached already: nobody would feed this one
        viewer = owned.view_from(cursor, owner=None if caller.admin else caller.owner)
        return self._let_watch(caller, owned, viewer)

    def _let_watch(self, caller: Caller, owned: OwnedSession, viewer: Viewer) -> Viewer:
        """Whoever loses the right to watch from here on is found among the hub's viewers."""
        if not may_see(caller, owned.model.row):
            viewer.close()
            raise no_session(owned.id)
        return viewer


def host_name() -> str:
    """This host's name, half of every owner's identity."""
    return socket.gethostname()
