"""Where in a TOML file a key stands.

`tomllib` reports the line of a syntax error only; a wrong or unknown key has lost its line once it
is a dictionary. This scan splits a file that `tomllib` has already accepted into statements and
remembers the line each begins on. It needs no grammar beyond strings, comments and brackets: the
keys themselves are parsed by `tomllib` again.
"""

import tomllib
from collections.abc import Iterator

KeyPath = tuple[str, ...]


def find_line(text: str, path: KeyPath) -> int:
    """The 1-based line on which `path` is set first.

    That may be the line of an ancestor, as in an inline table, or of something below it, as with
    ``[agents.x]`` for ``agents``. `text` must be TOML that `tomllib` accepts. Returns 1 for a path that is nowhere in it.
    """
    best, best_depth = 1, 0
    for line, found in _keys(text):
        depth = min(len(found), len(path))
        if depth > best_depth and path[:depth] == found[:depth]:
            best, best_depth = line, depth
    return best


def _keys(text: str) -> Iterator[tuple[int, KeyPath]]:
    table: KeyPath = ()
    for line, statement in _statements(text):
        if statement.startswith("["):
            table = _key_path(statement.strip("[]"))
            yield line, table
        else:
            yield line, table + _key_path(_before_equals(statement))


def _key_path(key: str) -> KeyPath:
    node: object = tomllib.loads(f"{key} = 0")
    path: list[str] = []
    while isinstance(node, dict):
        name, node = next(iter(node.items()))
        path.append(name)
    return tuple(path)


def _before_equals(statement: str) -> str:
    quote = ""
    for at, char in enumerate(statement):
        if quote:
            if char == quote and statement[at - 1] != "\\":
                quote = ""
        elif char in "\"'":
            quote = char
        elif char == "=":
            return statement[:at]
    raise AssertionError("tomllib accepts no statement without '='")


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text without comments) of every table header and key/value pair."""
    line = start = 1
    depth = at = 0
    parts: list[str] = []
    while at < len(text):
        char = text[at]
        if char in "\"'":
            end = _string_end(text, at)
            parts.append(text[at:end])
            line += text.count("\n", at, end)
            at = end
            continue
        if char == "#":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
            continue
        if char == "\n":
            if depth == 0:
                if statement := "".join(parts).strip():
                    yield start, statement
                parts.clear()
                start = line + 1
            line += 1
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        if not (char.isspace() and not parts):
            parts.append(char)
        at += 1
    if statement := "".join(parts).strip():
        yield start, statement


def _string_end(text: str, at: int) -> int:
    """Index just behind the string that opens at `at`."""
    quote = text[at]
    escapes = quote == '"'
    mark = quote * 3 if text.startswith(quote * 3, at) else quote
    at += len(mark)
    while not text.startswith(mark, at):
        at += 2 if escapes and text[at] == "\\" else 1
    at += len(mark)
    # A multi-line string may end in up to two quotes of its own: """he said "so""""".
    if len(mark) == 3:
        while text.startswith(quote, at):
            at += 1
    return at
