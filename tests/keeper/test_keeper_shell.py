"""A real keeper with real agents: owners, pipes, the spool, the end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdoverd.keeper import protocol
from holdoverd.keeper.keeper_side import MAX_GREETING, MAX_LINE_BYTES
from holdoverd.keeper.spool import EndRecord
from tests.keeper.bench import ECHO, Bench, Owner, bench, json_lines, python, status_of
from tests.needs import needs_root

pytestmark = pytest.mark.slow

# Says how long each line is and what it hashes to, and does so at once.
HASHER = """
import hashlib, sys
for line in sys.stdin.buffer:
    print(len(line), hashlib.sha256(line).hexdigest(), flush=True)
"""
# The same, but reads nothing before somebody has opened the FIFO named "go" in its folder.
SLOW_HASHER = "open('go').close()\n" + HASHER
# Numbered lines that carry their own hash; as many bytes as asked for, then a word on stderr.
TALKER = """
import hashlib, sys
size = int(sys.argv[1])
out, n, total = sys.stdout.buffer, 0, 0
while total < size:
    body = b"%08d" % n * 12
    line = body + b" " + hashlib.sha256(body).hexdigest().encode() + b"\\n"
    out.write(line)
    n, total = n + 1, total + len(line)
out.flush()
"""


def hashed(*payloads: bytes) -> bytes:
    lines = [payload + b"\n" for payload in payloads]
    return b"".join(b"%d %b\n" % (len(x), hashlib.sha256(x).hexdigest().encode()) for x in lines)


def check_talk(data: bytes, size: int) -> None:
    """Every line of TALKER, once, whole, in order."""
    total = 0
    for n, line in enumerate(data.splitlines(keepends=True)):
        body, _, digest = line.rstrip(b"\n").partition(b" ")
        assert body == b"%08d" % n * 12
        assert digest.decode() == hashlib.sha256(body).hexdigest()
        total += len(line)
    assert total >= size


def fifo(keep: Bench) -> Path:
    folder = keep.home / "workspaces" / "s_test"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "go")
    return folder / "go"


# ---------------------------------------------------------------------------------- the whole way


def test_lines_go_in_output_goes_to_the_spool_and_the_end_is_recorded(
    keep: Bench, isolation: str
) -> None:
    answer = keep.launched(ECHO, isolation)
    assert answer["isolation"] == isolation.partition("=")[2]
    assert answer["cwd"] == str(keep.home / "workspaces" / "s_test")
    assert keep.keeper is not None
    assert answer["keeper_pid"] == keep.keeper.pid
    assert Path(f"/proc/{answer['agent_pid']}/cmdline").read_bytes() == b"/bin/cat\0"
    with keep.owner() as owner:
        owner.send(protocol.line(1, b'{"a":1}') + protocol.ping() + protocol.line(2, b""))
        assert owner.wait(protocol.Ack) == protocol.Ack(1)
        assert owner.wait(protocol.Ack) == protocol.Ack(2)
        keep.wait_spool(lambda data: data == b'{"a":1}\n\n')
        owner.send(protocol.end(3))
        assert owner.wait_closed() == [protocol.Ack(3), protocol.Exited()]
    data, end = keep.wait_end()
    assert data == b'{"a":1}\n\n'
    assert (end.status, end.signal, end.oom, end.cut) == (0, None, False, False)
    assert not keep.lock_is_held()


@pytest.mark.parametrize(
    ("code", "said", "end"),
    [
        ("print('x', end='')", b"x\n", EndRecord(0, None, False, True, 0)),
        ("print('x')", b"x\n", EndRecord(0, None, False, False, 0)),
        ("", b"", EndRecord(0, None, False, False, 0)),
        ("raise SystemExit(143)", b"", EndRecord(143, None, False, False, 0)),
        ("import os; os.kill(os.getpid(), 11)", b"", EndRecord(None, 11, False, False, 0)),
        (
            "import os; os.write(1, b'a\\nb'); os.kill(os.getpid(), 9)",
            b"a\nb\n",
            EndRecord(None, 9, False, True, 0),
        ),
        ("import os; os.close(1); raise SystemExit(3)", b"", EndRecord(3, None, False, False, 0)),
    ],
)
def test_how_the_agent_ended_is_told_as_it_was(
    keep: Bench, code: str, said: bytes, end: EndRecord
) -> None:
    keep.launched(python(code))
    data, told = keep.wait_end()
    assert data == said
    assert told._replace(at_ms=0) == end


def test_signals_reach_the_agent_itself(keep: Bench, isolation: str) -> None:
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, lambda *_: print('INT', flush=True))\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print('ready', flush=True)\n"
        "while True: signal.pause()\n"
    )
    keep.launched(python(code), isolation)
    keep.wait_spool(lambda data: b"ready\n" in data)
    with keep.owner() as owner:
        owner.send(protocol.signal(1, "INT"))
        keep.wait_spool(lambda data: b"INT\n" in data)
        owner.send(protocol.signal(2, "TERM"))
        owner.wait(protocol.Exited)
    data, end = keep.wait_end()
    assert data == b"ready\nINT\n"
    assert (end.status, end.signal) == (7, None)


def test_an_agent_that_ignores_every_signal_dies_by_kill(keep: Bench) -> None:
    code = (
        "import signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True)\n"
        "while True: signal.pause()\n"
    )
    keep.launched(python(code))
    keep.wait_spool(lambda data: b"ready\n" in data)
    with keep.owner() as owner:
        owner.send(protocol.signal(1, "TERM") + protocol.signal(2, "KILL"))
        owner.wait(protocol.Exited)
    assert keep.wait_end()[1].signal == signal.SIGKILL


def test_a_forged_end_record_ends_nothing(keep: Bench) -> None:
    forged = '{"type":"holdover_end","nonce":"' + "00" * 16 + '","status":0,"signal":null}'
    keep.launched(python(f"print({forged!r}, flush=True); input(); raise SystemExit(5)"))
    keep.wait_spool(lambda data: b"holdover_end" in data)
    with keep.owner() as owner:
        owner.send(protocol.end(1))
        owner.wait(protocol.Exited)
    data, end = keep.wait_end()
    assert data.splitlines()[0] == forged.encode()
    assert end.status == 1  # input() met the end of its file


def test_the_spool_of_an_agent_that_ended_before_anybody_greeted_is_whole(keep: Bench) -> None:
    keep.launched(python("print('alone')"))
    assert keep.wait_end()[0] == b"alone\n"


# -------------------------------------------------------------------------- owners and their deaths


def test_an_owner_killed_in_mid_line_has_sent_nothing_and_the_next_sends_it_once(
    keep: Bench,
) -> None:
    keep.launched(python(HASHER))
    payload = b"x" * 300_000
    sent = protocol.line(1, payload)
    with keep.owner() as first:
        first.send(sent[:200_000])
    with keep.owner() as second:
        assert second.events == []
        second.send(sent + protocol.end(2))
        assert second.wait(protocol.Ack) == protocol.Ack(1)
    assert keep.wait_end()[0] == hashed(payload)


def test_an_owner_killed_right_after_a_whole_line_has_sent_it(keep: Bench) -> None:
    keep.launched(python(HASHER))
    with keep.owner() as first:
        first.send(protocol.line(1, b"whole"))
    with keep.owner() as second:
        second.send(protocol.line(1, b"whole") + protocol.end(2))
        assert second.wait(protocol.Ack) == protocol.Ack(1)
    assert keep.wait_end()[0] == hashed(b"whole")


def test_a_rival_greets_while_the_agents_pipe_is_full(keep: Bench) -> None:
    go = fifo(keep)
    keep.launched(python(SLOW_HASHER))
    with keep.owner(7) as first:
        first.send(protocol.line(1, b"a" * 1_000_000))
        assert first.wait(protocol.Ack) == protocol.Ack(1)  # whole; the pipe took 64 KiB of it
        with Owner(keep.listener_path) as stale:
            stale.send(protocol.hello(6))
            assert stale.wait_closed() == [protocol.Stale(7)]
        with Owner(keep.listener_path) as second:
            assert second.greet(8) == protocol.Welcome(1, "running")
            assert first.wait_closed() == [protocol.Replaced()]
            second.send(protocol.line(2, b"b" * 100_000))
            # Parked: not read any further, so not acknowledged. The keeper still hears others.
            with Owner(keep.listener_path) as third:
                assert third.greet(8) == protocol.Welcome(1, "running")
                assert second.wait_closed() == [protocol.Replaced()]
                third.send(protocol.ping())
                third.wait(protocol.Pong)
                third.send(protocol.line(2, b"c" * 10) + protocol.end(3))
                with open(go, "w"):
                    assert third.wait(protocol.Ack) == protocol.Ack(2)
                third.wait(protocol.Exited)
    assert keep.wait_end()[0] == hashed(b"a" * 1_000_000, b"c" * 10)


def test_a_stuck_agent_is_killed_by_a_new_greeting_though_lines_wait(keep: Bench) -> None:
    fifo(keep)
    keep.launched(python(SLOW_HASHER))
    with keep.owner() as first:
        first.send(protocol.line(1, b"a" * 100_000))
        first.wait(protocol.Ack)
        first.send(protocol.line(2, b"b" * 100_000) + protocol.signal(3, "KILL"))
        with keep.owner() as second:
            second.send(protocol.signal(2, "KILL"))
            assert second.wait(protocol.Ack) == protocol.Ack(2)
            second.wait(protocol.Exited)
    assert keep.wait_end()[1].signal == signal.SIGKILL


def test_a_line_of_16_mib_arrives_whole_and_one_more_byte_is_refused(keep: Bench) -> None:
    answer = keep.launched(python(HASHER))
    payload = os.urandom(MAX_LINE_BYTES // 2).hex().encode()
    assert len(payload) == MAX_LINE_BYTES
    with keep.owner() as owner:
        owner.send(protocol.line(1, payload))
        assert owner.wait(protocol.Ack) == protocol.Ack(1)
        owner.send(b"LINE 2 16777217\n")
        assert "the most is 16777216" in owner.wait(protocol.Error).text
    keep.wait_spool(lambda data: data == hashed(payload))
    # One line, and growing it may need a second copy for a moment; never a third.
    peak_kb = int(status_of(answer["keeper_pid"])["VmHWM"].split()[0])
    assert peak_kb < 20 * 1024 + 2 * 16 * 1024 + 2048
    with keep.owner() as owner:
        owner.send(protocol.end(2))
        owner.wait(protocol.Exited)
    keep.wait_end()


def test_an_idle_keeper_takes_less_than_16_mib(keep: Bench) -> None:
    answer = keep.launched(ECHO)
    with keep.owner() as owner:
        owner.send(protocol.line(1, b"x" * 100_000))
        owner.wait(protocol.Ack)
        keep.wait_spool(lambda data: len(data) == 100_001)
        resident_kb = int(status_of(answer["keeper_pid"])["VmRSS"].split()[0])
        assert resident_kb <= 16 * 1024


def test_an_owner_that_takes_no_answers_is_held_up_and_nobody_else_is(keep: Bench) -> None:
    answer = keep.launched(ECHO)
    with keep.owner() as deaf:
        deaf.socket.setblocking(False)
        pings = protocol.ping() * 10_000
        # More than both sockets' buffers and the keeper's bound hold; then it does not read on.
        with contextlib.suppress(BlockingIOError):
            for _ in range(1000):
                assert deaf.socket.send(pings) > 0
            pytest.fail("50 MB of pings were taken though no answer was")
        with keep.owner() as rival:
            rival.send(protocol.line(1, b"hello"))
            rival.wait(protocol.Ack)
            keep.wait_spool(lambda data: data == b"hello\n")
            resident_kb = int(status_of(answer["keeper_pid"])["VmRSS"].split()[0])
            assert resident_kb <= 18 * 1024


def test_silent_connections_are_bounded_and_keep_nobody_out(keep: Bench) -> None:
    keep.launched(ECHO)
    silent = [keep.owner(None) for _ in range(MAX_GREETING)]
    with keep.owner(None) as newer:
        assert isinstance(silent[0].wait_closed()[-1], protocol.Error)
        assert newer.greet(7) == protocol.Welcome(0, "running")
        for connection in silent[1:]:
            connection.send(b"HELLO")  # still there
    for connection in silent:
        connection.close()


@needs_root
def test_only_the_daemons_uid_may_greet(keep: Bench) -> None:
    keep.launched(ECHO)
    keep.folder.chmod(0o755)
    keep.listener_path.chmod(0o666)
    as_nobody = ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-I", "-c"]
    stranger = subprocess.run(
        [*as_nobody, STRANGER, keep.listener_path], capture_output=True, text=True, check=True
    )
    assert stranger.stdout.strip() == "hung up"
    assert "only the daemon may greet" in keep.stderr()


STRANGER = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
try:
    s.sendall(b"HELLO 1 9\\n")
    said = s.recv(100)
except OSError:
    said = b""
print(said.decode() or "hung up")
"""


