"""``python -I -m holdoverd.demo``: arguments, the session's beginning, then the agent."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading

from .agent import Agent
from .script import HELP
from .transcript import Transcript
from .wire import Wire

USAGE = (
    "usage: python -I -m holdoverd.demo [--session-id=UUID | --resume=UUID] [--model=NAME] "
    "[--permission-mode=MODE]"
)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_FLAGS = ("--session-id", "--resume", "--model", "--permission-mode")


def main(arguments: list[str]) -> int:
    given: dict[str, str] = {}
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if argument in {"-h", "--help"}:
            print(f"{USAGE}\n\n{HELP}")
            return 0
        if flag not in _FLAGS or not equals or not value:
            print(f"demo agent: {argument!r} is not understood\n{USAGE}", file=sys.stderr)
            return 2
        given[flag] = value
    resume, fresh = given.get("--resume"), given.get("--session-id")
    if resume and fresh:
        print(f"demo agent: --session-id and --resume exclude each other\n{USAGE}", file=sys.stderr)
        return 2
    session = (resume or fresh or _random_uuid()).lower()
    if not _UUID.fullmatch(session):
        print(f"demo agent: {session!r} is not a UUID\n{USAGE}", file=sys.stderr)
        return 2
    transcript = Transcript(session, os.environ.get("HOME") or "/")
    # Both refusals, and their words, are those of the real agent.
    if resume and not transcript.exists():
        print(f"No conversation found with session ID: {session}", file=sys.stderr)
        return 1
    if fresh and transcript.exists():
        print(f"Error: Session ID {session} is already in use.", file=sys.stderr)
        return 1
    _exit_on_signals()
    turns = transcript.turns()
    # Turns alone would repeat themselves where the transcript is lost; by itself, without a
    # daemon, the demo says the same in every run.
    launch = os.environ.get("HOLDOVER_LAUNCH_ID")
    agent = Agent(
        Wire(1, session, f"{launch}:{turns}" if launch else str(turns)),
        transcript,
        turns=turns,
        model=given.get("--model", "demo"),
        permission_mode=given.get("--permission-mode", "default"),
    )
    if resume and os.environ.get("HOLDOVER_GO_ON"):
        agent.go_on()
    return agent.run(sys.stdin.buffer)


def _exit_on_signals() -> None:
    """TERM and INT end the process at once with the status a shell would give.

    By a thread that waits for them: Python runs handlers in the main thread between two
    instructions, and a signal that comes just before that thread blocks in read() would be
    acted upon at the next line of input, which may never come.
    """
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)  # threads started later inherit this

    def wait() -> None:
        # os._exit: a thread that is blocked on a full pipe must not keep the process.
        os._exit(128 + signal.sigwait(ending))

    threading.Thread(target=wait, name="signals", daemon=True).start()


def _random_uuid() -> str:
    text = os.urandom(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
