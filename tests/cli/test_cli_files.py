"""`file`, `share`, `link`, `upload-link` against a fake daemon and a storage that fails on demand."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdover.transfer import lane, rules
from tests.cli.conftest import Holdover, Ran
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.fake_files import FakeFiles, Fault

pytestmark = pytest.mark.slow

MIB = 1 << 20
KIB = 1 << 10


@pytest.fixture
def files(daemon: FakeDaemon, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFiles]:
    """Parts of 64 KiB, so that small files have several; this folder is the home."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(rules, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(rules, "MAX_DELAY_S", 0.01)
    monkeypatch.setattr(rules, "PATIENCE_S", 0.1)
    daemon.files.part_size = 64 * KIB
    with daemon.files.serve():
        yield daemon.files


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from holdover.transfer import fetching

    monkeypatch.setattr(fetching, "DOWNLOAD_PART_BYTES", 64 * KIB)


def no_secret(ran: Ran) -> None:
    assert "X-Amz" not in ran.out + ran.err
    assert "=secret" not in ran.out + ran.err


def only_file(files: FakeFiles) -> bytes:
    (content,) = files.bytes.values()
    return content


@pytest.mark.parametrize("size", [0, 1, 64 * KIB, 64 * KIB + 1, 1000 * KIB])
def test_what_is_put_is_got_byte_for_byte(files: FakeFiles, holdover: Holdover, size: int) -> None:
    body = os.urandom(size)
    Path("a.bin").write_bytes(body)
    ran = holdover("file", "put", "--to", "in/", "a.bin")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "f_0000000000000000  in/a.bin\n"
    assert only_file(files) == body
    (one,) = files.files.values()
    assert one["sha256"] == hashlib.sha256(body).hexdigest()
    ran = holdover("file", "get", "--to", "out/b.bin", "in/a.bin")
    assert (ran.code, ran.out) == (0, "out/b.bin\n")
    assert Path("out/b.bin").read_bytes() == body
    assert os.listdir("out") == ["b.bin"]
    # Nothing is left of either transfer.
    kept = list(Path(os.environ["HOME"]).glob(".local/state/holdover/transfers/*"))
    assert kept == []


def test_standard_input_needs_a_name(files: FakeFiles, holdover: Holdover) -> None:
    body = os.urandom(300 * KIB)
    assert holdover("file", "put", "-", stdin=body).code == 2
    assert holdover("file", "put", "--name", "x", "-", stdin=body).code == 0
    assert only_file(files) == body


def test_a_file_goes_to_standard_output_in_order(files: FakeFiles, home: Path) -> None:
    Path("a").write_bytes(body := os.urandom(300 * KIB))
    for args in (["put", "a"], ["get", "a", "-"]):
        ran = subprocess.run(
            [sys.executable, "-m", "holdover", "file", *args],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        )
    assert ran.stdout == body


def test_a_folder_keeps_its_names_there_and_back(files: FakeFiles, holdover: Holdover) -> None:
    made = {"d/x": b"1", "d/e/y": b"22", "d/e/f/z \u202e.txt": b"333"}
    for name, body in made.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(body)
    assert holdover("file", "put", "--to", "all", "d").code == 0
    assert {f["path"] for f in files.files.values()} == {"all/d", "all/d/e", "all/d/e/f"}
    assert holdover("file", "get", "--to", "back", "all/d/").code == 0
    for name, body in made.items():
        assert Path("back", name).read_bytes() == body
    listed = holdover("file", "ls", "all/d/e/")
    assert len(listed.out.splitlines()) == 3
    assert "\u202e" not in listed.out
    assert holdover("file", "ls", "all/d/e").out == listed.out
    ran = holdover("file", "rm", "all/d")
    assert ran.code == 3
    assert "'all/d/'" in ran.err
    assert holdover("file", "get", "--to", "some", "all/**/*.txt").code == 0
    assert [p.name for p in Path("some").rglob("*") if p.is_file()] == ["z \u202e.txt"]


