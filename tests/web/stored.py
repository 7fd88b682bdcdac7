"""Long conversations, written straight into a catalogue before a daemon serves it.

An agent would need minutes for a million messages; the database makes them itself in seconds.
"""

from __future__ import annotations

import random
import socket
import sqlite3
import time
from pathlib import Path

from holdoverd.catalogue.store import Catalogue

_WORDS = "the reference is gone and so a clock keeps time by what it holds until it is found again"

# Of five messages three are Markdown of changing length and two a call with its result.
_FILL = """
WITH RECURSIVE counted (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < :messages),
said (n, kind, body) AS (
  SELECT n, CASE n % 5 WHEN 4 THEN 'user' ELSE 'assistant' END,
    CASE n % 5
      WHEN 3 THEN
        '{"type":"assistant","message":{"id":"m' || n || '","role":"assistant","content":['
        || '{"type":"tool_use","id":"t' || n || '","name":"Bash","input":{"command":"make '
        || substr(:words, 1 + n * 37 % 500, 40) || '"}}]},"parent_tool_use_id":null}'
      WHEN 4 THEN
        '{"type":"user","message":{"role":"user","content":['
        || '{"type":"tool_result","tool_use_id":"t' || (n - 1) || '","content":"'
        || substr(:words, 1 + n * 13 % 500, :size + n * 7919 % :spread) || '"}]},"parent_tool_use_id":null}'
      ELSE
        '{"type":"assistant","message":{"id":"m' || n || '","role":"assistant","content":['
        || '{"type":"text","text":"message **' || n || '** of ' || :messages || '\\n\\n* '
        || substr(:words, 1 + n * 17 % 500, :size + n * 104729 % :spread)
        || '"}]},"parent_tool_use_id":null}'
    END
  FROM counted
)
INSERT INTO messages (session, seq, n, thread, at, kind, uuid, size, body)
SELECT :session, n, n, 'main', 1700000000000 + n, kind, 'u' || n, length(body), body FROM said
"""


def catalogue(state: Path) -> Path:
    """An empty catalogue in the state folder of a Holdover that does not run yet."""
    state.mkdir(parents=True, exist_ok=True)
    path = state / "catalogue.db"
    Catalogue.open(f"sqlite:///{path}").close()
    return path


def store(path: Path, session: str, messages: int, size: int = 0, spread: int = 300) -> None:
    """Put an ended session into the catalogue at `path`; each message has `size` bytes more
    and, by chance, up to `spread`.

    It counts as indexed for search, or the daemon would be at it for the whole test.
    """
    rng = random.Random(7)
    words = _WORDS.split()
    text = " ".join(rng.choice(words) for _ in range((6000 + size) // 4))
    now = time.time_ns() // 1_000_000
    row = {
        "id": session,
        "epoch": "e1",
        "owner": "default",
        "account": "holdover-agent",
        "agent": "demo",
        "agent_session": session,
        "title": f"{messages:,} messages",
        "permission_mode": "default",
        "state": "ended",
        "last_seq": messages,
        "searched_seq": messages,
        "cost_usd": 0.0,
        "host": socket.gethostname(),
        "generation": 1,
        "release": "0",
        "owner_epoch": 1,
        "live": "{}",
        "created_at": now,
        "updated_at": now,
        "ended_at": now,
    }
    db = sqlite3.connect(path)
    db.execute("PRAGMA synchronous = OFF")
    db.execute("PRAGMA cache_size = -200000")
    with db:
        names = ", ".join(row)
        marks = ", ".join(f":{name}" for name in row)
        db.execute(f"INSERT INTO sessions ({names}) VALUES ({marks})", row)
        db.execute(
            "INSERT INTO threads (session, thread, n, state, position) VALUES (?, 'main', ?, 'open', 1)",
            (session, messages),
        )
        db.execute(
            _FILL,
            {
                "session": session,
                "messages": messages,
                "size": size,
                "spread": spread,
                "words": text,
            },
        )
    db.close()
