"""When somebody who is listened to stands still: every order of looks, late and in time."""

from itertools import product

import pytest

from holdoverd.deploy.pulse import AT_MOST_S, LOOK_S, SILENT_S, Pulse

LOOKS = 10
# So few looks cannot kill anybody: each case begins this close to it.
BEFORE_S = SILENT_S - 5 * LOOK_S


@pytest.mark.parametrize("late_s", [LOOK_S, 7.0, 3600.0])
def test_in_every_order_only_looks_without_a_word_add_up(late_s: float) -> None:
    for order in product((False, True), (LOOK_S, late_s), repeat=LOOKS // 2):
        pairs = [(bool(order[n]), float(order[n + 1])) for n in range(0, LOOKS, 2)]
        pulse, now, silent_s = Pulse(0.0, BEFORE_S), 0.0, BEFORE_S
        for heard, passed_s in pairs:
            now += passed_s
            silent_s = 0.0 if heard else silent_s + min(passed_s, AT_MOST_S)
            dead = pulse.look(now, heard=heard)
            assert pulse.silent_s == pytest.approx(silent_s)
            assert dead is (pulse.silent_s > SILENT_S)
            assert not (heard and dead)


def test_one_that_stands_still_is_found_out_after_three_seconds_of_looking() -> None:
    pulse, looks = Pulse(0.0), 1
    while not pulse.look(looks * LOOK_S, heard=False):
        looks += 1
    assert SILENT_S < looks * LOOK_S <= SILENT_S + 2 * LOOK_S


@pytest.mark.parametrize("stall_s", [3.5, 60.0, 3600.0])
def test_a_machine_that_stands_still_kills_nobody(stall_s: float) -> None:
    """Whoever looks first afterwards finds that nobody has spoken; they get as long as anyone."""
    pulse = Pulse(0.0)
    assert not pulse.look(stall_s, heard=False)
    assert pulse.silent_s == AT_MOST_S
    assert not pulse.look(stall_s + LOOK_S, heard=True)
    assert pulse.silent_s == 0


@pytest.mark.parametrize("every_s", [0.5, 1.0, 2.5])
def test_one_that_beats_lives_for_ever(every_s: float) -> None:
    pulse, heard_at = Pulse(0.0), 0.0
    for look in range(1, 5000):
        now = look * LOOK_S
        heard = now - heard_at >= every_s
        heard_at = now if heard else heard_at
        assert not pulse.look(now, heard=heard)