def test_a_pattern_that_the_shell_left_is_ours(files: FakeFiles, holdover: Holdover) -> None:
    for name in ("a.log", "b.log", "c.txt"):
        Path(name).write_text(name)
    assert holdover("file", "put", "--json", "*.log").out.count("\n") == 2
    assert holdover("file", "put", "*.nothing").code == 3


def test_upload_goes_on_after_every_kind_of_trouble(files: FakeFiles, holdover: Holdover) -> None:
    body = os.urandom(640 * KIB)
    Path("a").write_bytes(body)
    files.faults = [
        Fault("PUT", 500, "InternalError"),
        Fault("PUT", 503, "SlowDown"),
        Fault("PUT", cut=1000),
        Fault("PUT", 403, "AccessDenied"),
        Fault("PUT", cut=0),
    ]
    ran = holdover("file", "put", "a")
    assert (ran.code, ran.err) == (0, "")
    assert only_file(files) == body
    # Each part arrived once.
    assert len({what for _, what, _ in files.seen}) == len(files.seen) == 10


def test_download_goes_on_after_every_kind_of_trouble(files: FakeFiles, holdover: Holdover) -> None:
    body = os.urandom(640 * KIB)
    Path("a").write_bytes(body)
    holdover("file", "put", "a")
    files.faults = [
        Fault("GET", 503, "SlowDown"),
        Fault("GET", cut=1000),
        Fault("GET", 403, "AccessDenied"),
        Fault("GET", cut=0),
    ]
    ran = holdover("file", "get", "--to", "b", "a")
    assert (ran.code, ran.err) == (0, "")
    assert Path("b").read_bytes() == body


def test_storage_that_stays_away_is_said_and_the_same_command_goes_on(
    files: FakeFiles, holdover: Holdover
) -> None:
    body = os.urandom(640 * KIB)
    Path("a").write_bytes(body)
    files.down_after = 5
    ran = holdover("file", "put", "a")
    assert ran.code == 7
    assert "goes on from it" in ran.err
    no_secret(ran)
    assert len(files.seen) == 5
    files.down_after = None
    ran = holdover("file", "put", "a")
    assert (ran.code, ran.err) == (0, "")
    assert only_file(files) == body
    assert len(files.seen) == 10, "no part was sent twice"
    assert len(files.uploads) == 1


def test_a_changed_file_is_not_mixed_with_what_was_sent_of_the_old_one(
    files: FakeFiles, holdover: Holdover
) -> None:
    Path("a").write_bytes(b"x" * 640 * KIB)
    files.faults = [Fault("PUT", 503) for _ in range(500)]
    assert holdover("file", "put", "a").code == 7
    files.faults = []
    Path("a").write_bytes(b"y" * 640 * KIB)
    assert holdover("file", "put", "a").code == 0
    assert only_file(files) == b"y" * 640 * KIB
    assert len(files.uploads) == 2


def test_client_killed_in_the_middle_sends_no_part_again_that_was_taken(
    files: FakeFiles, holdover: Holdover, home: Path
) -> None:
    body = os.urandom(6400 * KIB)
    Path("a").write_bytes(body)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    files.down_after = 60
    process = subprocess.Popen([sys.executable, "-m", "holdover", "file", "put", "a"], env=env)
    while len(files.seen) < 60:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    files.down_after = None
    assert holdover("file", "put", "a").code == 0
    assert only_file(files) == body
    assert len(files.seen) == 100


def test_a_download_that_broke_off_goes_on_with_the_very_same_object(
    files: FakeFiles, holdover: Holdover
) -> None:
    body = os.urandom(640 * KIB)
    Path("a").write_bytes(body)
    holdover("file", "put", "a")
    files.down_after = 4
    assert holdover("file", "get", "--to", "b", "a").code == 7
    assert not Path("b").exists()
    before = len(files.seen)
    files.down_after = None
    assert holdover("file", "get", "--to", "b", "a").code == 0
    assert Path("b").read_bytes() == body
    assert len(files.seen) - before == 6, "the four parts that were whole stay"


