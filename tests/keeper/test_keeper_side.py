"""The keeper's rules in memory: cut streams, rivals in every order, numbering, bounds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.keeper import keeper_side as ks
from holdoverd.keeper import protocol
from tests.keeper.conversation import Conversation


def last_event(talk: Conversation, connection: int) -> protocol.Event:
    return talk.events(connection)[-1]


def error_of(talk: Conversation, connection: int) -> str:
    event = last_event(talk, connection)
    assert isinstance(event, protocol.Error), event
    assert connection in talk.closed
    return event.text


# ----------------------------------------------------------------------------------- one owner

SCRIPT = (
    protocol.hello(7)
    + protocol.line(1, b'{"a":1}')
    + protocol.ping()
    + protocol.line(2, b"")
    + protocol.signal(3, "INT")
    + protocol.line(2, b"again, and skipped")
    + protocol.line(4, "naïve \u2028 HELLO 1 9".encode())
    + protocol.end(5)
)


def run_script(cuts: Iterable[int], *, slow_agent: bool = False) -> Conversation:
    talk = Conversation(slow_agent=slow_agent)
    connection = talk.connect()
    talk.send(connection, SCRIPT, cuts)
    while talk.pending is not None:
        talk.write_pending()
    return talk


def check_script(talk: Conversation) -> None:
    assert talk.events(1) == [
        protocol.Welcome(0, "running"),
        protocol.Ack(1),
        protocol.Pong(),
        protocol.Ack(2),
        protocol.Ack(3),
        protocol.Ack(2),
        protocol.Ack(4),
        protocol.Ack(5),
    ]
    assert talk.lines == [b'{"a":1}\n', b"\n", "naïve \u2028 HELLO 1 9\n".encode()]
    assert talk.signals == ["INT"]
    assert talk.stdin_closed == 1
    assert not talk.closed
    assert talk.held_bytes == 0


def test_a_stream_cut_at_any_byte_means_the_same() -> None:
    for cut in range(len(SCRIPT) + 1):
        check_script(run_script([cut]))


def test_a_stream_sent_byte_by_byte_means_the_same() -> None:
    check_script(run_script(range(len(SCRIPT))))


@given(st.lists(st.integers(0, len(SCRIPT))))
def test_a_stream_in_any_pieces_to_a_slow_agent_means_the_same(cuts: list[int]) -> None:
    talk = run_script(cuts, slow_agent=True)
    assert talk.lines == run_script([]).lines
    assert last_event(talk, 1) == protocol.Ack(5)
    assert talk.stdin_closed == 1


def test_numbers_below_are_acknowledged_and_skipped_at_is_taken_above_is_a_gap() -> None:
    talk = Conversation()
    owner = talk.owner()
    for n in (1, 2, 3):
        talk.send(owner, protocol.line(n, b"line %d" % n))
    talk.send(owner, protocol.line(1, b"other words") + protocol.signal(2, "KILL"))
    talk.send(owner, protocol.end(3) + protocol.line(4, b"line 4"))
    assert talk.lines == [b"line %d\n" % n for n in (1, 2, 3, 4)]
    assert talk.signals == []
    assert talk.stdin_closed == 0
    talk.send(owner, b"LINE 6 1000\n")
    assert error_of(talk, owner) == "gap: 6 came after 4; send 5 next"
    assert talk.rules.last == 4


@pytest.mark.parametrize("command", [b"END 3\n", b"SIGNAL 3 INT\n", b"LINE 3 0\n"])
def test_a_gap_is_an_error_for_every_numbered_command(command: bytes) -> None:
    talk = Conversation()
    owner = talk.owner()
    talk.send(owner, protocol.line(1, b"x") + command)
    assert "gap" in error_of(talk, owner)
    assert (talk.signals, talk.stdin_closed, len(talk.lines)) == ([], 0, 1)


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (b"LINE 0 1\nx", "numbered from 1"),
        (b"LINE 1\n", "LINE has 2 numbers"),
        (b"LINE 1 2 3\n", "LINE has 2 numbers"),
        (b"LINE 01 2\n", "without sign or leading zero"),
        (b"LINE -1 2\n", "without sign or leading zero"),
        (b"LINE 1 +2\n", "without sign or leading zero"),
        (b"LINE  1 2\n", "LINE has 2 numbers"),
        (b"LINE 1 16777217\n", "the most is 16777216"),
        (b"LINE 99999999999999999999 1\n", "LINE has 2 numbers"),
        (b"LINE \xb2 1\n", "LINE has 2 numbers"),
        (b"line 1 2\n", "no command"),
        (b"HELLO 1 8\n", "no command for a connection that is owner"),
        (b"SIGNAL 1 HUP\n", "needs one of INT, TERM, KILL"),
        (b"SIGNAL 1\n", "needs one of INT, TERM, KILL"),
        (b"SIGNAL 1 INT INT\n", "needs one of INT, TERM, KILL"),
        (b"SIGNAL\n", "SIGNAL has 1 numbers"),
        (b"END\n", "END has 1 numbers"),
        (b"PING 1\n", "PING has 0 numbers"),
        (b"\n", "no command"),
        (b"\xff\xfe\n", "no command"),
        (b"LINE 1 3\na\nb", "holds a newline"),
    ],
)
def test_what_is_not_in_the_protocol_is_an_error_and_changes_nothing(
    sent: bytes, complaint: str
) -> None:
    talk = Conversation()
    owner = talk.owner()
    talk.send(owner, sent)
    assert complaint in error_of(talk, owner)
    assert (talk.rules.last, talk.lines, talk.signals) == (0, [], [])
    assert talk.rules.owner is None
    # The keeper goes on with the next connection.
    again = talk.owner()
    assert last_event(talk, again) == protocol.Welcome(0, "running")


@pytest.mark.parametrize(
    "sent", [b"LINE 1 1\nx", b"PING\n", b"HELLO 2 7\n", b"HELLO 1\n", b"GET /"]
)
def test_before_hello_nothing_else_is_taken(sent: bytes) -> None:
    talk = Conversation()
    connection = talk.connect()
    talk.send(connection, sent.ljust(64, b" "))
    assert connection in talk.closed
    assert isinstance(last_event(talk, connection), protocol.Error)
    assert talk.rules.owner is None


def test_a_header_of_64_bytes_is_read_and_one_of_65_is_refused() -> None:
    # 63 bytes and the newline: unknown, but read to its end.
    talk = Conversation()
    owner = talk.owner()
    talk.send(owner, b"X" * 63 + b"\n")
    assert "no command" in error_of(talk, owner)
    # 64 bytes without a newline: no more is waited for.
    talk = Conversation()
    owner = talk.owner()
    talk.send(owner, b"X" * 63)
    assert owner not in talk.closed
    talk.send(owner, b"X")
    assert "longer than 64" in error_of(talk, owner)


def test_a_line_of_16_mib_is_taken_whole() -> None:
    talk = Conversation()
    owner = talk.owner()
    payload = bytes(range(1, 10)) * 2_000_000
    payload = payload.replace(b"\n", b"")[: ks.MAX_LINE_BYTES].ljust(ks.MAX_LINE_BYTES, b"x")
    sent = protocol.line(1, payload)
    for start in range(0, len(sent), 65536):
        talk.send(owner, sent[start : start + 65536])
        assert talk.held_bytes <= ks.MAX_LINE_BYTES + 65536
    assert talk.lines == [payload + b"\n"]
    assert last_event(talk, owner) == protocol.Ack(1)


# --------------------------------------------------------------------------- a slow agent, bounds


def test_a_line_waits_unread_while_another_is_written_and_signals_before_it_do_not() -> None:
    talk = Conversation(slow_agent=True)
    owner = talk.owner()
    talk.send(owner, protocol.line(1, b"one"))
    talk.send(owner, protocol.ping() + protocol.signal(2, "INT"))
    assert last_event(talk, owner) == protocol.Ack(2)
    assert talk.signals == ["INT"]
    talk.send(owner, protocol.line(3, b"y" * 1000) + protocol.signal(4, "TERM"))
    assert not talk.rules.reading(owner)
    assert talk.rules.last == 2
    # The header and what came with it; no more is read.
    assert talk.held_bytes <= 1000 + 64
    talk.send(owner, b"Z" * 10_000_000)
    assert talk.held_bytes <= 1000 + 64
    talk.write_pending()
    assert talk.rules.last == 4
    assert talk.signals == ["INT", "TERM"]


def test_an_owner_with_a_parked_line_greets_anew_and_signals() -> None:
    """A stuck agent can always be killed: the parked line was not accepted, its number is free."""
    talk = Conversation(slow_agent=True)
    owner = talk.owner()
    talk.send(owner, protocol.line(1, b"one") + protocol.line(2, b"two"))
    assert not talk.rules.reading(owner)
    again = talk.owner()
    assert last_event(talk, owner) == protocol.Replaced()
    assert last_event(talk, again) == protocol.Welcome(1, "running")
    talk.send(again, protocol.signal(2, "KILL"))
    assert talk.signals == ["KILL"]
    assert last_event(talk, again) == protocol.Ack(2)


def test_end_closes_stdin_only_behind_the_line_before() -> None:
    talk = Conversation(slow_agent=True)
    owner = talk.owner()
    talk.send(owner, protocol.line(1, b"one") + protocol.end(2))
    assert last_event(talk, owner) == protocol.Ack(2)
    assert talk.stdin_closed == 0
    talk.write_pending()
    assert (talk.lines, talk.stdin_closed) == ([b"one\n"], 1)


@pytest.mark.parametrize("slow_agent", [False, True])
def test_a_line_after_end_is_an_error_and_a_signal_is_not(slow_agent: bool) -> None:
    talk = Conversation(slow_agent=slow_agent)
    owner = talk.owner()
    talk.send(owner, protocol.line(1, b"one") + protocol.end(2) + protocol.signal(3, "TERM"))
    assert talk.signals == ["TERM"]
    talk.send(owner, protocol.end(4) + protocol.line(5, b"late"))
    assert "ended before it" in error_of(talk, owner)
    assert talk.rules.last == 4


def test_connections_that_do_not_greet_are_bounded_and_the_oldest_goes_first() -> None:
    talk = Conversation()
    owner = talk.owner()
    waiting = [talk.connect() for _ in range(ks.MAX_GREETING)]
    assert not talk.closed
    newer = talk.connect()
    assert talk.closed == {waiting[0]}
    assert "newer connections" in error_of(talk, waiting[0])
    talk.send(newer, protocol.hello(8))
    assert last_event(talk, newer) == protocol.Welcome(0, "running")
    assert last_event(talk, owner) == protocol.Replaced()
    # One place is free again.
    talk.connect()
    assert talk.closed == {waiting[0], owner}


def test_a_greeting_that_expired_is_closed_and_one_that_was_made_is_not() -> None:
    talk = Conversation()
    owner, silent = talk.owner(), talk.connect()
    talk.send(silent, b"HELLO 1")
    assert talk.rules.greeting(silent)
    assert not talk.rules.greeting(owner)
    talk.obey(talk.rules.greeting_expired(owner))
    assert not talk.closed
    talk.obey(talk.rules.greeting_expired(silent))
    assert "no HELLO" in error_of(talk, silent)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300)))
def test_arbitrary_bytes_never_break_the_keeper(data: bytes, cuts: list[int]) -> None:
    talk = Conversation()
    for greeting in (b"", protocol.hello(7)):
        connection = talk.connect()
        for piece in (greeting, *(data[a:b] for a, b in itertools.pairwise([0, *sorted(cuts)]))):
            if connection not in talk.closed:
                talk.send(connection, piece)
        assert talk.held_bytes <= len(data) + 64
        talk.events(connection)  # everything it said is in the protocol
    again = talk.owner(8)
    assert isinstance(last_event(talk, again), protocol.Welcome)


# ------------------------------------------------------------------------------------- the rivals


@pytest.mark.parametrize(
    ("heard", "epoch", "wins"), [(7, 6, False), (7, 7, True), (7, 8, True), (0, 0, True)]
)
def test_the_first_greeting_is_measured_by_the_epoch_of_the_launch(
    heard: int, epoch: int, wins: bool
) -> None:
    talk = Conversation(heard)
    owner = talk.owner(epoch)
    expected = protocol.Welcome(0, "running") if wins else protocol.Stale(heard)
    assert last_event(talk, owner) == expected
    assert (owner in talk.closed) is not wins


def test_rivals_in_every_order_of_connecting_and_greeting() -> None:
    """The owner at the end: the highest epoch; among equals the newest connection."""
    for epochs in itertools.product((6, 7, 8), repeat=3):
        for order in itertools.permutations(range(3)):
            talk = Conversation(7)
            connections = [talk.connect() for _ in epochs]
            for index in order:
                talk.send(connections[index], protocol.hello(epochs[index]))
            able = [(e, c) for e, c in zip(epochs, connections, strict=True) if e >= 7]
            winner = max(able, default=(0, None))[1]
            assert talk.rules.owner == winner, (epochs, order)
            for epoch, connection in zip(epochs, connections, strict=True):
                event = last_event(talk, connection)
                if connection == winner:
                    assert isinstance(event, protocol.Welcome)
                    assert connection not in talk.closed
                else:
                    assert isinstance(event, protocol.Stale | protocol.Replaced)
                    assert connection in talk.closed
                if epoch < 7:
                    assert isinstance(event, protocol.Stale)


def test_stale_names_the_highest_epoch_even_after_its_owner_has_gone() -> None:
    talk = Conversation()
    talk.hang_up(talk.owner(9))
    late = talk.owner(8)
    assert last_event(talk, late) == protocol.Stale(9)
    assert last_event(talk, talk.owner(9)) == protocol.Welcome(0, "running")


def test_an_older_connection_of_the_same_epoch_becomes_owner_once_the_newer_has_gone() -> None:
    talk = Conversation()
    older = talk.connect()
    talk.hang_up(talk.owner())
    talk.send(older, protocol.hello(7))
    assert last_event(talk, older) == protocol.Welcome(0, "running")


def test_a_replaced_owner_cut_in_mid_line_leaves_nothing_behind() -> None:
    sent = protocol.line(1, b"0123456789")
    for cut in range(len(sent)):
        talk = Conversation()
        first = talk.owner()
        talk.send(first, sent[:cut])
        second = talk.owner()
        assert last_event(talk, second) == protocol.Welcome(0, "running")
        assert talk.held_bytes == 0
        talk.send(second, sent)
        assert talk.lines == [b"0123456789\n"]


def test_an_owner_that_died_in_mid_line_leaves_nothing_behind() -> None:
    sent = protocol.line(1, b"0123456789")
    for cut in range(len(sent)):
        talk = Conversation()
        first = talk.owner()
        talk.send(first, sent[:cut])
        talk.hang_up(first)
        second = talk.owner()
        talk.send(second, sent)
        assert talk.lines == [b"0123456789\n"], cut
        assert last_event(talk, second) == protocol.Ack(1)


def test_a_whole_line_whose_acknowledgement_was_lost_is_delivered_once() -> None:
    talk = Conversation(slow_agent=True)
    first = talk.owner()
    talk.send(first, protocol.line(1, b"one"))
    talk.hang_up(first)
    second = talk.owner()
    assert last_event(talk, second) == protocol.Welcome(1, "running")
    talk.send(second, protocol.line(1, b"one"))
    assert last_event(talk, second) == protocol.Ack(1)
    talk.write_pending()
    assert talk.lines == [b"one\n"]
    assert talk.pending is None


@given(st.data())
def test_under_any_rivalry_every_number_is_delivered_once_whole_and_in_order(
    data: st.DataObject,
) -> None:
    """Owners come, send pieces of their numbered lines, die or are replaced, at any byte.

    Each greets with an epoch from 6 to 9 and goes on from what WELCOME said. Whatever happens,
    what the agent got is line 1, 2, 3 … each from one of the owners, whole.
    """
    talk = Conversation(7, slow_agent=True)
    for _ in range(data.draw(st.integers(1, 6))):
        epoch = data.draw(st.integers(6, 9))
        highest = talk.rules.epoch
        connection = talk.owner(epoch)
        if epoch < highest:
            assert last_event(talk, connection) == protocol.Stale(highest)
            continue
        welcome = last_event(talk, connection)
        assert isinstance(welcome, protocol.Welcome)
        sent = b"".join(
            protocol.line(n, b"%d:%d" % (connection, n) * data.draw(st.integers(1, 40)))
            for n in range(welcome.last + 1, welcome.last + 4)
        )
        stop = data.draw(st.integers(0, len(sent)))
        talk.send(connection, sent[:stop], data.draw(st.lists(st.integers(0, stop), max_size=4)))
        for _ in range(data.draw(st.integers(0, 3))):
            if talk.pending is not None:
                talk.write_pending()
        if data.draw(st.booleans()):
            talk.hang_up(connection)
    while talk.pending is not None:
        talk.write_pending()
    assert len(talk.lines) == talk.rules.last
    for n, line in enumerate(talk.lines, 1):
        connection = int(line.split(b":", 1)[0])
        unit = b"%d:%d" % (connection, n)
        assert line == unit * ((len(line) - 1) // len(unit)) + b"\n"


# ----------------------------------------------------------------------- the agent's end, the disk


def test_the_owner_hears_of_the_agents_end_and_the_next_one_is_told_at_its_greeting() -> None:
    talk = Conversation()
    owner = talk.owner()
    talk.send(owner, protocol.line(1, b"one"))
    talk.obey(talk.rules.agent_exited())
    talk.obey(talk.rules.agent_exited())
    assert talk.events(owner)[2:] == [protocol.Exited()]
    assert talk.stdin_closed == 1
    again = talk.owner()
    assert last_event(talk, again) == protocol.Welcome(1, "exited")
    talk.send(again, protocol.signal(2, "TERM") + protocol.ping())
    assert last_event(talk, again) == protocol.Pong()
    assert talk.signals == []
    talk.send(again, protocol.line(3, b"late"))
    assert error_of(talk, again) == "line 3 was not delivered: the agent has exited"
    assert talk.rules.last == 2


def test_a_line_whose_payload_is_on_its_way_when_the_agent_ends_is_not_acknowledged() -> None:
    talk = Conversation()
    owner = talk.owner()
    talk.send(owner, b"LINE 1 4\nab")
    talk.obey(talk.rules.agent_exited())
    talk.send(owner, b"cd")
    assert "not delivered" in error_of(talk, owner)
    assert (talk.rules.last, talk.lines) == (0, [])


def test_a_parked_line_hears_that_the_agent_has_closed_its_stdin() -> None:
    talk = Conversation(slow_agent=True)
    owner = talk.owner()
    talk.send(owner, protocol.line(1, b"one") + protocol.line(2, b"two"))
    talk.pending = None
    talk.obey(talk.rules.stdin_broken())
    assert "closed its stdin" in error_of(talk, owner)
    assert talk.rules.last == 1
    again = talk.owner()
    talk.send(again, protocol.end(2) + protocol.signal(3, "TERM"))
    assert talk.signals == ["TERM"]


def test_full_and_room_are_told_once_each_and_at_the_greeting() -> None:
    talk = Conversation()
    owner = talk.owner()
    for full in (False, True, True, False, False, True):
        talk.obey(talk.rules.spool_full(full))
    assert talk.events(owner)[1:] == [protocol.Full(), protocol.Room(), protocol.Full()]
    again = talk.owner()
    assert talk.events(again) == [protocol.Welcome(0, "running"), protocol.Full()]
    talk.hang_up(again)
    talk.obey(talk.rules.spool_full(False))
    assert talk.events(talk.owner()) == [protocol.Welcome(0, "running")]


def test_a_chunk_of_pings_is_answered_in_no_more_bytes_than_it_has() -> None:
    """What the shell's bound on unsent answers rests on."""
    talk = Conversation()
    owner = talk.owner()
    before = len(talk.said[owner])
    talk.send(owner, protocol.line(1, b""))
    chunk = (b"PING\n" + b"LINE 1 0\n" + b"END 1\n" + b"SIGNAL 1 INT\n") * 2000
    talk.send(owner, chunk)
    assert len(talk.said[owner]) - before <= len(chunk) + 64
