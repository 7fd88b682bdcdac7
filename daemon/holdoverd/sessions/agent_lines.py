"""What each line of the agent changes in its session. Pure, as the model is.

`take_line` is the way in: one function for each kind of line (agents/stream_json.py says which it
is). What an owner reads again is recognised by its uuid, or by the offset that was committed.
"""

from collections.abc import Sequence
from typing import Any

from holdoverd.agents import host_frames
from holdoverd.agents.stream_json import Frame, OversizeLine
from holdoverd.catalogue.records import Kind, PermissionRow, PromptRow
from holdoverd.ids import new_id
from holdoverd.sessions.acts import WITHDRAWAL
from holdoverd.sessions.bodies import context_of, json_object
from holdoverd.sessions.launches import launch_over
from holdoverd.sessions.model import MAIN, Delta, SessionModel, Status, Step

MAX_STATUSES = 64
"""Latest-value frames kept for a viewer who comes later; the one heard least recently goes."""

MAX_STATUS_CHARS = 64 * 1024
"""A status longer than this is shown live but not kept: it would be rewritten at every commit."""

MAX_NOTICED_FAULTS = 20
"""Unreadable lines of one launch that get a notice of their own; the rest are counted."""

MAX_TOOL_THREADS = 4096

SUBAGENT_TOOLS = frozenset({"Agent", "Task"})
"""Tools whose use starts a sub-agent, and with it a thread (stream-json.md §9)."""

_KINDS: dict[str, Kind] = {"assistant": "assistant", "user": "user", "system": "system"}


def take_line(
    model: SessionModel,
    step: Step,
    frame: Frame | OversizeLine,
    *,
    start: int,
    at: int,
    stored: bool = False,
) -> None:
    """One line of the spool, which began at offset `start`.

    `stored`: the line lies before the committed offset and is read again only to rebuild the
    open blocks; nothing of it is stored or answered a second time.
    """
    if stored:
        if not isinstance(frame, OversizeLine):
            model.blocks.apply(frame, start)
        return
    if isinstance(frame, OversizeLine):
        _fault(
            model,
            step,
            f"The agent sent a line of {frame.size:,} bytes, more than Holdover keeps; "
            "its beginning is in this notice, the rest is lost.",
            at,
            {"size": frame.size, "preview": frame.preview.decode("utf-8", "replace")},
        )
        return
    match frame.kind:
        case "assistant" | "user" | "system":
            _conversation(model, step, frame, start, at)
        case "result":
            _result(model, step, frame, start, at)
        case "delta":
            model.process.ready = True
            model.blocks.apply(frame, start)
            step.events.append(Delta(frame.thread, frame.raw))
        case "status":
            _status(model, step, frame, at)
        case "replay":
            _echo(model, step, frame, at)
        case "control_request":
            _asked(model, step, frame, at)
        case "control_cancel":
            model.withdraw(
                step,
                [p for p in model.permissions.values() if p.agent_request_id == frame.request_id],
                at,
            )
        case "control_response":
            _answered(model, step, frame, at)
        case "end":
            _end_record(model, step, frame, at)
        case "invalid":
            _fault(
                model,
                step,
                "The agent sent a line that is not valid JSON; it was left out.",
                at,
                {"size": len(frame.raw), "preview": frame.raw[:4096]},
            )
        case "ignore" | "noise":
            pass


def _conversation(model: SessionModel, step: Step, frame: Frame, start: int, at: int) -> None:
    model.blocks.apply(frame, start)
    if model.seen_before(frame.uuid):
        return
    model.process.ready = True
    if frame.kind == "assistant":
        _taken_up(model, step, frame)
        model.process.turn.opened()
        model.cut_turn(step, None)
        if frame.thread == MAIN:
            model.reply = frame.raw
    model.store(step, _KINDS[frame.kind], frame.raw, at, thread=frame.thread, uuid=frame.uuid)
    for use in frame.tool_uses:
        if use.name in SUBAGENT_TOOLS and use.id not in model.threads:
            model.open_thread(step, use.id, parent=frame.thread, title=use.title)
        elif frame.thread != MAIN:
            model.process.tool_threads[use.id] = frame.thread
            model.live_changed = True
            if len(model.process.tool_threads) > MAX_TOOL_THREADS:
                model.process.tool_threads.popitem(last=False)
    for tool_use_id in frame.tool_results:
        if model.process.tool_threads.pop(tool_use_id, None) is not None:
            model.live_changed = True
        model.close_thread(step, tool_use_id)


