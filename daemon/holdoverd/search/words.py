"""The rules of search: a message's words, a query's terms, a hit's snippet. Text in, text out."""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from holdoverd.errors import BadRequest

# Of each message. A long tool result is found by its beginning; indexing megabytes of one would
# keep every other session's words waiting.
MAX_TEXT = 16 * 1024
# A body over this many characters is not parsed but skimmed; as long as the previews of messages.
MAX_PARSED = 256 * 1024
SKIMMED = 4096

MAX_TERMS = 16
SNIPPET_BEFORE, SNIPPET_CHARACTERS = 60, 240

# Keys whose values are for machines: identifiers, kinds, signatures, bytes, what stands elsewhere.
_NOT_WORDS = frozenset(
    {
        "agent_request_id", "client_id", "data", "id", "media_type", "model", "modelUsage", "origin",
        "parent_tool_use_id", "permission_suggestions", "priority", "request_id", "role",
        "session_id", "signature", "stop_reason", "subtype", "suggestions", "terminal_reason",
        "timestamp", "tool_use_id", "tool_use_result", "type", "usage", "user_message_uuid",
        "user_message_uuids", "uuid",
    }
)  # fmt: skip
# Base64 and the like: nobody looks for a word of that length.
_MAX_WORD = 256
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)(?:"(\s*:)?|\\?$)', re.DOTALL)
_SPACE = re.compile(r"\s")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_NOT_A_WORD = re.compile(r"[\W_]+")
_TERM = re.compile(r'"([^"]*)"?|(\S+)')


def text_of(kind: str, body: str) -> str:
    """What of a message is searched: every string in it that a person would read.

    `body` is JSON text; anything else has no words. At most `MAX_TEXT` characters, pieces apart by a
    newline. The answer that ends a turn says again what the agent said, and has none.
    """
    pieces = _skim(body) if len(body) > MAX_PARSED else _parsed(kind, body)
    found: list[str] = []
    room = MAX_TEXT
    for piece in pieces:
        if room <= 0:
            break
        if len(piece) > _MAX_WORD and not _SPACE.search(piece, 0, _MAX_WORD):
            continue
        found.append(piece[:room])
        room -= len(piece) + 1
    text = "\n".join(found)
    if text.isascii() and "\0" not in text:
        return text
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _parsed(kind: str, body: str) -> Iterator[str]:
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        # Unpaired surrogates are none of JSON's mistakes, and msgspec's alone.
        yield from _skim(body)
        return
    if kind == "result" and isinstance(value, dict) and not value.get("is_error"):
        value.pop("result", None)
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [v for key, v in reversed(value.items()) if key not in _NOT_WORDS]
        elif isinstance(value, list):
            waiting += reversed(value)


def _skim(body: str) -> Iterator[str]:
    """Strings in the beginning of a long body that have several words, whatever they are called."""
    for text, key in _STRING.findall(body[:SKIMMED]):
        if key or " " not in text:
            continue
        try:
            yield json.loads(f'"{text}"', strict=False)
        except ValueError:
            yield text


@dataclass(frozen=True, slots=True)
class Term:
    """One thing to be found: `words`, folded, that stand beside each other in this order.

    `text` is how it was typed. `prefix`: the last word may go on.
    """

    text: str
    words: tuple[str, ...]
    prefix: bool = False


def terms_of(query: str) -> list[Term]:
    """What somebody typed: words that all have to be there, ``"…"`` beside each other, ``word*``.

    There is no other syntax: ``AND (`` is the word "and". Raises BadRequest where there is no word,
    or too many.
    """
    terms: list[Term] = []
    for quoted, plain in _TERM.findall(query):
        if words := tuple(folded(quoted or plain).split()):
            # Of a shorter beginning there are too many.
            prefix = plain.endswith("*") and len(words[-1]) >= 3
            terms.append(Term((quoted or plain).removesuffix("*"), words, prefix))
    if not terms:
        raise BadRequest("The parameter `q` holds no word to look for; send some.")
    if sum(len(term.words) for term in terms) > MAX_TERMS:
        raise BadRequest(
            f"The parameter `q` holds more than {MAX_TERMS} words; the rarest of them will do."
        )
    return terms


def folded(text: str) -> str:
    """Words alone, apart by one space, without case and accents: what is compared."""
    if not text.isascii():
        apart = unicodedata.normalize("NFD", text)
        text = "".join(char for char in apart if not unicodedata.combining(char))
        text = unicodedata.normalize("NFC", text)  # Hangul was taken apart as well
    return _NOT_A_WORD.sub(" ", text).strip().lower()


def snippet(text: str, terms: Sequence[Term]) -> str:
    """The surroundings of the first term that is found in a message's text, as one plain line."""
    line = " ".join(_visible(text).split())
    at = min((m.start() for term in terms if (m := _pattern(term).search(line))), default=0)
    start = max(0, at - SNIPPET_BEFORE)
    if start:
        space = line.find(" ", start, at)
        start = space + 1 if space >= 0 else start
    end = start + SNIPPET_CHARACTERS
    if end < len(line):
        space = line.rfind(" ", at + 1, end)
        end = space if space > 0 else end
    return f"{'…' if start else ''}{line[start:end]}{'…' if end < len(line) else ''}"


def _pattern(term: Term) -> re.Pattern[str]:
    """The words as they may stand in a text. Where accents hide one, the snippet starts elsewhere."""
    words = r"[\W_]+".join(re.escape(word) for word in term.words)
    end = "" if term.prefix else r"(?![^\W_])"
    return re.compile(rf"(?<![^\W_]){words}{end}", re.IGNORECASE)


def _visible(text: str) -> str:
    """Without what would move a terminal's cursor or turn its text around (Cc and Cf)."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == " " else " "
        for char in text
        if unicodedata.category(char) != "Cf"
    )
