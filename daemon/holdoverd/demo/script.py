"""What a prompt tells the demo agent to act out: pure text in, steps out."""

from __future__ import annotations

import re

HELP = """\
I am Holdover's demo agent. I act out what a prompt says, one directive a line:

say TEXT · think TEXT           a text block, a thinking block (neighbours share one message)
stream N [rate R]               one block of N words, R words a second (10)
lines N [rate R] [size BYTES]   N messages "#i SHA256 PAYLOAD", R a second (all at once), BYTES each (64)
history N                       N short messages, all at once
huge BYTES                      one message of that many bytes, then its SHA-256
tool NAME JSON                  a tool call and its result
ask N                           N permissions at once; tells how each was answered
withdraw N [after S]            asks N permissions, withdraws them S seconds later (0)
ask-question · plan             a question with options; a plan to approve
agent DEPTH [lines N]           nested sub-agents, N messages each (1)
agent-ask DEPTH N               the deepest sub-agent asks N permissions
wait S                          S seconds of silence
sha                             SHA-256 and length of all that follows this line
pid                             my process id and my parent's
stderr TEXT · noise TEXT        a line on stderr; a line on stdout that is no JSON
raw TEXT                        exactly this line on stdout
cut TEXT                        this text without a newline on stdout, then exit status 1
crash exit CODE                 exit in mid-turn
crash signal NAME               die of a signal (KILL, SEGV, TERM ...)
help                            this list

Any other text I repeat, word by word."""

# Bounds on what one directive may ask for: a demo must not eat the machine it is shown on.
MAX_COUNT = 1_000_000
MAX_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 16
MAX_QUESTIONS = 64
MAX_RATE = 10_000.0
MAX_SECONDS = 86_400.0

_NUMBER = r"(?P<n>\d{1,9})"
_RATE = r"(?: rate (?P<rate>\d{1,5}(?:\.\d{1,3})?))?"
_SECONDS = r"(?P<seconds>\d{1,5}(?:\.\d{1,3})?)"

# {verb: (pattern of what follows it, bound of its first number)}
_DIRECTIVES: dict[str, tuple[re.Pattern[str], int]] = {
    verb: (re.compile(pattern), bound)
    for verb, pattern, bound in (
        ("say", r" (?P<text>.+)", 0),
        ("think", r" (?P<text>.+)", 0),
        ("stream", f" {_NUMBER}{_RATE}", MAX_COUNT),
        ("lines", rf" {_NUMBER}{_RATE}(?: size (?P<size>\d{{1,8}}))?", MAX_COUNT),
        ("history", f" {_NUMBER}", MAX_COUNT),
        ("huge", f" {_NUMBER}", MAX_BYTES),
        ("tool", r" (?P<name>[\w.:-]{1,64}) (?P<text>\{.*\})", 0),
        ("ask", f" {_NUMBER}", MAX_QUESTIONS),
        ("withdraw", f" {_NUMBER}(?: after {_SECONDS})?", MAX_QUESTIONS),
        ("ask-question", "", 0),
        ("plan", "", 0),
        ("agent", rf" {_NUMBER}(?: lines (?P<size>\d{{1,6}}))?", MAX_DEPTH),
        ("agent-ask", rf" {_NUMBER} (?P<size>\d{{1,3}})", MAX_DEPTH),
        ("wait", f" {_SECONDS}", 0),
        ("sha", "", 0),
        ("pid", "", 0),
        ("stderr", r" (?P<text>.+)", 0),
        ("noise", r" (?P<text>.+)", 0),
        ("raw", r" (?P<text>.+)", 0),
        ("cut", r" (?P<text>.+)", 0),
        ("crash exit", r" (?P<n>\d{1,3})", 255),
        ("crash signal", r" (?P<name>KILL|TERM|INT|HUP|QUIT|ABRT|SEGV|BUS|FPE|ILL|TRAP|SYS)", 0),
        ("help", "", 0),
    )
}
# A step's `size` means something else per verb, and so has a bound of its own.
_SIZE_BOUNDS = {"lines": MAX_BYTES, "agent": MAX_COUNT, "agent-ask": MAX_QUESTIONS}


class Step:
    """One directive. `verb` is ``text`` for text that is none; unused fields are empty.

    n        the directive's first number; a sub-agent's depth.
    size     BYTES of ``lines``, N of ``agent`` and ``agent-ask``; None where left out.
    rate     a second; None where left out.
    seconds  of ``wait`` and ``withdraw``.
    """

    __slots__ = ("n", "name", "rate", "seconds", "size", "text", "verb")

    def __init__(
        self,
        verb: str,
        text: str = "",
        *,
        n: int = 0,
        name: str = "",
        rate: float | None = None,
        seconds: float = 0.0,
        size: int | None = None,
    ) -> None:
        self.verb = verb
        self.text = text
        self.n = n
        self.name = name
        self.rate = rate
        self.seconds = seconds
        self.size = size

    def __repr__(self) -> str:
        shown = ((name, getattr(self, name)) for name in self.__slots__)
        return f"Step({', '.join(f'{name}={value!r}' for name, value in shown if value)})"


def parse(prompt: str) -> list[Step]:
    """The steps of `prompt`, in order. Nothing is an error: what is no directive is text."""
    steps: list[Step] = []
    text: list[str] = []
    position = 0
    while position <= len(prompt):
        end = prompt.find("\n", position)
        end = len(prompt) if end < 0 else end
        line = prompt[position:end]
        position = end + 1
        step = _directive(line.rstrip("\r"))
        if step is None:
            text.append(line)
            continue
        _flush(text, steps)
        if step.verb == "sha":
            # The payload is everything behind the line, directives or not, to the last byte.
            step.text = prompt[position:]
            position = len(prompt) + 1
        steps.append(step)
    _flush(text, steps)
    return steps or [Step("text")]


def _flush(text: list[str], steps: list[Step]) -> None:
    whole = "\n".join(text).strip()
    if whole:
        steps.append(Step("text", whole))
    text.clear()


def _directive(line: str) -> Step | None:
    words = line.split(" ", 2)
    verb = words[0]
    if verb == "crash":
        verb = " ".join(words[:2])
    if verb not in _DIRECTIVES:
        return None
    pattern, bound = _DIRECTIVES[verb]
    match = pattern.fullmatch(line, len(verb))
    if match is None:
        return None
    found = match.groupdict()
    step = Step(
        verb,
        found.get("text") or "",
        n=int(found.get("n") or 0),
        name=found.get("name") or "",
        rate=float(found["rate"]) if found.get("rate") else None,
        seconds=float(found.get("seconds") or 0),
        size=int(found["size"]) if found.get("size") else None,
    )
    within = (
        step.n <= bound
        and (step.size or 0) <= _SIZE_BOUNDS.get(verb, 0)
        and (step.rate is None or 0 < step.rate <= MAX_RATE)
        and step.seconds <= MAX_SECONDS
    )
    return step if within else None
