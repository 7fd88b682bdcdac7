"""What the account lends: environment, program, working folder, transcripts, OOM count."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.errors import LaunchError
from holdoverd.keeper import account, folders, transcripts

ALICE = pwd.struct_passwd(("alice", "x", 1000, 1000, "", "/home/alice", "/bin/zsh"))


# ------------------------------------------------------------------------------------ environment


def test_the_environment_starts_from_a_list_and_passwd_fills_its_gaps() -> None:
    inherited = {
        "PATH": "/opt/bin",
        "LANG": "de_DE.UTF-8",
        "TZ": "",
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "LISTEN_FDS": "1",
        "WATCHDOG_USEC": "1",
        "CLAUDECODE": "1",
        "CLAUDE_CODE_CHILD_SESSION": "1",
        "CREDENTIALS_DIRECTORY": "/x",
        "INVOCATION_ID": "x",
        "JOURNAL_STREAM": "8:1",
        "SECRET": "of the shell that ran us",
        "PYTHONPATH": "/x",
        "LD_PRELOAD": "/x",
    }
    assert account.agent_environment(inherited, ALICE, {}) == {
        "PATH": "/opt/bin",
        "HOME": "/home/alice",
        "USER": "alice",
        "LOGNAME": "alice",
        "SHELL": "/bin/zsh",
        "LANG": "de_DE.UTF-8",
    }


def test_the_request_adds_and_overrides_but_names_no_socket_of_systemd() -> None:
    requested = {
        "PATH": "/agent/bin",
        "CLAUDE_CODE_ENTRYPOINT": "holdover",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:1",
        "LISTEN_PID": "1",
        "NOTIFY_SOCKET": "@x",
        "WATCHDOG_PID": "1",
    }
    env = account.agent_environment({"HOME": "/elsewhere"}, ALICE, requested)
    assert env["PATH"] == "/agent/bin"
    assert env["HOME"] == "/elsewhere"
    assert env["CLAUDE_CODE_ENTRYPOINT"] == "holdover"
    assert not {"LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_PID"} & env.keys()


def test_a_program_is_found_by_path_beneath_home_and_absolutely(tmp_path: Path) -> None:
    for folder in ("bin", "home", "first"):
        (tmp_path / folder).mkdir()
    program = tmp_path / "bin" / "agent"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "home" / "mine").symlink_to(program)
    (tmp_path / "first" / "agent").mkdir()  # a folder of that name is no program
    env = {"PATH": f"relative:{tmp_path}/first:{tmp_path}/bin", "USER": "alice"}
    home = str(tmp_path / "home")
    assert account.resolve_program("agent", env, home) == str(program)
    assert account.resolve_program("~/mine", env, home) == f"{home}/mine"
    assert account.resolve_program(str(program), env, home) == str(program)


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("nothing-here", "agent_missing", "was not found in PATH (/nowhere)"),
        ("/nowhere/agent", "agent_missing", "program /nowhere/agent was not found by"),
        ("~/agent", "agent_missing", "program /home/alice/agent was not found"),
        ("./agent", "agent_missing", "relative path"),
        ("/etc/passwd", "agent_failed", "may not execute /etc/passwd"),
        ("/etc", "agent_missing", "was not found"),
    ],
)
def test_a_program_that_cannot_run_is_refused_by_name(name: str, code: str, words: str) -> None:
    with pytest.raises(LaunchError) as refused:
        account.resolve_program(name, {"PATH": "/nowhere", "USER": "alice"}, "/home/alice")
    assert refused.value.code == code
    assert words in str(refused.value)


# ------------------------------------------------------------------------------------------ OOM


def test_the_oom_counter_is_looked_for_in_every_hierarchy() -> None:
    hybrid = "5:memory:/a b/x\n1:name=systemd:/s\n0::/u\n"
    assert account.oom_counter_paths(hybrid) == [
        "/sys/fs/cgroup/memory/a b/x/memory.oom_control",
        "/sys/fs/cgroup/u/memory.events",
    ]
    assert account.oom_counter_paths("4:cpu,memory:/\n0::/\n") == [
        "/sys/fs/cgroup/memory/memory.oom_control"
    ]
    assert account.oom_counter_paths("nonsense\n") == []


def test_refused_forks_are_counted_in_every_hierarchy() -> None:
    hybrid = "9:pids:/a/b.service\n4:memory:/a\n0::/c\n"
    assert account.fork_counter_paths(hybrid) == [
        "/sys/fs/cgroup/pids/a/b.service/pids.events",
        "/sys/fs/cgroup/c/pids.events",
    ]
    assert account.fork_count("max 12\n") == 12
    assert account.fork_count("") == 0
    assert account.refused_forks() >= 0


def test_the_oom_counter_is_read_from_both_kinds_of_file() -> None:
    assert account.oom_count("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n") == 3
    assert account.oom_count("low 0\nhigh 0\nmax 9\noom 4\noom_kill 2\noom_group_kill 1\n") == 2
    assert account.oom_count("under_oom 0\n") == 0
    assert account.oom_count("oom_kill x\n") == 0
    assert account.oom_kills() >= 0


# ---------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize(
    ("path", "root", "relative"),
    [
        ("/srv", "/srv", "."),
        ("/srv/", "/srv", "."),
        ("/srv/a", "/srv/", "a"),
        ("//srv//a/b/", "/srv", "a/b"),
        ("/srv/a/../../etc", "/srv", "a/../../etc"),
        ("/srvx", "/srv", None),
        ("/", "/srv", None),
        ("/etc", "/", "etc"),
        ("/", "/", "."),
    ],
)
def test_the_remainder_beneath_a_root(path: str, root: str, relative: str | None) -> None:
    assert folders.split_beneath(path, root) == relative


def test_folders_within_the_roots_are_opened_and_named_by_their_real_path(tmp_path: Path) -> None:
    root, home = tmp_path / "root", tmp_path / "home"
    (root / "a" / "b").mkdir(parents=True)
    (home / "workspaces" / "w").mkdir(parents=True)
    (root / "link").symlink_to("a/b")
    (tmp_path / "alias").symlink_to(root)
    real = {
        f"{root}": root,
        f"{root}/a/b": root / "a" / "b",
        f"{root}/a/../a/b": root / "a" / "b",
        f"{root}/link": root / "a" / "b",
        f"{tmp_path}/alias/a": root / "a",
        f"{home}/workspaces/w": home / "workspaces" / "w",
    }
    for cwd, expected in real.items():
        fd, path = folders.open_cwd(cwd, [str(root), str(tmp_path / "alias")], str(home))
        assert path == str(expected)
        os.close(fd)


def test_what_leads_out_is_outside_and_what_is_missing_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    outside = tmp_path / "outside"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    (root / "absolute").symlink_to(outside)
    (root / "relative").symlink_to("../outside")
    (root / "within").symlink_to(root / "a")  # absolute, so it leaves the root on its way
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("nothing")
    (root / "file").write_text("")
    codes = {
        "absolute": "cwd_outside",
        "relative": "cwd_outside",
        "within": "cwd_outside",
        "loop": "cwd_outside",
        "..": "cwd_outside",
        "a/../../outside": "cwd_outside",
        "../root/a": "cwd_outside",
        "dangling": "cwd_missing",
        "nothing": "cwd_missing",
        "file": "cwd_missing",
        "file/x": "cwd_missing",
    }
    for relative, code in codes.items():
        with pytest.raises(LaunchError) as refused:
            folders.open_cwd(f"{root}/{relative}", [str(root)], str(tmp_path / "home"))
        assert refused.value.code == code, relative
        assert f"{root}/{relative}" in str(refused.value)
    with pytest.raises(LaunchError) as refused:
        folders.open_cwd(str(outside), [str(root)], str(tmp_path / "home"))
    assert refused.value.code == "cwd_outside"
    assert str(root) in str(refused.value)


def test_a_process_of_proc_is_no_way_out(tmp_path: Path) -> None:
    """/proc/self/root is a magic link: it jumps, and openat2 is told not to follow such."""
    with pytest.raises(LaunchError) as refused:
        folders.open_cwd("/proc/self/root/tmp", ["/proc"], str(tmp_path))
    assert refused.value.code == "cwd_outside"


def test_a_workspace_is_made_private_and_found_again(tmp_path: Path) -> None:
    for _ in range(2):
        fd, path = folders.make_workspace("s_abc", str(tmp_path))
        os.close(fd)
        assert path == str(tmp_path / "workspaces" / "s_abc")
    for folder in (tmp_path / "workspaces", tmp_path / "workspaces" / "s_abc"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_workspace_that_leads_out_or_has_no_home_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError) as refused:
        folders.make_workspace("s_abc", str(tmp_path / "nohome"))
    assert refused.value.code == "cwd_missing"
    (tmp_path / "workspaces").mkdir()
    (tmp_path / "workspaces" / "s_abc").symlink_to("/etc")
    with pytest.raises(LaunchError) as refused:
        folders.make_workspace("s_abc", str(tmp_path))
    assert refused.value.code == "cwd_outside"


# ------------------------------------------------------------------------------------ transcripts


def test_prompts_are_found_where_the_agent_will_find_them(tmp_path: Path) -> None:
    names = ("own", "folded", "queued", "quoted", "parent", "torn", "absent", "second")
    ids = {name: str(uuid4()) for name in names}
    lines = [
        json.dumps({"type": "user", "uuid": ids["own"]}),
        json.dumps({"type": "attachment", "attachment": {"source_uuid": ids["folded"]}}),
        json.dumps({"type": "queue-operation", "commandUuid": ids["queued"]}),
        json.dumps({"type": "user", "message": {"content": f'"uuid":"{ids["quoted"]}"'}}),
        json.dumps({"type": "assistant", "uuid": str(uuid4()), "text": ids["quoted"]}),
        json.dumps({"type": "assistant", "uuid": str(uuid4()), "parentUuid": ids["parent"]}),
        "[" * 100_000 + ids["absent"],
        f'"{ids["absent"]}"',
        '{"type":"user","uuid":"' + ids["torn"] + '","mess',
    ]
    folder = tmp_path / ".claude" / "projects" / "-srv-x"
    folder.mkdir(parents=True)
    (folder / "U.jsonl").write_text("\n".join(lines))
    (tmp_path / "other.jsonl").write_text(json.dumps({"uuid": ids["second"]}) + "\n")
    found = transcripts.find_uuids(
        ["~/.claude/projects/*/U.jsonl", f"{tmp_path}/other.jsonl", "~/none/*.jsonl"],
        [*ids.values(), ids["own"]],
        str(tmp_path),
    )
    assert found == [ids["own"], ids["folded"], ids["queued"], ids["second"]]


@pytest.mark.parametrize(
    ("content", "there"),
    [
        (b"", False),
        (bytes(5000), False),  # what a power cut may make of it
        (b'{"type":"user","mess', False),
        (b"{}\n[]\n7\n", False),
        (b'{"type":"queue-operation","commandUuid":"u"}\n', False),  # killed before it began
        (b'{"type":"user","message":{}}\n', True),
        (b'{"type":"assistant"}', True),
        (b'{"type":"summary"}\n{"type":"user"}\n' + bytes(100), True),
        (bytes(100) + b'\n{"type":"user"}\n', True),
    ],
)
def test_a_conversation_is_there_when_a_whole_record_of_it_is(
    tmp_path: Path, content: bytes, there: bool
) -> None:
    assert not transcripts.exists(["~/*.jsonl"], str(tmp_path))
    (tmp_path / "a.jsonl").write_bytes(content)
    assert transcripts.exists(["~/*.jsonl"], str(tmp_path)) is there


def test_transcripts_without_a_conversation_are_set_aside_whole(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(bytes(7))
    (tmp_path / "b.jsonl").write_bytes(b"")
    names = transcripts.set_aside(["~/a.jsonl", "~/b.jsonl"], str(tmp_path), 17)
    assert names == [f"{tmp_path}/{name}.jsonl.unusable-17" for name in "ab"]
    assert (tmp_path / "a.jsonl.unusable-17").read_bytes() == bytes(7)
    assert transcripts.set_aside(["~/*.jsonl"], str(tmp_path), 18) == []


def test_a_transcript_that_cannot_be_set_aside_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "a.jsonl.unusable-17").mkdir()
    with pytest.raises(LaunchError, match=r"a\.jsonl holds no conversation and cannot be renamed"):
        transcripts.set_aside(["~/a.jsonl"], str(tmp_path), 17)


def test_a_transcript_that_cannot_be_read_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(LaunchError, match="cannot be read"):
        transcripts.find_uuids(["~/folder.jsonl"], ["u"], str(tmp_path))
    # Nothing asked, nothing opened.
    assert transcripts.find_uuids(["~/folder.jsonl"], [], str(tmp_path)) == []


def test_the_number_of_transcripts_is_bounded(tmp_path: Path) -> None:
    for i in range(transcripts.MAX_FILES):
        (tmp_path / f"{i}.jsonl").write_text("")
    assert transcripts.find_uuids(["~/*.jsonl"], ["u"], str(tmp_path)) == []
    (tmp_path / "one-more.jsonl").write_text("")
    with pytest.raises(LaunchError, match="65 transcripts match; the most"):
        transcripts.find_uuids(["~/*.jsonl"], ["u"], str(tmp_path))


def test_transcripts_too_large_to_search_are_no_answer(tmp_path: Path) -> None:
    with open(tmp_path / "huge.jsonl", "wb") as file:
        file.truncate(transcripts.MAX_TOTAL_BYTES + 1)  # a hole: takes no room
    with pytest.raises(LaunchError, match="too large to search"):
        transcripts.find_uuids(["~/huge.jsonl"], ["u"], str(tmp_path))


@given(st.text(max_size=20))
def test_only_a_leading_tilde_is_the_home(path: str) -> None:
    expanded = account.expand_home(path, "/home/alice")
    if path == "~" or path.startswith("~/"):
        assert expanded == "/home/alice" + path[1:]
    else:
        assert expanded == path