def _result(model: SessionModel, step: Step, frame: Frame, start: int, at: int) -> None:
    model.blocks.apply(frame, start)
    if model.seen_before(frame.uuid):
        return
    model.process.ready = True
    _taken_up(model, step, frame)
    model.process.replying = False
    model.process.turn.result(frame.queued_turn_count or 0)
    model.store(step, "result", frame.raw, at, uuid=frame.uuid)
    if frame.total_cost_usd is not None and frame.total_cost_usd != model.row.cost_usd:
        # Cumulative over the conversation: the latest value, never a sum (stream-json.md §5.3).
        model.row.cost_usd = frame.total_cost_usd
        step.change.session["cost_usd"] = frame.total_cost_usd
    context = context_of(model.reply, frame.raw)
    if context is not None and context != model.row.context:
        model.row.context = context
        step.change.session["context"] = context


def _status(model: SessionModel, step: Step, frame: Frame, at: int) -> None:
    name = frame.status_name or frame.subtype or frame.type or "unknown"
    if frame.subtype == "init":
        _init(model, step, frame, at)
    elif frame.subtype == "session_state_changed" and frame.state is not None:
        model.process.ready = True
        model.process.turn.said(frame.state)
    elif frame.background_tasks is not None:
        model.process.turn.tasks(frame.background_tasks)
    elif frame.task_id is not None and frame.subtype == "task_started":
        model.process.turn.task(frame.task_id, running=True)
    elif frame.task_id is not None and frame.subtype == "task_notification":
        model.process.turn.task(frame.task_id, running=False)
    elif frame.command_uuid is not None and frame.state == "cancelled":
        _dropped(model, step, frame.command_uuid, at)
    if frame.subtype == "task_notification":
        model.close_thread(step, frame.tool_use_id)
    model.blocks.apply(frame)
    step.events.append(Status(name, frame.raw))
    model.live_changed = True
    model.statuses.pop(name, None)
    if len(frame.raw) <= MAX_STATUS_CHARS:
        model.statuses[name] = frame.raw
    if frame.subtype == "task_notification":
        for phase in ("task_started", "task_progress", "task_updated"):
            model.statuses.pop(f"{phase}:{frame.task_id}", None)
    while len(model.statuses) > MAX_STATUSES:
        model.statuses.popitem(last=False)


def _init(model: SessionModel, step: Step, frame: Frame, at: int) -> None:
    """``system/init`` opens every turn and tells what the agent really runs with."""
    model.process.ready = True
    for column, value in (("model", frame.model), ("permission_mode", frame.permission_mode)):
        if value and getattr(model.row, column) != value:
            setattr(model.row, column, value)
            step.change.session[column] = value
    if model.row.cwd is None and isinstance(cwd := json_object(frame.raw).get("cwd"), str):
        model.row.cwd = cwd
        step.change.session["cwd"] = cwd
    session = frame.session_id
    if session and session != model.row.agent_session:
        # The agent forked: follow it in the open, or the next resume continues the wrong one.
        model.notice(
            step,
            "agent_session_changed",
            f"The agent goes on as session {session}; it was {model.row.agent_session}.",
            at,
            {"from": model.row.agent_session, "to": session},
        )
        model.row.agent_session = session
        step.change.session["agent_session"] = session


def _echo(model: SessionModel, step: Step, frame: Frame, at: int) -> None:
    """The agent's receipt for a prompt. Its own row stands in the log already."""
    model.process.ready = True
    model.process.echoes = True
    prompt = model.prompts.get(frame.uuid or "")
    if prompt is None and frame.uuid in model.settled:
        return
    if prompt is not None:
        _took(model, step, prompt)
    elif not model.seen_before(frame.uuid):
        # Not ours: a command that the agent gave itself, or one typed on its own terminal.
        model.store(step, "user", frame.raw, at, thread=frame.thread, uuid=frame.uuid)


def _took(model: SessionModel, step: Step, prompt: PromptRow) -> None:
    """The agent has a prompt: it is not sent again to another."""
    del model.prompts[prompt.id]
    model.process.turn.opened()
    model.cut_turn(step, None)
    model.conversation_begun = True
    prompt.state = "echoed"
    step.change.prompts.append(prompt)
    model.seen_before(prompt.id)


