"""Keeping account of a stream: what counts as lost, repeated, closed and silent."""

import hashlib
from typing import Any

from holdover.rehearse import Account, Seen, line_number


def line(seq: int, number: int, *, damaged: bool = False) -> dict[str, Any]:
    payload = f"payload {number}"
    digest = hashlib.sha256(payload.encode()).hexdigest()
    text = f"#{number} {digest} {payload}{'!' if damaged else ''}"
    body = {"message": {"content": [{"type": "text", "text": text}]}}
    return {"seq": seq, "kind": "assistant", "body": body}


def opened(account: Account) -> Account:
    account.frame({"type": "hello", "session": {"epoch": "e"}, "resync": False}, 0.0)
    account.frame({"type": "messages", "messages": [{"seq": 1, "kind": "user"}]}, 0.0)
    account.begin("deploy", 0.0)
    return account


def fed(*messages: dict[str, Any], at: float = 0.0) -> Seen:
    account = opened(Account(0.0))
    account.frame({"type": "messages", "messages": list(messages)}, at)
    return account.phases["deploy"]


def test_what_comes_in_order_is_neither_lost_nor_repeated() -> None:
    assert fed(line(2, 1), line(3, 2), line(4, 3)) == Seen(messages=3)


def test_a_gap_a_repetition_and_a_swallowed_line_are_counted() -> None:
    assert fed(line(2, 1), line(4, 3)).lost == 2  # by the log, and by what the agent said
    assert fed(line(2, 1), line(3, 3)).lost == 1
    assert fed(line(2, 1), line(2, 1)).repeated == 1
    assert fed(line(2, 1), line(3, 2, damaged=True)).lost == 1


def test_a_silence_counts_where_it_ends_and_over_a_border_for_both() -> None:
    account = opened(Account(0.0))
    account.frame({"type": "messages", "messages": [line(2, 1)]}, 1.0)
    account.begin("kill -9", 4.0)
    account.lost_connection()
    account.frame({"type": "messages", "messages": [line(3, 2)]}, 6.0)
    assert account.phases["deploy"].silence_s == 3.0
    assert account.phases["kill -9"] == Seen(messages=1, closed=1, silence_s=5.0)


def test_a_resync_is_a_loss_and_a_cursor_needs_its_epoch() -> None:
    account = Account(0.0)
    assert account.query() == {"threads": "all"}
    opened(account)
    assert account.query() == {"threads": "all", "after": "1", "epoch": "e"}
    account.frame({"type": "hello", "session": {"epoch": "f"}, "resync": True}, 0.0)
    assert account.phases["deploy"].lost == 1


def test_other_messages_have_no_number() -> None:
    assert line_number({"kind": "result", "body": {}}) is None
    assert line_number({"kind": "assistant", "body": {"truncated": True}}) is None
    assert line_number(line(1, 7)) == 7


def test_words_for_a_person() -> None:
    assert str(Seen(silence_s=0.041)) == ("lost 0, repeated 0, closed 0, longest silence 41 ms")
