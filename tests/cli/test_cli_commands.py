"""The commands against a fake daemon: what is asked, printed and returned."""

import json
import os
import socket
import stat
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from holdover.places import login_file
from tests.cli.conftest import Holdover
from tests.cli.fake_daemon import TOKEN, FakeDaemon

ONE = "s_aaaaaaaaaaaaaaaa"
TWO = "s_abbbbbbbbbbbbbbb"


def test_new_prints_the_id_and_sends_only_what_was_given(
    daemon: FakeDaemon, holdover: Holdover
) -> None:
    ran = holdover("session", "new", "--title", "T", "hello")
    assert (ran.code, ran.out) == (0, "s_0000000000000000\n")
    body = daemon.requests[-1][2]
    assert set(body) == {"title", "prompt"}
    assert body["prompt"]["text"] == "hello"


def test_a_repository_is_named_with_what_of_it_is_wanted(
    daemon: FakeDaemon, holdover: Holdover
) -> None:
    url = "https://example.org/x.git"
    assert holdover("session", "new", "--repo", url, "--ref", "v1").code == 0
    assert daemon.requests[-1][2] == {"repo": {"url": url, "ref": "v1"}}
    assert holdover("session", "new", "--repo", url).code == 0
    assert daemon.requests[-1][2] == {"repo": {"url": url}}
    for wrong in (("--repo", url, "--cwd", "/srv"), ("--ref", "v1")):
        assert holdover("session", "new", *wrong).code == 2


