"""What `holdover up` says. No I/O."""

from pathlib import Path

from holdoverd import __version__
from holdoverd.supervisor.plan import Plan


def welcome(
    plan: Plan, *, address: str, token: str | None, daemon_pid: int, storage: str | None = None
) -> str:
    """The text printed once the daemon serves."""
    login = (
        f"token {token}\n             (for browsers and other machines; kept in {plan.token_file})"
        if token
        else "none could be made; the commands below work without one"
    )
    return f"""\
Holdover {__version__} runs here in the foreground; Ctrl-C stops it.

    address  {address}
    login    {login}
    agent    {_agent(plan)}
    data     {plan.state}
    storage  {_storage(plan, storage)}
    daemon   process {daemon_pid}; kill -9 it while an agent talks, and see nothing get lost

In another terminal, type next:

    {plan.command_prefix} session new --attach "hello"

Not protected here: agents run as you ({plan.account}), without memory limits and with all that you
may read and write; nobody starts this program again should it be killed. On a server, use
`make install`.
"""


def _agent(plan: Plan) -> str:
    command = plan.settings.agents[plan.agent].command
    if plan.agent_is_demo:
        return (
            "demo: a built-in stand-in that repeats what you say. This is no real agent;\n"
            "             for Claude Code: `holdover agent install claude`, then start again"
        )
    return f"{plan.agent} ({command[0]})"


def _storage(plan: Plan, address: str | None) -> str:
    if address is not None:
        return f"{address} (S3); to share a file: {plan.command_prefix} share FILE"
    if plan.settings.sources["storage.endpoint"] != "default":
        return f"{plan.settings.storage.endpoint} (S3, as configured)"
    return "none: files cannot be put or shared"


def stopping(agents: int) -> str:
    """Said at Ctrl-C."""
    if not agents:
        return "Stopping."
    which = "the agent that runs" if agents == 1 else f"the {agents} agents that run"
    return (
        f"Stopping, and with the daemon {which}, since nobody is left to keep them. Their sessions "
        "are kept and go on with the next prompt after the next `holdover up`."
    )


def how_died(status: int, reason: str | None) -> str:
    """`status` as in `Popen.returncode`; `reason`: why it had to be killed."""
    how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
    return how + (f" (it {reason})" if reason else "")


def died(how: str, delay_s: float | None) -> str:
    """Said when the daemon's process is gone."""
    if delay_s is None:
        return f"The daemon {how} before it was ready, three times over; see above for why."
    return f"The daemon {how}; starting it again in {delay_s:.1f} s. Agents go on."


def storage_died(status: int, delay_s: float | None, log: Path) -> str:
    """Said when storage's process is gone; `status` as in `Popen.returncode`."""
    how = how_died(status, None)
    if delay_s is None:
        return (
            f"Storage {how} before it was ready, three times over; see {log} for why. Files cannot "
            "be had until you start again; sessions go on."
        )
    return f"Storage {how}; starting it again in {delay_s:.1f} s. Files wait meanwhile."


def no_walls() -> str:
    """Said when the kernel grants storage no namespaces."""
    return (
        "Storage runs without walls, since the kernel allows no user namespaces here: whoever has "
        "an account on this machine may read and change all files through its side ports."
    )