def test_lines_that_the_agent_does_not_want_are_said_to_be_lost(keep: Bench) -> None:
    keep.launched(
        python("import os, signal; os.close(0); print('shut', flush=True); signal.pause()")
    )
    keep.wait_spool(lambda data: b"shut" in data)
    with keep.owner() as owner:
        owner.send(protocol.line(1, b"x"))
        owner.wait(protocol.Ack)
        keep.wait_stderr("closed its stdin")
        owner.send(protocol.line(2, b"y"))
        assert "line 2 was not delivered" in owner.wait(protocol.Error).text
    with keep.owner() as owner:
        owner.send(protocol.signal(2, "KILL"))
        owner.wait(protocol.Exited)
    keep.wait_end()


# ---------------------------------------------------------------------------------- spool and disk


@pytest.fixture
def small_disk() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="hk-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


def fill(path: Path) -> None:
    """Leave no byte free on the path's disk."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@needs_root
@pytest.mark.parametrize("filler", [700_000, 1_000_001, 1_048_576])
def test_a_full_disk_damages_and_loses_no_byte(small_disk: Path, filler: int) -> None:
    """The spool grows to 800,000 bytes; the filler lets the disk be full at different bytes."""
    with bench(small_disk) as keep:
        with open(small_disk / "filler", "wb") as file:
            file.write(bytes(min(filler, 1_048_576 - 8192)))
        keep.launched((*python(TALKER), "800000"))
        with keep.owner() as owner:
            if owner.events != [protocol.Full()]:
                owner.wait(protocol.Full)
            held = keep.spooled()
            assert len(held) < 800_000
            # Whole lines or not, what is there is the beginning of what was said.
            (small_disk / "filler").unlink()
            owner.wait(protocol.Room)
            owner.wait(protocol.Exited)
        data, end = keep.wait_end()
        assert data.startswith(held)
        check_talk(data, 800_000)
        assert (end.status, end.cut) == (0, False)


@needs_root
def test_an_agent_that_ends_on_a_full_disk_is_recorded_once_there_is_room(
    small_disk: Path,
) -> None:
    with bench(small_disk) as keep:
        keep.launched(python("input(); import os; os.write(1, b'last words')"))
        with keep.owner() as owner:
            fill(small_disk / "filler")
            owner.send(protocol.line(1, b""))
            owner.wait(protocol.Full)
            owner.wait(protocol.Exited)
        with keep.owner(None) as late:
            assert late.greet(8) == protocol.Welcome(1, "exited")
            assert late.events == [protocol.Full()]
            assert keep.lock_is_held()
            (small_disk / "filler").unlink()
            late.wait(protocol.Room)
        data, end = keep.wait_end()
        assert data == b"last words\n"
        assert (end.status, end.cut) == (0, True)


def test_the_spool_is_bounded_and_goes_on_as_ranges_are_punched(keep: Bench) -> None:
    limit, size = 128 * 1024, 300 * 1024
    keep.launched((*python(TALKER), str(size)), f"--spool-max-bytes={limit}")
    keep.wait_stderr("that no daemon has taken")
    taken = b""
    with open(keep.spool_path, "r+b") as file:
        while True:
            # What one chunk over the bound is, and a file system's block.
            assert os.fstat(file.fileno()).st_blocks * 512 <= limit + 64 * 1024 + 4096
            file.seek(len(taken))
            taken += file.read()
            if b'"holdover_end"' in taken:
                break
            punch = ["fallocate", "--punch-hole", "--offset=0", f"--length={len(taken)}"]
            subprocess.run([*punch, keep.spool_path], check=True)
            have = len(taken)
            keep.wait_spool(lambda data, have=have: len(data) > have)
    assert keep.keeper is not None
    assert keep.keeper.wait(60) == 0
    check_talk(taken[: taken.rindex(b"\n", 0, -1) + 1], size)


def test_the_agents_stderr_goes_to_the_keepers(keep: Bench) -> None:
    keep.launched(python("import sys; print('on stderr', file=sys.stderr)"))
    keep.wait_end()
    assert "on stderr" in keep.stderr()


def test_a_stderr_that_nobody_reads_does_not_stop_the_keeper(keep: Bench) -> None:
    """The agent fills it; the keeper, who has something to say there as well, goes on."""
    reader, writer = os.pipe()
    keep.stderr_path = Path(f"/proc/self/fd/{writer}")
    code = (
        "import os, signal, threading\n"
        "threading.Thread(target=os.write, args=(2, bytes(200_000)), daemon=True).start()\n"
        "print('ready', flush=True); os.close(0); signal.pause()\n"
    )
    keep.launched(python(code))
    keep.wait_spool(lambda data: b"ready\n" in data)
    with keep.owner() as owner:
        owner.send(protocol.line(1, b"x") + protocol.signal(2, "KILL"))
        owner.wait(protocol.Exited)
    assert keep.wait_end()[1].signal == signal.SIGKILL
    os.close(writer)
    os.close(reader)


def test_what_the_agent_finds_in_its_process(keep: Bench, isolation: str) -> None:
    code = (
        "import json, os\n"
        "status = dict(l.split(':', 1) for l in open('/proc/self/status').read().splitlines())\n"
        "print(json.dumps({\n"
        " 'env': dict(os.environ), 'cwd': os.getcwd(), 'sid': os.getsid(0) == os.getpid(),\n"
        " 'fds': sorted(int(f) for f in os.listdir('/proc/self/fd')),\n"
        " 'links': [os.readlink(f'/proc/self/fd/{f}') for f in range(3)],\n"
        " 'ignored': status['SigIgn'].strip(), 'blocked': status['SigBlk'].strip(),\n"
        " 'umask': status['Umask'].strip()}))\n"
    )
    # Without Python's own changes to SIGPIPE and SIGXFSZ there is nothing to see them by.
    argv = ("/bin/sh", "-c", "grep -E '^Sig(Ign|Blk)' /proc/self/status; exec \"$@\"", "sh")
    keep.launched(
        (*argv, *python(code)),
        isolation,
        inherited={"PATH": os.environ["PATH"], "CLAUDECODE": "1", "LISTEN_FDS": "3", "SECRET": "x"},
        roots=[],
    )
    lines = keep.wait_end()[0].splitlines()
    # 32 and 33 are glibc's own: no program can set them through it, whoever started the tests may.
    assert [int(line.split()[-1], 16) & ~(3 << 31) for line in lines[:2]] == [0, 0]
    (found,) = json_lines(lines[2])
    assert not {"CLAUDECODE", "LISTEN_FDS", "SECRET"} & found["env"].keys()
    assert found["env"]["HOME"] == str(keep.home)
    assert found["env"]["PWD"] == found["cwd"] == str(keep.home / "workspaces" / "s_test")
    assert found["sid"] is True
    # 0, 1, 2, the lock, and the descriptor that listdir itself uses.
    assert len(found["fds"]) == 5
    assert all(link.startswith("pipe:") for link in found["links"][:2])


def test_what_was_found_in_transcripts_is_in_the_answer(keep: Bench) -> None:
    (keep.home / "t.jsonl").write_text('{"type":"user","uuid":"here"}\n')
    lookup = {"transcripts": ["~/t.jsonl"], "uuids": ["gone", "here"]}
    assert keep.launched(ECHO, lookup=lookup)["found"] == ["here"]


def test_an_agent_begins_anew_where_its_transcript_came_back_empty(keep: Bench) -> None:
    lookup = {"transcripts": ["~/t.jsonl"], "uuids": ["queued"]}
    (keep.home / "t.jsonl").write_text('{"type":"queue-operation","commandUuid":"queued"}\n')
    begin = python("import os; print(sorted(os.listdir(os.environ['HOME'])))")
    answer = keep.launched(("/bin/false",), lookup=lookup, fresh_argv=list(begin))
    assert (answer["fresh"], answer["found"]) == (True, [])
    said = keep.wait_end()[0].decode()
    assert "t.jsonl.unusable-" in said
    assert "'t.jsonl'" not in said


def test_an_agent_goes_on_where_there_is_a_conversation(keep: Bench) -> None:
    lookup = {"transcripts": ["~/t.jsonl"], "uuids": ["here"]}
    (keep.home / "t.jsonl").write_text('{"type":"user","uuid":"here"}\n')
    answer = keep.launched(ECHO, lookup=lookup, fresh_argv=["/bin/false"])
    assert (answer["fresh"], answer["found"]) == (False, ["here"])


def test_a_daemon_that_dies_before_the_answer_leaves_a_keeper_for_the_next(keep: Bench) -> None:
    ours = keep.start()
    fds = keep.descriptors()
    keep.send(ours, protocol.launch_request(keep.request(ECHO)), fds)
    ours.shutdown(socket.SHUT_RD)
    ours.close()
    for fd in fds:
        os.close(fd)
    with keep.owner(8) as owner:
        owner.send(protocol.line(1, b"still here") + protocol.end(2))
        owner.wait(protocol.Exited)
    assert keep.wait_end()[0] == b"still here\n"
