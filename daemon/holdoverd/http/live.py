"""The WebSockets this instance serves, found by the token that opened them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

End = Callable[[int, str], None]  # (close code, reason); never waits


class LiveStreams:
    """Who is to be closed when a token is revoked."""

    def __init__(self) -> None:
        self._by_token: dict[str | None, set[End]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_token.values()))

    @contextmanager
    def registered(self, token_id: str | None, end: End) -> Iterator[None]:
        """`end` is called at most by those below, while the context is open."""
        ends = self._by_token.setdefault(token_id, set())
        ends.add(end)
        try:
            yield
        finally:
            ends.discard(end)
            # a later stream of the same token may have made a set of its own meanwhile
            if not ends and self._by_token.get(token_id) is ends:
                del self._by_token[token_id]

    def token_gone(self, token_id: str) -> None:
        """Close 4001 every stream that `token_id` opened."""
        for end in list(self._by_token.get(token_id, ())):
            end(4001, "The token is no longer valid; log in again.")
