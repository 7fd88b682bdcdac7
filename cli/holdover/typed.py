"""What a line typed while attached means. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    text: str


@dataclass(frozen=True)
class Answer:
    request_id: str
    behavior: str  # "allow" or "deny"
    message: str | None


@dataclass(frozen=True)
class Leave:
    pass


@dataclass(frozen=True)
class Nothing:
    """Nothing to do; `hint` says why, "" for an empty line."""

    hint: str


Meaning = Prompt | Answer | Leave | Nothing

HELP = (
    "a allows and d denies what the agent asks (d REASON tells it why; with several open, name "
    "one: a p_1f); any other line is a prompt; /quit or Ctrl-D leaves; Ctrl-C interrupts the turn."
)


def parse_line(line: str, pending: Sequence[str]) -> Meaning:
    """The meaning of `line` while the permissions `pending` (oldest first) are open."""
    text = line.strip()
    if not text:
        return Nothing("")
    if text == "/quit":
        return Leave()
    if text == "/help":
        return Nothing(HELP)
    word, _, rest = text.partition(" ")
    if word not in {"a", "d"}:
        return Prompt(text)
    if not pending:
        # Neither letter makes a prompt: an answer that came too late must not become one.
        return Nothing("Nothing is waiting for an answer.")
    name, _, after = rest.strip().partition(" ")
    named = [one for one in pending if name and one.startswith((name, f"p_{name}"))]
    if len(named) == 1:
        request_id, said = named[0], after.strip()
    elif len(named) > 1:
        return Nothing(f"{name} is the beginning of {len(named)} requests; type more of it.")
    else:
        request_id, said = pending[0], rest.strip()
    if word == "a" and said:
        return Nothing(f"There is no open request {name}; open are: {', '.join(pending)}.")
    return Answer(request_id, "allow" if word == "a" else "deny", said or None)
