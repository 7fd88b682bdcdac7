"""How the life of an agent process shows in its session: begun, live, over. Pure, as the model is.

One launch at a time: the rules that keep it so are in `starting` and `launcher`.
"""

from collections.abc import Sequence
from signal import SIGKILL

from holdoverd.catalogue.records import LaunchRow, PromptRow
from holdoverd.sessions.bodies import dumps, json_object
from holdoverd.sessions.model import SessionModel, Step


def launch_begun(model: SessionModel, step: Step, launch: LaunchRow) -> None:
    """The lock is held and an agent may be started; stored before anything is sent."""
    model.launch = launch
    model.wanted = False
    model.fresh_process()
    step.change.launch = launch


def launch_live(
    model: SessionModel,
    step: Step,
    *,
    keeper_pid: int | None,
    agent_pid: int | None,
    cwd: str | None,
    first_lines: Sequence[str],
    initialize_id: str | None,
    at: int,
    resumed: bool,
) -> None:
    """The keeper has answered: number the handshake, then every prompt that waits.

    Prompts numbered for an earlier launch must have been settled (`settle_prompts`) before.
    """
    launch = model.launch
    assert launch is not None, "a launch goes live only after it has begun"
    launch.state = "live"
    model.creating = False
    launch.keeper_pid, launch.agent_pid = keeper_pid, agent_pid
    step.change.launch = launch
    if cwd is not None and model.row.cwd != cwd:
        model.row.cwd = cwd
        step.change.session["cwd"] = cwd
    if model.row.error is not None:
        model.row.error = None
        step.change.session["error"] = None
    model.process.initialize_id = initialize_id
    if resumed:
        model.notice(step, "resumed", "The agent was started again; the session goes on.", at)
    for line in first_lines:
        model.command(step, line)
    for prompt_id in model.queued_ids():
        prompt = model.prompts[prompt_id]
        prompt.launch = launch.id
        step.change.prompts.append(prompt)
        model.command(step, None, seq=prompt.seq)


def unsettled_prompts(model: SessionModel) -> list[PromptRow]:
    """Prompts that an earlier agent process may have seen: it died before an echo of them."""
    current = model.launch.id if model.launch else None
    return [p for p in model.prompts.values() if p.launch is not None and p.launch != current]


def settle_prompts(
    model: SessionModel, step: Step, *, found: frozenset[str], searchable: bool, at: int
) -> None:
    """What the dead agent's transcript says of its unechoed prompts.

    `found`: the ids that occur in it: the agent had taken them. Absent ones are sent again
    with the same id. Where there is no transcript to search, only a person can tell.
    """
    for prompt in unsettled_prompts(model):
        if prompt.id in found:
            model.conversation_begun = True
            prompt.state = "echoed"
            del model.prompts[prompt.id]
            model.settle(prompt.id)
        elif searchable:
            prompt.launch = None
        else:
            prompt.state = "uncertain"
            del model.prompts[prompt.id]
            model.settle(prompt.id)
            model.notice(
                step,
                "prompt_uncertain",
                "The agent died and nothing shows whether it had seen this prompt. "
                "Send it again if it is still wanted.",
                at,
                {"prompt_id": prompt.id, "seq": prompt.seq},
            )
        step.change.prompts.append(prompt)


def launch_abandoned(model: SessionModel, step: Step) -> None:
    """The launch on record never came to life; nothing was said and nothing is told."""
    launch = model.launch
    assert launch is not None, "only a launch that has begun can be abandoned"
    _end_launch(model, step, launch)


def _end_launch(model: SessionModel, step: Step, launch: LaunchRow) -> None:
    launch.state = "ended"
    step.change.launch = launch
    step.change.outbox_acked = (launch.id, launch.last_n)  # nobody will ever take the rest
    step.launch_ended = True
    model.launch = None


def launch_failed(model: SessionModel, step: Step, *, code: str, message: str, at: int) -> None:
    """No agent could be started. Prompts that wait stay queued: the next resume sends them."""
    if model.launch is not None:
        _end_launch(model, step, model.launch)
    model.row.error = dumps({"code": code, "message": message})
    step.change.session["error"] = model.row.error
    model.notice(step, "launch_failed", message, at, {"code": code})


def launch_over(
    model: SessionModel, step: Step, outcome: str | None, at: int, *, rebooted: bool = False
) -> None:
    """The agent is gone and its spool read to the end.

    `outcome`: the keeper's end record, or None: the keeper died too, and nobody knows how the
    agent ended. `rebooted`: the host was started anew since the agent was.
    """
    launch = model.launch
    assert launch is not None, "only a launch that has begun can end"
    model.withdraw(step, list(model.permissions.values()), at)
    ended = model.row.ended_at is not None
    told = json_object(outcome)
    status, signal, oom = told.get("status"), told.get("signal"), bool(told.get("oom"))
    data = {"status": status, "signal": signal, "oom": oom, "turn_cut": model.process.turn.open}
    if rebooted:
        data["rebooted"] = True
    if told.get("cut"):
        data["cut"] = True
    forks_refused = bool(told.get("forks_refused"))
    if forks_refused:
        data["forks_refused"] = True
    if oom and signal == SIGKILL:
        text = "The agent was ended by the kernel: it needed more memory than its unit allows."
    elif signal is not None:
        text = f"The agent was ended by signal {signal}."
    elif status is not None:
        text = f"The agent exited with status {status}."
    elif rebooted:
        text = "The agent ended with the host, which was started anew."
    else:
        text = "The agent is gone; how it ended is not known."
    if oom and signal != SIGKILL:
        text += " Before that the kernel had ended something of it for memory."
    if forks_refused:
        text += " It had asked for more processes than its unit allows."
    if not ended:
        text += " The next prompt resumes the session."
    launch.outcome = outcome
    if model.process.turn.open and not ended:
        # One that went with its unit went with the host, as far as anybody can tell.
        model.cut_turn(step, "reboot" if rebooted or told.get("stopped") else "agent")
    _end_launch(model, step, launch)
    model.fresh_process()
    model.notice(step, "agent_exited", text, at, data)
    for thread in list(model.threads):
        model.close_thread(step, thread)


def spool_cut(model: SessionModel, step: Step, *, offset: int, size: int, at: int) -> None:
    """The spool is shorter than what was read of it: a power cut took its end."""
    launch = model.launch
    assert launch is not None, "a spool belongs to a launch"
    launch.offset = launch.replay_from = size
    step.change.launch = launch
    model.notice(
        step,
        "spool_cut",
        "The host lost power: the file that held the agent's last lines came back shorter. "
        "Everything read from it before is in this log.",
        at,
        {"offset": offset, "size": size},
    )