def _taken_up(model: SessionModel, step: Step, frame: Frame) -> None:
    """A reply or a result shows which prompts the agent has, where it did not echo them.

    It names them (stream-json.md §13.6); or, of an agent that echoes nothing, it answers the
    oldest that waits.
    """
    for prompt_id in frame.user_message_uuids:
        if prompt_id in model.prompts:
            _took(model, step, model.prompts[prompt_id])
    if frame.thread != MAIN:
        return
    if (
        model.bare
        and not model.process.echoes
        and not model.process.replying
        and not frame.user_message_uuids
    ):
        launch = model.launch.id if model.launch is not None else None
        for prompt_id in model.queued_ids():
            if model.prompts[prompt_id].launch == launch:
                _took(model, step, model.prompts[prompt_id])
                break
    model.process.replying = True


def _dropped(model: SessionModel, step: Step, prompt_id: str, at: int) -> None:
    """The agent has cancelled a prompt that waited in its queue; it will not run."""
    prompt = model.prompts.pop(prompt_id, None)
    if prompt is not None:
        prompt.state = "cancelled"
        step.change.prompts.append(prompt)
        model.settle(prompt_id)
        model.notice_cancelled(step, prompt, at)


def _asked(model: SessionModel, step: Step, frame: Frame, at: int) -> None:
    request = frame.request
    agent_request_id = frame.request_id or ""
    if request is None or model.launch is None or model.row.ended_at is not None:
        return  # an agent that is being ended gets no answers any more
    model.process.ready = True
    if request.subtype == "request_user_dialog":
        return  # an undeclared kind must not be answered (stream-json.md §6.1)
    if request.subtype != "can_use_tool":
        model.command(
            step,
            host_frames.unsupported(agent_request_id, request.subtype),
        )
        return
    if any(p.agent_request_id == agent_request_id for p in model.permissions.values()):
        return  # told both live and by the handshake
    thread = model.process.tool_threads.get(request.tool_use_id or "", MAIN)
    request_id = new_id("p")
    message = model.store(step, "permission", frame.raw, at, thread=thread, request_id=request_id)
    permission = PermissionRow(
        request_id,
        agent_request_id,
        model.launch.id,
        message.seq,
        thread,
        request.raw,
        at,
    )
    model.permissions[request_id] = permission
    step.change.permissions.append(permission)


def _answered(model: SessionModel, step: Step, frame: Frame, at: int) -> None:
    """An answer to a request of ours; any other id is the echo of an answer of ours."""
    for prompt_id in (frame.response.cancelled if frame.response else None) or ():
        _dropped(model, step, prompt_id, at)
    if frame.request_id is not None and frame.request_id.startswith(WITHDRAWAL):
        prompt_id = frame.request_id[len(WITHDRAWAL) :][:36]
        told = json_object(frame.response.response) if frame.response else {}
        if told.get("cancelled") is True:
            _dropped(model, step, prompt_id, at)
        else:
            step.kept_prompts.append(prompt_id)
    if frame.request_id is not None and frame.request_id == model.process.initialize_id:
        model.process.initialize_id = None
        model.process.ready = True
        step.initialized = True


def _fault(model: SessionModel, step: Step, text: str, at: int, data: dict[str, Any]) -> None:
    model.process.faults += 1
    if model.process.faults < MAX_NOTICED_FAULTS:
        model.notice(step, "line_unreadable", text, at, data)
    elif model.process.faults == MAX_NOTICED_FAULTS:
        model.notice(
            step,
            "line_unreadable",
            "The agent keeps sending lines that cannot be read; further ones are left out "
            "without a notice.",
            at,
        )


def _end_record(model: SessionModel, step: Step, frame: Frame, at: int) -> None:
    """The keeper's last line. Any other nonce is an agent's forgery: noise."""
    if model.launch is not None and frame.end is not None and frame.end.nonce == model.launch.nonce:
        # Read only after a reboot, it was written while the host went down.
        rebooted = model.boot_id is not None and model.launch.boot_id != model.boot_id
        launch_over(model, step, frame.raw, at, rebooted=rebooted)


def take_history(
    model: SessionModel, step: Step, said: Sequence[tuple[int, Frame]], left_out: int, at: int
) -> None:
    """What was said before this session was made; for one that has no launch yet.

    `left_out`: how many messages before these are not told.
    """
    if left_out:
        model.notice(
            step,
            "history_cut",
            f"{left_out:,} earlier messages of this conversation are not in this log; the agent "
            "knows them all the same.",
            at,
            {"left_out": left_out},
        )
    for when, frame in said:
        if frame.kind in ("assistant", "user", "system"):
            _conversation(model, step, frame, 0, when or at)
    for thread in list(model.threads):
        model.close_thread(step, thread)