def test_relative_folder_is_that_of_this_terminal_where_the_daemon_is_here(
    daemon: FakeDaemon, holdover: Holdover, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    assert holdover("session", "new", "--cwd", "x/..").code == 0
    assert daemon.requests[-1][2] == {"cwd": str(home)}
    monkeypatch.setenv("HOLDOVER_TOKEN", TOKEN)
    assert holdover("--url", daemon.url, "session", "new", "--cwd", "x").code == 0
    assert daemon.requests[-1][2] == {"cwd": "x"}


def test_new_reads_a_prompt_from_standard_input(daemon: FakeDaemon, holdover: Holdover) -> None:
    assert holdover("session", "new", "-", stdin="from a pipe").code == 0
    assert daemon.requests[-1][2]["prompt"]["text"] == "from a pipe"


def test_prompt_that_is_no_text_is_refused_before_anything_is_made(
    daemon: FakeDaemon, holdover: Holdover
) -> None:
    for stdin in (b"\xff\xfe", b"  \n", b"x" * (10 * 2**20 + 1)):
        assert holdover("session", "new", "-", stdin=stdin).code == 2
    assert daemon.requests == []


def test_prompt_too_large_for_a_request_goes_through_the_stream_once(
    daemon: FakeDaemon, holdover: Holdover
) -> None:
    """The first stream breaks right after the prompt was taken: it is said again, taken once."""
    daemon.add_session(ONE)
    daemon.break_after = [2]
    big = "x" * 2_000_000
    ran = holdover("session", "send", ONE, "-", stdin=big)
    assert ran.code == 0
    said = [body for kind, what, body in daemon.requests if (kind, what) == ("WS", "prompt")]
    assert len(said) == 2
    assert said[0]["id"] == said[1]["id"]
    prompts = [m for m in daemon.sessions[ONE].messages if m["kind"] == "user"]
    assert [m["body"]["message"]["content"][0]["text"] for m in prompts] == [big]


def test_ten_mebibytes_exactly_are_a_prompt(daemon: FakeDaemon, holdover: Holdover) -> None:
    daemon.add_session(ONE)
    assert holdover("session", "send", ONE, "-", stdin="x" * (10 * 2**20)).code == 0


def test_ls_shows_a_table_or_one_object_a_line(daemon: FakeDaemon, holdover: Holdover) -> None:
    daemon.add_session(ONE, title="first \x1b[31m")
    daemon.add_session(TWO, state="dormant")
    shown = holdover("session", "ls").out.splitlines()
    assert shown[0].split() == ["ID", "STATE", "AGENT", "CHANGED", "TITLE"]
    assert shown[1].endswith("first \\x1b[31m")
    objects = [json.loads(line) for line in holdover("session", "ls", "--json").out.splitlines()]
    assert [item["id"] for item in objects] == [ONE, TWO]
    assert len(holdover("session", "ls", "--state", "dormant").out.splitlines()) == 2


def test_ls_of_a_state_that_is_none_is_misuse(daemon: FakeDaemon, holdover: Holdover) -> None:
    ran = holdover("session", "ls", "--state", "asleep")
    assert ran.code == 2
    assert "'dormant'" in ran.err
    assert not daemon.requests


def test_ls_says_when_there_are_more(daemon: FakeDaemon, holdover: Holdover) -> None:
    for number in range(3):
        daemon.add_session(f"s_{number:016d}")
    ran = holdover("session", "ls", "--limit", "2")
    assert len(ran.out.splitlines()) == 3
    assert "more than 2" in ran.err
    assert "more than" not in holdover("session", "ls", "--limit", "3").err


def test_ls_of_nothing_names_the_next_step(daemon: FakeDaemon, holdover: Holdover) -> None:
    ran = holdover("session", "ls")
    assert ran.out == ""
    assert "session new" in ran.err


def test_search_asks_for_words_and_phrases_and_shows_where_they_are(
    daemon: FakeDaemon, holdover: Holdover
) -> None:
    daemon.add_session(ONE)
    hit = {
        "session": ONE,
        "seq": 7,
        "thread": "main",
        "page": 0,
        "at": 0,
        "snippet": "a \x1b[31m b",
    }
    daemon.hits = [hit, {**hit, "seq": 6}]
    ran = holdover("session", "search", "reset", "by peer", '"as is" x', "--session", "s_aa")
    shown = ran.out.splitlines()
    assert shown[0].split() == ["SESSION", "SEQ", "SAID", "TEXT"]
    assert shown[1].startswith(f"{ONE}  7")
    assert shown[1].endswith("a \\x1b[31m b")
    asked = dict(parse_qsl(urlsplit(daemon.requests[-1][1]).query))
    assert asked == {"q": 'reset "by peer" "as is" x', "session": ONE, "limit": "21"}
    objects = holdover("session", "search", "x", "--json").out.splitlines()
    assert [json.loads(line)["seq"] for line in objects] == [7, 6]
    assert "more than 1" in holdover("session", "search", "x", "--limit", "1").err
    daemon.hits = []
    ran = holdover("session", "search", "x")
    assert (ran.code, ran.out, ran.err) == (0, "", "Nothing found.\n")


def test_unique_beginning_of_an_id_is_enough(daemon: FakeDaemon, holdover: Holdover) -> None:
    daemon.add_session(ONE)
    daemon.add_session(TWO)
    assert f"id           {ONE}" in holdover("session", "show", "aa").out
    assert holdover("session", "show", "s_a").code == 2
    assert holdover("session", "show", "zz").code == 3
    assert holdover("session", "show", "s_0123456789abcdef").code == 3


def test_show_tells_how_to_answer(daemon: FakeDaemon, holdover: Holdover) -> None:
    asked = {"request_id": "p_1", "tool_name": "Bash", "input": {"command": "ls"}}
    daemon.add_session(ONE, state="waiting", pending=[asked])
    out = holdover("session", "show", ONE).out
    assert 'May it? Bash(command="ls")' in out
    assert f"holdover session answer {ONE} p_1 allow|deny" in out


def test_answer_finds_the_request_and_carries_what_was_said(
    daemon: FakeDaemon, holdover: Holdover
) -> None:
    asked = {"request_id": "p_abc", "tool_name": "Bash", "suggestions": [{"a": 1}, {"b": 2}]}
    daemon.add_session(ONE, pending=[asked])
    args = ("session", "answer", ONE, "p_a")
    assert holdover(*args, "deny", "--message", "no").code == 0
    assert daemon.requests[-1][2] == {"request_id": "p_abc", "behavior": "deny", "message": "no"}
    assert holdover(*args, "allow", "--remember", "2", "--input", '{"x": 1}').code == 0
    assert daemon.requests[-1][2] == {
        "request_id": "p_abc",
        "behavior": "allow",
        "remember": {"b": 2},
        "updated_input": {"x": 1},
    }
    assert holdover(*args, "allow", "--remember", "3").code == 2
    assert holdover(*args, "allow", "--input", "[]").code == 2
    assert holdover(*args, "allow", "--input", "{").code == 2
    assert holdover("session", "answer", ONE, "zz", "allow").code == 3


def test_answer_that_came_second_is_a_conflict(daemon: FakeDaemon, holdover: Holdover) -> None:
    daemon.add_session(ONE)
    error = {"error": {"code": "conflict", "message": "Answered already.", "answered_by": "b"}}
    daemon.fail_next = [(200, daemon.session(ONE)), (409, error)]
    ran = holdover("session", "answer", ONE, "p_0123456789abcdef", "allow")
    assert (ran.code, ran.err) == (5, "holdover: Answered already.\n")


def test_log_prints_everything_over_all_pages(daemon: FakeDaemon, holdover: Holdover) -> None:
    model = daemon.add_session(ONE)
    for number in range(1, 1102):
        body = {"message": {"content": f"line {number}"}}
        model.store("assistant", body, thread="main" if number % 2 else "toolu_1")
    assert len(holdover("session", "log", ONE).out.splitlines()) == 1101
    lines = holdover("session", "log", ONE, "--json", "--thread", "toolu_1", "--after", "1000").out
    assert [json.loads(line)["seq"] for line in lines.splitlines()] == list(range(1002, 1102, 2))
    whole = holdover("session", "log", ONE, "--seq", "7").out
    assert json.loads(whole) == {"message": {"content": "line 7"}}


def test_reader_that_has_seen_enough_ends_the_log_quietly(daemon: FakeDaemon) -> None:
    import subprocess
    import sys

    model = daemon.add_session(ONE)
    for _ in range(3000):
        model.store("assistant", {"message": {"content": "x" * 100}})
    ran = subprocess.run(
        f"{sys.executable} -m holdover session log {ONE} | head -n 1",
        shell=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
        check=False,
    )
    assert ran.stdout.count(b"\n") == 1
    assert ran.stderr == b""


def test_interrupt_resume_and_end_reach_their_paths(daemon: FakeDaemon, holdover: Holdover) -> None:
    daemon.add_session(ONE)
    assert holdover("session", "interrupt", ONE, "--cancel-queued").code == 0
    assert holdover("session", "resume", ONE).code == 0
    assert holdover("session", "end", ONE).code == 0
    assert holdover("session", "end", ONE, "--purge", "--yes").code == 0
    assert [(method, path) for method, path, _ in daemon.requests] == [
        ("POST", f"/v1/sessions/{ONE}/interrupt"),
        ("POST", f"/v1/sessions/{ONE}/resume"),
        ("DELETE", f"/v1/sessions/{ONE}"),
        ("DELETE", f"/v1/sessions/{ONE}?purge=true"),
    ]
    assert daemon.requests[0][2] == {"cancel_queued": True}


def test_purge_is_not_done_without_a_yes(daemon: FakeDaemon, holdover: Holdover) -> None:
    daemon.add_session(ONE)
    assert holdover("session", "end", ONE, "--purge").code == 2
    assert daemon.requests == []


def test_token_is_printed_alone_so_that_a_script_can_take_it(
    daemon: FakeDaemon, holdover: Holdover
) -> None:
    ran = holdover("token", "new", "--name", "laptop", "--scope", "read", "--expires-in-s", "60")
    assert ran.out == f"{TOKEN}\n"
    assert daemon.requests[-1][2] == {"name": "laptop", "scopes": ["read"], "expires_in_s": 60}
    assert "laptop" in holdover("token", "ls").out
    assert TOKEN not in holdover("token", "ls", "--json").out
    assert holdover("token", "revoke", "t_0").code == 0
    assert daemon.tokens == []
    assert holdover("token", "revoke", "t_0").code == 3


def test_status_counts_sessions_where_instances_are_not_told(
    daemon: FakeDaemon, holdover: Holdover
) -> None:
    daemon.add_session(ONE)
    daemon.add_session(TWO, state="dormant")
    assert "Sessions: 1 idle, 1 dormant" in holdover("status").out
    told = json.loads(holdover("status", "--json").out)
    assert told["health"]["generation"] == 1
    assert told["instances"] is None
    assert told["sessions"]["dormant"] == 1


def test_login_tries_the_token_saves_it_for_its_owner_only_and_logout_forgets(
    daemon: FakeDaemon, holdover: Holdover, home: Path
) -> None:
    (home / "admin.sock").unlink()
    assert holdover("login", daemon.url, stdin="wrong\n").code == 4
    path = login_file(os.environ)
    assert not path.exists()
    assert holdover("login", daemon.url + "/", stdin=f"{TOKEN}\n").code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {"url": daemon.url, "token": TOKEN}
    assert holdover("status").code == 0
    assert holdover("--url", daemon.url, "status").code == 0
    assert holdover("logout").code == 0
    assert holdover("status").code == 8
    assert holdover("logout").code == 0


def test_login_qr_prints_a_code_for_another_device(daemon: FakeDaemon, holdover: Holdover) -> None:
    ran = holdover("login", "--qr", "--owner", "alice")
    assert ran.out == "http://127.0.0.1:8780/#login=alice\n", "no picture where nobody looks"
    assert "Good once" in ran.err
    assert "set [server] public_url" in ran.err
    made = json.loads(holdover("login", "--qr", "--json").out)
    assert made["url"].endswith("#login=me")
    assert holdover("login", "--qr", "https://x.example").code == 2
    assert holdover("login").code == 2


def test_login_warns_of_a_plain_address_and_refuses_what_is_no_token(
    holdover: Holdover, home: Path
) -> None:
    ran = holdover("login", "http://192.0.2.1", stdin="two words\n")
    assert ran.code == 2
    assert "no TLS" in ran.err


def test_admin_socket_that_may_not_be_used_is_told_from_one_that_is_not_there(
    holdover: Holdover, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    ran = holdover("status")
    assert ran.code == 4
    assert "holdover-admin" in ran.err


def test_request_cut_off_is_repeated_only_where_that_is_safe(
    daemon: FakeDaemon, holdover: Holdover
) -> None:
    daemon.add_session(ONE)
    daemon.drop_requests = 2
    assert holdover("session", "show", ONE).code == 0
    assert len(daemon.requests) == 3
    daemon.drop_requests = 1
    assert holdover("session", "send", ONE, "hello").code == 0
    daemon.drop_requests = 1
    daemon.requests.clear()
    ran = holdover("session", "resume", ONE)
    assert ran.code == 8
    assert "It may have been done" in ran.err
    assert len(daemon.requests) == 1


def test_something_else_on_the_port_is_named(daemon: FakeDaemon, holdover: Holdover) -> None:
    daemon.fail_next = [(502, {})]
    ran = holdover("status")
    assert ran.code == 1
    assert "answered with status 502" in ran.err


def test_daemon_that_cannot_serve_just_now_counts_as_unreachable(
    daemon: FakeDaemon, holdover: Holdover
) -> None:
    daemon.fail_next = [(503, {"error": {"code": "unavailable", "message": "The disk is full."}})]
    ran = holdover("status")
    assert (ran.code, ran.err) == (8, "holdover: The disk is full.\n")


def test_error_text_cannot_command_the_terminal(daemon: FakeDaemon, holdover: Holdover) -> None:
    daemon.fail_next = [(404, {"error": {"code": "not_found", "message": "\x1b[2Jgone"}})]
    assert holdover("status").err == "holdover: \\x1b[2Jgone\n"


def quotas(own: int | None, of_all: int) -> tuple[int, dict[str, object]]:
    row = {"owner": "alice", "files": 1, "bytes": 30 << 20, "quota_bytes": own}
    return 200, {"quota_bytes": of_all, "owners": [row]}


@pytest.mark.parametrize(
    ("typed", "sent"),
    [("20G", 20 << 30), ("500MiB", 500 << 20), ("7", 7), ("none", 0), ("default", None)],
)
def test_a_quota_is_set_in_the_units_that_people_use(
    daemon: FakeDaemon, holdover: Holdover, typed: str, sent: int | None
) -> None:
    daemon.fail_next = [(204, {}), quotas(sent, 90 << 20)]
    ran = holdover("storage", "quota", "alice", typed)
    assert ran.code == 0, ran.err
    (post,) = (one for one in daemon.requests if one[0] == "POST")
    assert post[1:] == ("/v1/admin/storage/quota", {"owner": "alice", "quota_bytes": sent})
    assert ran.out.startswith("alice holds 30.0 MiB and may hold ")


def test_a_quota_is_told_with_where_it_comes_from(daemon: FakeDaemon, holdover: Holdover) -> None:
    for own, of_all, told in (
        (20 << 30, 0, "20.0 GiB."),
        (None, 90 << 20, "90.0 MiB ([storage] quota_bytes)."),
        (0, 90 << 20, "as much as there is room for."),
    ):
        daemon.fail_next = [quotas(own, of_all)]
        ran = holdover("storage", "quota", "alice")
        assert ran.out == f"alice holds 30.0 MiB and may hold {told}\n"
    assert {method for method, _, _ in daemon.requests} == {"GET"}


@pytest.mark.parametrize("wrong", ["0", "-1", "1.5G", "20X", "much"])
def test_a_size_that_is_none_is_refused_before_anything_is_asked(
    daemon: FakeDaemon, holdover: Holdover, wrong: str
) -> None:
    ran = holdover("storage", "quota", "alice", "--", wrong)
    assert ran.code == 2
    assert "20G" in ran.err
    assert daemon.requests == []