def test_an_object_that_is_another_meanwhile_is_fetched_from_the_start(
    files: FakeFiles, holdover: Holdover
) -> None:
    Path("a").write_bytes(os.urandom(640 * KIB))
    holdover("file", "put", "a")
    files.down_after = 4
    assert holdover("file", "get", "--to", "b", "a").code == 7
    files.down_after = None
    (one,) = files.bytes
    files.bytes[one] = os.urandom(640 * KIB)
    files.files[one]["sha256"] = hashlib.sha256(files.bytes[one]).hexdigest()
    assert holdover("file", "get", "--to", "b", "a").code == 0
    assert Path("b").read_bytes() == files.bytes[one]


def test_damage_on_the_way_down_leaves_nothing_under_the_name(
    files: FakeFiles, holdover: Holdover
) -> None:
    Path("a").write_bytes(os.urandom(200 * KIB))
    holdover("file", "put", "a")
    (one,) = files.bytes
    files.bytes[one] = files.bytes[one][:-1] + bytes([files.bytes[one][-1] ^ 1])
    ran = holdover("file", "get", "--to", "b", "a")
    assert ran.code == 6
    assert "damaged" in ran.err
    assert not Path("b").exists()
    assert holdover("file", "get", "a", "-").code == 6


def test_damage_on_the_way_up_is_told_as_such(files: FakeFiles, holdover: Holdover) -> None:
    Path("a").write_bytes(b"hello")
    files.faults = [Fault("PUT", 400, "BadDigest")]
    ran = holdover("file", "put", "a")
    assert ran.code == 6
    no_secret(ran)


def test_a_url_that_is_refused_for_ever_is_not_asked_for_for_ever(
    files: FakeFiles, holdover: Holdover
) -> None:
    Path("a").write_bytes(b"hello")
    files.faults = [Fault("PUT", 403, "SignatureDoesNotMatch") for _ in range(100)]
    ran = holdover("file", "put", "a")
    assert ran.code == 7
    assert "SignatureDoesNotMatch" in ran.err
    assert "storage doctor" in ran.err
    no_secret(ran)
    assert files.signed < 10


def test_a_file_that_is_here_is_neither_fetched_nor_overwritten(
    files: FakeFiles, holdover: Holdover
) -> None:
    Path("a").write_bytes(b"hello")
    holdover("file", "put", "a")
    assert holdover("file", "get", "a").code == 0
    assert [method for method, _, _ in files.seen] == ["PUT"]
    Path("a").write_bytes(b"other")
    ran = holdover("file", "get", "a")
    assert ran.code == 5
    assert Path("a").read_bytes() == b"other"
    assert holdover("file", "get", "--force", "a").code == 0
    assert Path("a").read_bytes() == b"hello"


def test_a_name_means_its_newest_file(files: FakeFiles, holdover: Holdover) -> None:
    for text in ("old", "new"):
        Path("a").write_text(text)
        holdover("file", "put", "a")
    assert holdover("file", "get", "--to", "b", "a").code == 0
    assert Path("b").read_text() == "new"
    assert holdover("file", "get", "--to", "c", "f_0000000000000000").code == 0
    assert Path("c").read_text() == "old"


def test_a_page_that_is_empty_is_not_the_end_of_a_list(
    files: FakeFiles, holdover: Holdover
) -> None:
    Path("a").write_bytes(b"x")
    holdover("file", "put", "a")
    files.first_page_is_empty = True
    assert holdover("file", "get", "--force", "a").code == 0


