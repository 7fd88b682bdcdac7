"""What to do when a stream ends, and when to try again. No I/O, no clock."""

from dataclasses import dataclass

from holdover.exits import CommandError, Exit

# Attempts without a single success in between; with the delays below, about five minutes.
MAX_ATTEMPTS = 150
MAX_DELAY_S = 3.0


@dataclass
class Redial:
    """Counts attempts and gives the pause before each.

    `jitter` in [0, 1] spreads viewers that lost the same daemon at the same moment.
    """

    attempts: int = 0

    def succeeded(self) -> None:
        """A frame came: the next loss is a new one."""
        self.attempts = 0

    def delay_s(self, jitter: float) -> float:
        """Seconds to wait before the next attempt; raises `CommandError` after the last.

        The first follows almost at once: after a deploy or a crash the listening socket is still
        there and the connection waits in it.
        """
        if self.attempts >= MAX_ATTEMPTS:
            raise CommandError(
                f"The daemon did not come back in {MAX_ATTEMPTS} attempts; attach again later, "
                "the session is kept.",
                Exit.UNREACHABLE,
            )
        ceiling: float = min(MAX_DELAY_S, 0.2 * 2.0**self.attempts)
        self.attempts += 1
        return ceiling * (0.25 + 0.75 * jitter)


def verdict(code: int, reason: str, session: str) -> CommandError | None:
    """Whether a close with `code` is final; None means: connect again with the cursor.

    1000 is the one good end, and still returned as a `CommandError` with exit code 0, so that
    there is one way out.
    """
    match code:
        case 1000:
            return CommandError(f"Session {session} has ended.", Exit.OK)
        case 4001:
            return CommandError(
                "The token is no longer valid: run `holdover login URL` again.", Exit.NOT_ALLOWED
            )
        case 4003:
            return CommandError(
                f"Session {session} is no longer shared with you.", Exit.NOT_ALLOWED
            )
        case 4004:
            return CommandError(f"There is no session {session}.", Exit.NOT_FOUND)
        case 1009:
            return CommandError(f"The daemon refused a frame as too large: {reason}", Exit.FAILED)
        case _:
            return None


def http_verdict(status: int) -> bool:
    """Whether a refused upgrade with `status` may go better next time."""
    return status >= 500 or status in {408, 425, 429}
