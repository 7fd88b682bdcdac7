"""When a prompt has been dealt with: waits for its turn's result. No I/O."""

from holdover.cursor import Answered, Event, Json, Level, Opened, Stored
from holdover.exits import Exit

_OVER = {"dormant", "ended", "failed"}


class TurnWatch:
    """Looks for the end of the turn that answers the prompt `prompt_id`, stored as `seq`."""

    def __init__(self, prompt_id: str, seq: int) -> None:
        self._prompt = prompt_id
        self._seq = seq
        self._started = False

    def feed(self, event: Event) -> Exit | None:
        """OK or FAILED once the turn is over, None until then."""
        match event:
            case Stored(message) if message["seq"] > self._seq:
                return self._message(message)
            case Level(session) | Opened(session):
                # A dormant session stays so for a moment after a prompt; only a fall back counts.
                # An end, however, is one.
                if session.get("state") not in _OVER:
                    self._started = True
                elif self._started or session.get("state") == "ended":
                    return Exit.FAILED
        return None

    def _message(self, message: Json) -> Exit | None:
        body = message.get("body")
        if not isinstance(body, dict):
            return None
        match message.get("kind"):
            case "result":
                prompts = body.get("user_message_uuids") or body.get("user_message_uuid")
                prompts = [prompts] if isinstance(prompts, str) else prompts
                if prompts and self._prompt not in prompts:
                    return None  # the end of a turn before ours
                return Exit.FAILED if body.get("is_error") else Exit.OK
            case "notice":
                data = body.get("data")
                if body.get("code") == "prompt_cancelled" and isinstance(data, dict):
                    return Exit.FAILED if self._prompt in data.values() else None
            case "assistant" | "permission":
                self._started = True
        return None


class SentWatch:
    """Waits until the daemon has taken the one frame that was sent; keeps its answer."""

    def __init__(self) -> None:
        self.answer: Json | None = None

    def feed(self, event: Event) -> Exit | None:
        if isinstance(event, Answered):
            self.answer = event.frame
            return Exit.OK if event.frame.get("type") == "ok" else Exit.FAILED
        return None