def test_stat_mv_and_rm(files: FakeFiles, holdover: Holdover) -> None:
    Path("a").write_text("hello")
    holdover("file", "put", "a")
    assert holdover("file", "mv", "a", "box/").code == 0
    assert holdover("file", "mv", "box/a", "box/b").code == 0
    shown = json.loads(holdover("file", "stat", "--json", "box/b").out)
    assert (shown["path"], shown["name"]) == ("box", "b")
    assert "SHA-256" not in holdover("file", "stat", "box/b").out
    assert holdover("file", "rm", "a").code == 3
    Path("c").write_text("c")
    holdover("file", "put", "--to", "box/", "c")
    assert holdover("file", "rm", "box/").code == 2, "two files, and nobody to ask"
    assert holdover("file", "rm", "--yes", "box/").code == 0
    assert files.files == {}


def test_share_puts_and_prints_a_link_and_nothing_else(
    files: FakeFiles, holdover: Holdover
) -> None:
    Path("a").write_text("hello")
    ran = holdover("share", "--max-downloads", "1", "a")
    assert (ran.code, ran.out) == (0, "http://holdover.example/l/tok\n")
    assert "link revoke l_0000000000000000" in ran.err
    assert only_file(files) == b"hello"
    assert holdover("link", "ls").out.splitlines()[1].split()[:3] == [
        "l_0000000000000000",
        "f_0000000000000000",
        "0/1",
    ]
    assert holdover("link", "new", "a").code == 0
    assert holdover("link", "revoke", "l_0000000000000001").code == 0
    assert list(files.links) == ["l_0000000000000000"]


def test_upload_links(files: FakeFiles, holdover: Holdover) -> None:
    ran = holdover("upload-link", "new", "--to", "inbox/", "--max-bytes", "10")
    assert (ran.code, ran.out) == (0, "http://holdover.example/u/tok\n")
    assert holdover("upload-link", "ls").out.splitlines()[1].endswith("inbox")
    assert holdover("upload-link", "revoke", "ul_0").code == 0
    assert files.upload_links == {}


def test_lost_answer_of_complete_is_asked_for_again(
    files: FakeFiles, daemon: FakeDaemon, holdover: Holdover
) -> None:
    Path("a").write_text("hello")
    original = files.answer

    def lose(method: str, path: list[str], query: object, body: object) -> tuple[int, object]:
        answer = original(method, path, query, body)  # type: ignore[arg-type]
        if path[-1] == "complete" and not lost:
            lost.append(1)
            return 503, {"error": {"code": "unavailable", "message": "A deploy."}}
        return answer

    lost: list[int] = []
    files.answer = lose  # type: ignore[method-assign, assignment]
    assert holdover("file", "put", "a").code == 8
    assert holdover("file", "put", "a").code == 0
    assert len(files.uploads) == 1
    assert len(files.seen) == 1


def test_ctrl_c_ends_a_transfer_at_once_and_keeps_it(
    files: FakeFiles, home: Path, holdover: Holdover
) -> None:
    body = os.urandom(640 * KIB)
    Path("a").write_bytes(body)
    files.faults = [Fault("PUT", 503) for _ in range(100_000)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "holdover", "file", "put", "a"], env=env, stderr=subprocess.PIPE
    )
    while len(files.faults) > 99_990:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read().strip() == b"Interrupted."
    files.faults = []
    assert holdover("file", "put", "a").code == 0
    assert len(files.uploads) == 1


def test_ctrl_c_while_threads_are_started_ends_those_that_run() -> None:
    stop = lane.Stop()
    left_alone: list[bool] = []

    def work() -> None:
        stop.sleep(20)
        left_alone.append(True)

    def start() -> None:
        with stop.threads(2) as pool:
            pool.submit(work)
            raise KeyboardInterrupt  # as if in the middle of the next `submit`

    with pytest.raises(KeyboardInterrupt):
        start()
    assert left_alone == []


def test_lane_speaks_of_itself_without_signatures() -> None:
    assert "Signature" not in repr(lane.Lane())
