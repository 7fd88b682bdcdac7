"""Starting a session's agent: taking the right to, and settling starts that nobody finished.

ARCHITECTURE.md, "Never two agents", says why the steps stand in this order.
"""

import logging
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import trio

from holdoverd.agents import host_frames
from holdoverd.agents.presets import build_launch
from holdoverd.catalogue.records import LaunchRow
from holdoverd.errors import (
    CatalogueError,
    KeeperError,
    LaunchError,
    LockHeld,
    NotOwner,
    RequestError,
    StaleEpoch,
)
from holdoverd.ids import new_id, now_ms
from holdoverd.keeper import protocol
from holdoverd.sessions import launcher
from holdoverd.sessions.following import GREET_AGAIN_S, RETRY_S
from holdoverd.sessions.launches import (
    launch_abandoned,
    launch_begun,
    launch_failed,
    launch_live,
    settle_prompts,
    unsettled_prompts,
)
from holdoverd.sessions.link import KeeperLink
from holdoverd.sessions.model import Step

if TYPE_CHECKING:
    from holdoverd.sessions.owner import OwnedSession

log = logging.getLogger(__name__)

FRUITLESS_LAUNCHES = 3
"""Agents started one after another that took no prompt; then the session is ``failed``."""


class Starter:
    """Starts one session's agent. `busy` while it is at it."""

    def __init__(self, owner: "OwnedSession") -> None:
        self._owner = owner
        self.busy = False
        self._fruitless = 0

    def fruitful(self) -> None:
        """The agent answered, or took a prompt: it works."""
        self._fruitless = 0

    def want_agent_for_prompts(self) -> None:
        """Start an agent if a prompt waits for one."""
        if self._owner.model.launch is None and self._owner.model.queued_ids():
            self.want_agent()

    def want_agent(self) -> None:
        """Start an agent unless one lives or is being started."""
        if self.busy or self._owner.model.launch is not None or self._owner.lost.is_set():
            return
        self.busy = True
        self._owner.model.wanted = True
        self._owner.spawn(self._start)

    async def _start(self) -> None:
        told_of_lock = False
        try:
            while (
                self._owner.model.launch is None
                and self._owner.model.row.ended_at is None
                and not self._owner.lost.is_set()
            ):
                if self._fruitless >= FRUITLESS_LAUNCHES:
                    self._fruitless = 0
                    await self.fail(
                        "agent_exits",
                        f"The agent was started {FRUITLESS_LAUNCHES} times and exited each time "
                        "before it took the prompt; see the journal of its unit for its last "
                        "words, then resume the session.",
                    )
                    return
                self._fruitless += 1
                try:
                    await self._start_once()
                except LockHeld as error:
                    # An owner taken for dead that stands still, or an agent that will not go:
                    # people are told, and the prompts that wait go on waiting.
                    self._fruitless -= 1
                    if not told_of_lock:
                        told_of_lock = True
                        await self.fail(error.code, str(error))
                except (LaunchError, RequestError) as error:
                    await self.fail(getattr(error, "code", "launch_failed"), str(error))
                    return
        except (NotOwner, StaleEpoch):
            self._owner.lose()
        finally:
            self.busy = False
            self._owner.model.wanted = False

    async def _start_once(self) -> None:
        """One launch, from the lock to the first numbered lines.

        Raises LaunchError (nothing runs), CatalogueError, NotOwner.
        """
        observe = self._owner.instance.observe
        observe("take_lock")
        lock = await launcher.Lock.wait_taken(self._owner.instance.paths.lock(self._owner.id))
        try:
            launch = self.new_launch()
            observe("record_launch")
            async with self._owner.lock:
                self._owner.still_ours()
                if (
                    self._owner.model.launch is not None
                    or self._owner.model.row.ended_at is not None
                ):
                    lock.close()
                    return
                step = Step()
                launch_begun(self._owner.model, step, launch)
                await self._owner.finish_step(step)
        except BaseException:
            lock.close()
            raise
        await self.run_launch(launch, lock)

    def new_launch(self) -> LaunchRow:
        return LaunchRow(
            id=new_id("l"),
            session=self._owner.id,
            nonce=token_hex(16),
            owner_epoch=self._owner.owner_epoch,
            state="starting",
            offset=0,
            replay_from=0,
            last_n=0,
            created_at=now_ms(),
            boot_id=self._owner.instance.boot_id,
        )

    def _launch_request(self, launch: LaunchRow) -> dict[str, Any]:
        """The keeper's orders. Raises LaunchError when the agent is not configured."""
        row = self._owner.model.row
        agent = self._owner.instance.agents(row.agent)
        if agent is None:
            raise LaunchError(
                f"No agent {row.agent!r} is configured; add [agents.{row.agent}] to holdover.toml.",
                code="no_such_agent",
            )
        # A turn that was cut off goes on by itself, unless somebody has something newer to say.
        go_on = row.turn_cut is not None and not self._owner.model.queued_ids()
        fresh, resumed = (
            build_launch(
                agent,
                agent_session=row.agent_session,
                resume=resume,
                go_on=row.turn_cut if go_on and resume else None,
                model=row.model,
                permission_mode=row.permission_mode,
            )
            for resume in (False, True)
        )
        # Where there are transcripts the keeper sees whether there is a conversation to go on
        # with; elsewhere we go by what the agent has shown us.
        argv, fresh_argv = resumed.argv, fresh.argv
        if not fresh.transcripts:
            argv, fresh_argv = (resumed if self._owner.model.conversation_begun else fresh).argv, ()
        # One that was begun elsewhere is gone on with, or nothing is started.
        adopting = self._owner.model.adopting
        if adopting:
            argv, fresh_argv = resumed.argv, ()
        spec = resumed
        return {
            "session": row.id,
            "launch": launch.id,
            "nonce": launch.nonce,
            "owner_epoch": launch.owner_epoch,
            "argv": list(argv),
            "fresh_argv": list(fresh_argv),
            "env": {
                **spec.env,
                "HOLDOVER_SESSION_ID": row.id,
                "HOLDOVER_LAUNCH_ID": launch.id,
            },
            "cwd": row.cwd,
            "workspace": row.id,
            "roots": list(self._owner.instance.roots),
            "lookup": {
                "transcripts": list(spec.transcripts),
                "required": adopting and bool(spec.transcripts),
                "uuids": [p.id for p in unsettled_prompts(self._owner.model)],
            },
        }

    async def run_launch(self, launch: LaunchRow, lock: launcher.Lock) -> None:
        """Start the agent of a recorded launch and follow it.

        Raises LaunchError when there is none; the launch is then still on record.
        """
        try:
            request = self._launch_request(launch)
        except BaseException:
            lock.close()
            raise
        try:
            started = await launcher.start_keeper(
                self._owner.instance.paths,
                self._owner.model.row.account,
                lock,
                launch.id,
                request,
                self._owner.instance.observe,
            )
        except LaunchError:
            self._owner.instance.counts.launches["failed"] += 1
            raise
        except KeeperError as error:
            self._owner.instance.counts.launches["unsure"] += 1
            # Not awaited: whoever asked for the agent need not wait for what nobody can tell.
            log.warning("%s Probing it.", error, extra={"session": self._owner.id})
            if self._owner.model.creating:
                await self._announce(launch)
            self._owner.spawn(self.recover, launch)
            return
        self._owner.instance.counts.launches["started"] += 1
        if started.isolation == "none":
            log.warning(
                "the agent runs without namespaces of its own: agents of one account can signal "
                "each other here",
                extra={"session": self._owner.id},
            )
        await self._go_live(
            launch,
            keeper_pid=started.keeper_pid,
            agent_pid=started.agent_pid,
            cwd=started.cwd,
            found=started.found,
            fresh=started.fresh,
            searchable=bool(request["lookup"]["transcripts"]),
        )

    async def _announce(self, launch: LaunchRow) -> None:
        """The session's creator is about to be told of it. Raises NotOwner."""
        async with self._owner.lock:
            if self._owner.model.launch is launch:
                step = Step()
                self._owner.model.announce(step)
                await self._owner.finish_step(step)

    async def _go_live(
        self,
        launch: LaunchRow,
        *,
        keeper_pid: int | None,
        agent_pid: int | None,
        cwd: str | None,
        found: frozenset[str],
        fresh: bool,
        searchable: bool,
    ) -> None:
        """Number the handshake and what waits, then follow the launch. Raises NotOwner."""
        self._owner.instance.observe("record_live")
        initialize_id = f"holdover-{launch.id}-initialize"
        async with self._owner.lock:
            if self._owner.model.launch is not launch:
                return
            step = Step()
            at = now_ms()
            adopted = self._owner.model.adopting
            known = self._owner.model.row.last_seq > 0
            resumed = self._owner.model.conversation_begun and not adopted
            if adopted:
                self._owner.model.notice(
                    step,
                    "adopted",
                    "The agent goes on with a conversation that was begun outside of Holdover. "
                    + (
                        "What was said there stands above."
                        if known
                        else "What was said there it knows; this log begins here."
                    ),
                    at,
                    {"agent_session": self._owner.model.row.agent_session},
                )
            settle_prompts(self._owner.model, step, found=found, searchable=searchable, at=at)
            if resumed and fresh:
                self._owner.model.notice(
                    step,
                    "conversation_lost",
                    "The agent's own record of this conversation is gone (it was killed before "
                    "it could write it, or somebody removed it): it starts with an empty memory. "
                    "This log is whole.",
                    at,
                )
            launch_live(
                self._owner.model,
                step,
                keeper_pid=keeper_pid,
                agent_pid=agent_pid,
                cwd=cwd,
                first_lines=[
                    host_frames.initialize(initialize_id, title=self._owner.model.row.title),
                ],
                initialize_id=initialize_id,
                at=at,
                resumed=resumed,
            )
            # The tasks of the launch take commands only once they are stored, so none is lost
            # between here and their start.
            following = self._owner.follow(launch)
            await self._owner.finish_step(step)
            self._owner.spawn(following.run)
        if self._owner.model.row.ended_at is not None:
            self._owner.stop_agent()

    async def recover(self, launch: LaunchRow) -> None:
        """A launch is on record and nobody knows whether its keeper ever started.

        A keeper that greets back is followed. One that looked up prompts for an owner that died
        before hearing the result has sent its agent nothing: it is ended and another started.
        """
        try:
            while not self._owner.lost.is_set():
                try:
                    if await self._probe_start(launch):
                        return
                except StaleEpoch:
                    raise
                except KeeperError as error:
                    log.warning("%s Probing again.", error, extra={"session": self._owner.id})
                await trio.sleep(GREET_AGAIN_S)
        except (NotOwner, StaleEpoch):
            self._owner.lose()

    async def _probe_start(self, launch: LaunchRow) -> bool:
        """Settle a recorded launch if that can be done now. Raises NotOwner, KeeperError."""
        self._owner.instance.observe("probe_keeper")
        try:
            link = await KeeperLink.greet(
                self._owner.instance.paths.listener(launch.id), self._owner.owner_epoch
            )
        except StaleEpoch:
            raise
        except KeeperError:
            self._owner.instance.observe("probe_lock")
            try:
                lock = launcher.Lock.take_nowait(self._owner.instance.paths.lock(self._owner.id))
            except LockHeld:
                return False
            lock.close()
            await self._give_up_start(launch)
            return True
        try:
            if unsettled_prompts(self._owner.model):
                await link.send(protocol.signal(link.last + 1, "KILL"))
                await link.receive_loop(acked=lambda _n: None, disk=self._owner.tell_disk)
                return False
        finally:
            with trio.CancelScope(shield=True):
                await link.aclose()
        await self._go_live(
            launch,
            keeper_pid=None,
            agent_pid=None,
            cwd=None,
            found=frozenset(),
            fresh=False,
            searchable=True,
        )
        return True

    async def _give_up_start(self, launch: LaunchRow) -> None:
        """Nothing of a recorded launch lives. Raises NotOwner."""
        if self._owner.model.creating:
            # Its creator died before anyone was told of it.
            while True:
                try:
                    await self._owner.purge()
                    return
                except CatalogueError:
                    await trio.sleep(RETRY_S)
        async with self._owner.lock:
            if self._owner.model.launch is not launch:
                return
            step = Step()
            launch_abandoned(self._owner.model, step)
            await self._owner.finish_step(step)
        self._owner.remove_files(launch)
        self.want_agent_for_prompts()

    async def fail(self, code: str, message: str) -> None:
        async with self._owner.lock:
            launch = self._owner.model.launch
            step = Step()
            self._owner.model.wanted = False
            launch_failed(self._owner.model, step, code=code, message=message, at=now_ms())
            try:
                await self._owner.finish_step(step)
            except NotOwner:
                self._owner.lose()
        if launch is not None:
            self._owner.remove_files(launch)
