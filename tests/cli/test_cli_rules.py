"""The command line's smaller rules: redialling, the outbox, typed lines, waiting for a turn."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdover import client, places
from holdover.client import Client, Door, check_url, find_door, one_by_prefix, path_of, refusal
from holdover.cursor import Answered, Level, Opened, Stored
from holdover.exits import CommandError, Exit, UnreachableError
from holdover.outbox import MAX_UNANSWERED, Outbox
from holdover.redial import MAX_ATTEMPTS, MAX_DELAY_S, Redial, http_verdict, verdict
from holdover.turn import SentWatch, TurnWatch
from holdover.typed import Answer, Leave, Nothing, Prompt, parse_line


def test_first_redial_follows_almost_at_once_and_none_waits_longer_than_three_seconds() -> None:
    redial = Redial()
    delays = [redial.delay_s(1.0) for _ in range(MAX_ATTEMPTS)]
    assert delays[0] <= 0.2
    assert delays == sorted(delays)
    assert delays[-1] == MAX_DELAY_S == 3.0


@given(st.floats(0, 1))
def test_jitter_never_makes_a_pause_empty(jitter: float) -> None:
    assert 0.05 <= Redial().delay_s(jitter) <= 0.2


def test_redialling_ends_after_its_bound_and_begins_anew_after_a_success() -> None:
    redial = Redial()
    for _ in range(MAX_ATTEMPTS):
        redial.delay_s(0.5)
    with pytest.raises(CommandError, match="did not come back") as caught:
        redial.delay_s(0.5)
    assert caught.value.exit_code == Exit.UNREACHABLE
    redial.succeeded()
    assert redial.delay_s(1.0) <= 0.2


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (1000, Exit.OK),
        (4001, Exit.NOT_ALLOWED),
        (4003, Exit.NOT_ALLOWED),
        (4004, Exit.NOT_FOUND),
        (1009, Exit.FAILED),
    ],
)
def test_close_that_is_final_ends_the_command(code: int, exit_code: Exit) -> None:
    final = verdict(code, "", "s_1")
    assert final is not None
    assert final.exit_code == exit_code


@pytest.mark.parametrize("code", [1001, 1005, 1006, 1011, 1012, 4008, 4999])
def test_any_other_close_is_redialled(code: int) -> None:
    assert verdict(code, "", "s_1") is None


def test_upgrade_refused_for_a_moment_is_redialled_and_for_good_is_not() -> None:
    assert [http_verdict(status) for status in (503, 502, 429)] == [True] * 3
    assert [http_verdict(status) for status in (400, 401, 403, 404)] == [False] * 4


def test_unanswered_prompts_and_answers_are_said_again_in_order_and_interrupts_are_not() -> None:
    outbox = Outbox()
    said = [
        outbox.add({"type": "prompt", "id": "u1", "text": "a"}),
        outbox.add({"type": "interrupt"}),
        outbox.add({"type": "answer", "request_id": "p_1", "behavior": "allow"}),
    ]
    assert outbox.again() == [said[0], said[2]]
    answered = outbox.answered(json.loads(said[0])["ref"])
    assert answered is not None
    assert answered["id"] == "u1"
    assert outbox.again() == [said[2]]
    assert outbox.answered("no such ref") is outbox.answered(None) is None


def test_outbox_refuses_more_than_its_bound() -> None:
    outbox = Outbox()
    for number in range(MAX_UNANSWERED):
        outbox.add({"type": "prompt", "id": str(number), "text": "a"})
    with pytest.raises(CommandError, match="wait for the daemon"):
        outbox.add({"type": "prompt", "id": "one more", "text": "a"})
    assert len(outbox) == MAX_UNANSWERED


@pytest.mark.parametrize(
    ("line", "pending", "meaning"),
    [
        ("hello agent", [], Prompt("hello agent")),
        ("  a  ", ["p_1", "p_2"], Answer("p_1", "allow", None)),
        ("d", ["p_1"], Answer("p_1", "deny", None)),
        ("d not in production", ["p_1"], Answer("p_1", "deny", "not in production")),
        ("a p_2", ["p_1", "p_2"], Answer("p_2", "allow", None)),
        ("d 2 because", ["p_1", "p_2"], Answer("p_2", "deny", "because")),
        ("alas", ["p_1"], Prompt("alas")),
        ("/quit", [], Leave()),
        ("", ["p_1"], Nothing("")),
    ],
)
def test_typed_line_means(line: str, pending: list[str], meaning: Any) -> None:
    assert parse_line(line, pending) == meaning


def test_answer_that_comes_too_late_never_becomes_a_prompt() -> None:
    assert parse_line("a", []) == Nothing("Nothing is waiting for an answer.")
    assert parse_line("d no", []) == Nothing("Nothing is waiting for an answer.")


def test_answer_to_an_unknown_or_ambiguous_request_does_nothing() -> None:
    assert isinstance(parse_line("a p_9", ["p_1"]), Nothing)
    assert isinstance(parse_line("a p_1", ["p_1a", "p_1b"]), Nothing)


def stored(seq: int, kind: str, **body: Any) -> Stored:
    return Stored({"seq": seq, "kind": kind, "thread": "main", "body": body})


def test_turn_is_over_with_the_result_that_names_the_prompt() -> None:
    watch = TurnWatch("u1", seq=5)
    assert watch.feed(stored(4, "result")) is None
    assert watch.feed(stored(6, "result", user_message_uuids=["u0"])) is None
    assert watch.feed(stored(7, "result", user_message_uuids=["u0", "u1"])) == Exit.OK


def test_turn_that_failed_fails_the_command() -> None:
    assert TurnWatch("u1", 5).feed(stored(6, "result", is_error=True)) == Exit.FAILED


def test_result_of_an_agent_that_names_no_prompts_counts() -> None:
    assert TurnWatch("u1", 5).feed(stored(6, "result")) == Exit.OK


def test_turn_is_over_when_the_agent_is_gone_but_not_before_it_came() -> None:
    watch = TurnWatch("u1", 5)
    assert watch.feed(Opened({"state": "dormant"}, resync=False)) is None
    assert watch.feed(Level({"state": "starting"})) is None
    assert watch.feed(Level({"state": "dormant"})) == Exit.FAILED


def test_turn_is_over_when_the_session_ends_or_the_prompt_is_cancelled() -> None:
    assert TurnWatch("u1", 5).feed(Level({"state": "ended"})) == Exit.FAILED
    cancelled = stored(6, "notice", code="prompt_cancelled", data={"id": "u1"})
    other = stored(6, "notice", code="prompt_cancelled", data={"id": "u2"})
    assert TurnWatch("u1", 5).feed(cancelled) == Exit.FAILED
    assert TurnWatch("u1", 5).feed(other) is None


def test_sent_watch_waits_for_the_answer_and_keeps_it() -> None:
    watch = SentWatch()
    assert watch.feed(Level({"state": "idle"})) is None
    assert watch.feed(Answered({"type": "ok", "seq": 9})) == Exit.OK
    assert watch.answer == {"type": "ok", "seq": 9}
    assert SentWatch().feed(Answered({"type": "error"})) == Exit.FAILED


def test_prefix_names_the_one_id_that_begins_with_it() -> None:
    ids = ["s_abc", "s_abd", "s_x"]
    assert one_by_prefix("s_x", ids, "session", "s_") == "s_x"
    assert one_by_prefix("abc", ids, "session", "s_") == "s_abc"
    with pytest.raises(CommandError, match="beginning of 2 sessions: s_abc, s_abd") as caught:
        one_by_prefix("ab", ids, "session", "s_")
    assert caught.value.exit_code == Exit.USAGE
    for nothing in ("zz", ""):
        with pytest.raises(CommandError) as caught:
            one_by_prefix(nothing, ids, "session", "s_")
        assert caught.value.exit_code == Exit.NOT_FOUND


def test_id_that_is_itself_a_prefix_of_another_is_found() -> None:
    assert one_by_prefix("s_a", ["s_a", "s_ab"], "session", "s_") == "s_a"


def test_path_keeps_what_was_typed_in_its_place() -> None:
    assert path_of("sessions", "../tokens?x#y") == "/v1/sessions/..%2Ftokens%3Fx%23y"


@pytest.mark.parametrize(
    "url",
    ["agents.example.org", "ftp://x", "http://", "http://u:p@x", "http://x/path", "http://x:bad",
     "http://x?y=1", "http://[::1"],
)  # fmt: skip
def test_address_that_is_none_is_misuse(url: str) -> None:
    with pytest.raises(CommandError) as caught:
        check_url(url)
    assert caught.value.exit_code == Exit.USAGE


def test_refusal_from_a_proxy_is_told_by_its_status() -> None:
    assert refusal(None, 503, "https://x").exit_code == Exit.UNREACHABLE
    assert refusal("<html>", 404, "https://x").exit_code == Exit.NOT_FOUND
    assert refusal(None, 500, "https://x").exit_code == Exit.FAILED


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("forbidden", 4), ("not_found", 3), ("conflict", 5), ("gone", 5), ("storage_unavailable", 7),
     ("unavailable", 8), ("capacity", 1), ("bad_request", 1), ("added_later", 1)],
)  # fmt: skip
def test_code_of_the_wire_decides_the_exit_code(code: str, exit_code: int) -> None:
    answer = {"error": {"code": code, "message": "what happened"}}
    assert refusal(answer, 400, "x").exit_code == exit_code


def test_named_folder_is_the_only_one_tried(tmp_path: Path) -> None:
    env = {"HOME": "/h", "XDG_RUNTIME_DIR": "/x", "HOLDOVER_STATE_DIR": str(tmp_path)}
    assert places.admin_sockets(env) == [tmp_path / "run" / "admin.sock"]


def test_sockets_are_tried_from_the_hosts_own_to_those_of_up() -> None:
    tried = [str(path) for path in places.admin_sockets({"HOME": "/h", "XDG_RUNTIME_DIR": "/x"})]
    assert tried == [
        "/run/holdover/admin.sock",
        "/x/holdover/admin.sock",
        "/h/.local/state/holdover/run/admin.sock",
    ]


def test_without_any_door_the_next_step_is_named(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "HOLDOVER_RUNTIME_DIR": str(tmp_path)}
    with pytest.raises(UnreachableError, match="start one with `holdover up`"):
        find_door(None, env)


def test_on_an_installed_host_it_is_systemd_that_starts_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "HOST_RUNTIME", tmp_path)
    monkeypatch.setattr(places, "HOST_RUNTIME", tmp_path)
    with pytest.raises(UnreachableError, match=r"systemctl start holdover\.target"):
        find_door(None, {"HOME": str(tmp_path)})


def test_address_without_a_token_is_not_tried(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="There is no token for http://127") as caught:
        find_door("http://127.0.0.1:1", {"HOME": str(tmp_path)})
    assert caught.value.exit_code == Exit.NOT_ALLOWED


def test_token_in_the_environment_wins_and_shows_in_no_repr(tmp_path: Path) -> None:
    door = find_door("http://127.0.0.1:1/", {"HOME": str(tmp_path), "HOLDOVER_TOKEN": "secret"})
    assert door.headers() == {"Authorization": "Bearer secret"}
    assert "secret" not in repr(Client(door))
    assert "secret" not in repr(Door(url="http://x", token="secret"))


def test_damaged_login_is_named(tmp_path: Path) -> None:
    env = {"XDG_CONFIG_HOME": str(tmp_path), "HOLDOVER_RUNTIME_DIR": str(tmp_path)}
    path = places.login_file(env)
    path.parent.mkdir()
    path.write_text('{"url": "x"}')
    with pytest.raises(CommandError, match="cannot be read"):
        find_door(None, env)
