"""The spool's rules against a file in memory: short writes, a full disk at any byte, the bound."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.keeper import spool
from holdoverd.keeper.spool import EndRecord, SpoolRules, State, parse_end_record

NONCE = "0f" * 16
END = {"status": 0, "signal": None, "oom": False, "at_ms": 5}


class Disk:
    """A file that takes as much as `room` says, in pieces of at most `most`."""

    def __init__(self, rules: SpoolRules, *, room: int = 10**9, most: int = 10**9) -> None:
        self.rules = rules
        self.room = room
        self.most = most
        self.data = b""
        self.punched = 0
        self.told: list[bool] = []
        self.longest_wait = 0

    def obey(self, commands: list[spool.Command]) -> None:
        while commands:
            command, *commands = commands
            match command:
                case spool.Write(data):
                    taken = min(len(data), self.room, self.most)
                    if taken == 0:
                        commands = self.rules.failed() + commands
                        continue
                    self.data += bytes(data[:taken])
                    self.room -= taken
                    commands = self.rules.wrote(taken) + commands
                case spool.Measure():
                    commands = self.rules.measured(len(self.data) - self.punched) + commands
                case spool.Tell(full):
                    self.told.append(full)

    def say(self, chunk: bytes) -> None:
        self.obey(self.rules.data(chunk))

    def end(self, **how: object) -> None:
        self.obey(self.rules.end(**(END | how)))  # type: ignore[arg-type]


def record_of(data: bytes) -> EndRecord:
    line = data[data.rfind(b"\n", 0, -1) + 1 :]
    record = parse_end_record(line, NONCE)
    assert record is not None
    return record


@pytest.mark.parametrize("most", [1, 2, 7, 1000])
def test_short_writes_lose_and_repeat_nothing(most: int) -> None:
    disk = Disk(SpoolRules(NONCE), most=most)
    disk.say(b"one\ntwo")
    disk.say(b" and more\n")
    disk.end()
    assert disk.data.startswith(b'one\ntwo and more\n{"type":"holdover_end"')
    assert disk.data.count(b"\n") == 3
    assert disk.rules.done


@pytest.mark.parametrize(
    ("said", "cut"), [([], False), ([b"a\n"], False), ([b"a\n", b"b"], True), ([b"\n", b"x"], True)]
)
def test_the_end_record_stands_on_a_line_of_its_own_and_says_whether_one_was_cut(
    said: list[bytes], cut: bool
) -> None:
    disk = Disk(SpoolRules(NONCE))
    for chunk in said:
        disk.say(chunk)
    disk.end(status=None, signal=9, oom=True)
    assert record_of(disk.data) == EndRecord(None, 9, oom=True, cut=cut, at_ms=5)
    body = b"".join(said) + (b"\n" if cut else b"")
    assert disk.data.startswith(body + b'{"type":"holdover_end","nonce":"0f0f')


def test_a_disk_full_at_any_byte_and_freed_later_damages_nothing() -> None:
    said = [b"first line\n", b"second", b" line\nthird\n"]
    whole = Disk(SpoolRules(NONCE))
    for chunk in said:
        whole.say(chunk)
    whole.end()
    for room in range(len(whole.data)):
        rules = SpoolRules(NONCE)
        disk = Disk(rules, room=room, most=4)
        waiting = list(said)
        ended = False
        for step in range(200):
            if rules.done:
                break
            if rules.waiting:
                disk.room = step % 3  # sometimes still full, sometimes a byte or two
                disk.obey(rules.retry())
            elif waiting:
                assert rules.reading
                disk.say(waiting.pop(0))
            else:
                ended = True
                disk.end()
        assert ended
        assert disk.data == whole.data
        # Told once at each change, and in the end that there is room.
        assert disk.told[0] is True
        assert disk.told[-1] is False
        assert all(a is not b for a, b in zip(disk.told, disk.told[1:], strict=False))


def test_the_end_comes_while_the_disk_is_full_and_waits_behind_the_rest() -> None:
    rules = SpoolRules(NONCE)
    disk = Disk(rules, room=3)
    disk.say(b"abcdef")
    assert (rules.state, rules.reading, rules.waiting) == (State.FULL, False, True)
    disk.end(status=1)
    assert disk.data == b"abc"
    assert not rules.done
    disk.room = 10**6
    disk.obey(rules.retry())
    assert rules.done
    assert disk.data.startswith(b'abcdef\n{"type"')
    assert record_of(disk.data) == EndRecord(1, None, oom=False, cut=True, at_ms=5)
    assert disk.told == [True, False]


def test_above_the_bound_the_agent_is_not_read_until_ranges_are_punched() -> None:
    rules = SpoolRules(NONCE, limit_bytes=10)
    disk = Disk(rules)
    disk.say(b"0123456789")
    assert rules.reading  # at the bound, not above it
    disk.say(b"x")
    assert (rules.state, rules.reading, rules.waiting) == (State.OVER, False, True)
    disk.obey(rules.retry())
    assert not rules.reading
    disk.punched = 1
    disk.obey(rules.retry())
    assert rules.reading
    assert not rules.waiting
    assert disk.told == []  # the disk is not full


def test_once_nobody_can_write_any_more_the_bound_holds_up_nothing() -> None:
    rules = SpoolRules(NONCE, limit_bytes=4)
    disk = Disk(rules)
    disk.say(b"012345")
    assert not rules.reading
    disk.obey(rules.agent_gone())
    assert rules.reading
    disk.say(b"rest of the pipe")
    disk.end()
    assert rules.done
    assert disk.data.startswith(b"012345rest of the pipe\n{")


def test_the_agents_end_does_not_hide_that_the_disk_is_full() -> None:
    rules = SpoolRules(NONCE, limit_bytes=4)
    disk = Disk(rules, room=2)
    disk.say(b"abc")
    disk.obey(rules.agent_gone())
    assert (rules.state, rules.reading) == (State.FULL, False)


def test_a_write_of_nothing_does_not_spin() -> None:
    rules = SpoolRules(NONCE)
    rules.data(b"abc")
    assert rules.wrote(0) == [spool.Tell(True)]
    assert rules.waiting


def test_illegal_moves_name_the_state() -> None:
    rules = SpoolRules(NONCE)
    disk = Disk(rules, room=0)
    disk.say(b"abc")
    with pytest.raises(AssertionError, match="full"):
        rules.data(b"x")
    with pytest.raises(AssertionError, match="65537"):
        SpoolRules(NONCE).data(bytes(65537))


@given(
    st.lists(st.binary(min_size=1, max_size=50), max_size=10),
    st.integers(1, 20),
    st.lists(st.integers(0, 60), max_size=20),
)
def test_any_chunks_any_short_writes_any_fullness(
    said: list[bytes], most: int, rooms: list[int]
) -> None:
    rules = SpoolRules(NONCE, limit_bytes=25)
    disk = Disk(rules, room=17, most=most)
    waiting = list(said)
    ended = False
    while not rules.done:
        if rules.waiting:
            disk.room = rooms.pop() if rooms else 10**6
            disk.punched = len(disk.data)
            disk.obey(rules.retry())
        elif waiting:
            disk.say(waiting.pop(0))
        elif not ended:
            ended = True
            disk.end()
    body = b"".join(said)
    cut = bool(body) and not body.endswith(b"\n")
    assert disk.data.startswith(body + (b"\n" if cut else b"") + b"{")
    assert record_of(disk.data).cut is cut


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"holdover_end","nonce":"' + b"00" * 16 + b'","status":0}',
        b'{"type":"holdover_end","status":0}',
        b'{"type":"holdover_end","nonce":7}',
        b'{"type":"user","nonce":"' + b"0f" * 16 + b'","text":"holdover_end"}',
        b'["holdover_end"]',
        b"holdover_end",
        b'{"type":"holdover_end","nonce":"' + b"0f" * 16,
        b"[" * 100_000 + b"holdover_end",
        b"",
    ],
)
def test_a_forged_or_damaged_end_record_is_noise(line: bytes) -> None:
    assert parse_end_record(line, NONCE) is None


def test_the_end_record_is_one_line_of_json() -> None:
    record = spool.end_record(NONCE, status=3, signal=None, oom=False, cut=True, at_ms=17)
    assert record.endswith(b"\n")
    assert json.loads(record) == {
        "type": "holdover_end",
        "nonce": NONCE,
        "status": 3,
        "signal": None,
        "oom": False,
        "cut": True,
        "at": 17,
    }
    assert parse_end_record(record, NONCE) == EndRecord(3, None, oom=False, cut=True, at_ms=17)
