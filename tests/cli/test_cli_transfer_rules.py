"""What a transfer is made of, without a network: cutting, resuming, judging, naming."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdover.exits import CommandError
from holdover.transfer import names, rules
from holdover.transfer.names import Target
from holdover.transfer.rules import Cut, Patience, Verdict, judge


@given(st.integers(0, 10**15), st.integers(1, 10**12))
def test_parts_cover_a_file_without_gap_or_overlap(size: int, part_size: int) -> None:
    cut = Cut(size, max(part_size, size // 1000))
    at = 0
    for number in cut.numbers:
        offset, length = cut.span(number)
        assert offset == at
        at += length
        assert length == cut.part_size or number == cut.count
    assert at == size
    assert cut.bytes_of(cut.numbers) == size


@given(st.integers(0, 5 << 40))
def test_usual_part_size_stays_within_what_storage_takes(size: int) -> None:
    assert Cut(size, rules.usual_part_size(size)).count <= rules.MAX_PARTS


def test_a_part_of_another_size_is_sent_again() -> None:
    cut = Cut(10, 4)
    assert rules.left_to_send(cut, {}) == [1, 2, 3]
    assert rules.left_to_send(cut, {1: 4, 2: 3, 3: 2}) == [2]
    assert rules.left_to_send(Cut(0, 4), {1: 0}) == []


def test_urls_are_asked_for_in_windows_from_the_part_that_needs_one() -> None:
    assert rules.window(3, [1, 2, 3, 5, 9]) == [3, 5, 9]
    assert rules.window(7, range(1, 1000)) == [*range(7, 7 + rules.WINDOW)]


@pytest.mark.parametrize(
    ("status", "code", "verdict"),
    [
        (200, "", Verdict.OK),
        (206, "", Verdict.OK),
        (400, "BadDigest", Verdict.DAMAGED),
        (400, "XAmzContentChecksumMismatch", Verdict.DAMAGED),
        (400, "RequestTimeout", Verdict.AGAIN),
        (400, "InvalidArgument", Verdict.REFUSED),
        (403, "AccessDenied", Verdict.RENEW),
        (404, "NoSuchUpload", Verdict.GONE),
        (412, "PreconditionFailed", Verdict.CHANGED),
        (429, "", Verdict.AGAIN),
        (500, "InternalError", Verdict.AGAIN),
        (503, "SlowDown", Verdict.AGAIN),
        (301, "", Verdict.REFUSED),
    ],
)
def test_what_an_answer_of_storage_means(status: int, code: str, verdict: Verdict) -> None:
    assert judge(status, f"<Error><Code>{code}</Code></Error>") is verdict


def test_patience_outlasts_a_restart_of_storage_and_ends() -> None:
    patience = Patience()
    delays = []
    while (delay := patience.delay_s()) is not None:
        delays.append(delay)
    assert 20 < rules.PATIENCE_S <= sum(delays) < 70
    assert delays == sorted(delays)
    patience.moved()
    assert patience.delay_s() == rules.FIRST_DELAY_S


PATTERNS = [
    ("*.txt", "a.txt", True),
    ("*.txt", "d/a.txt", False),
    ("d/*", "d/a", True),
    ("d/*", "d/e/a", False),
    ("d/**", "d/e/a", True),
    ("**/a", "a", True),
    ("**/a", "x/y/a", True),
    ("d/**/a", "d/a", True),
    ("a?c", "abc", True),
    ("a?c", "a/c", False),
    ("[a-c]x", "bx", True),
    ("[!a-c]x", "bx", False),
    ("[!a-c]x", "/x", False),
    ("a.c", "abc", False),
    ("(*", "(a", True),
]


@pytest.mark.parametrize(("pattern", "name", "fits"), PATTERNS)
def test_patterns_fit_within_folders(pattern: str, name: str, fits: bool) -> None:
    assert bool(names.compile_pattern(pattern).fullmatch(name)) is fits


@given(st.text(max_size=30))
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        there = names.parse(text)
    except CommandError:
        return  # a pattern that is none
    there.matches({"id": "f_x", "path": "a/b", "name": "c"})


def test_what_is_typed_is_an_id_a_name_a_folder_or_a_pattern() -> None:
    assert names.parse("f_0123456789abcdef").id == "f_0123456789abcdef"
    one = names.parse("/a/b/c")
    assert (one.path, one.name, one.folder) == ("a/b", "c", False)
    folder = names.parse("a/b/")
    assert (folder.path, folder.name, folder.folder) == ("a/b", None, True)
    pattern = names.parse("a/b/*/c*")
    assert (pattern.path, pattern.pattern is not None) == ("a/b", True)
    assert names.parse("").folder


def test_a_list_of_what_is_there_tells_a_folder_without_its_slash() -> None:
    file = {"id": "f_x", "path": "a/b", "name": "c"}
    for listed in ("a/b/c", "a/b", "a", "a/b/", "a/*/c"):
        assert names.parse(listed).lists(file), listed
    for other in ("b", "c", "a/b/c/d", "a/bc"):
        assert not names.parse(other).lists(file), other


@pytest.mark.parametrize(
    ("local", "to", "several", "placed"),
    [
        ("x/a", None, False, ("", "a")),
        ("x/a", "f/", False, ("f", "a")),
        ("x/a", "f/b", False, ("f", "b")),
        ("x/a", "b", False, ("", "b")),
        ("x/a", "f/b", True, ("f/b", "a")),
        ("x/a", "/", False, ("", "a")),
    ],
)
def test_a_place_is_a_folder_or_a_name(
    local: str, to: str | None, several: bool, placed: tuple[str, str]
) -> None:
    assert names.place(local, to, several=several) == placed


def test_a_tree_keeps_its_folders_name_unless_it_is_this_folder() -> None:
    assert names.place_tree("x/d", ["e", "f"], "to/") == Target("x/d/e/f", "to/d/e", "f")
    assert names.place_tree(".", ["e", "f"], None) == Target("e/f", "e", "f")


@pytest.mark.parametrize("path", ["..", "a/..", "../../etc", "a/./b"])
def test_no_name_leads_out_of_the_folder_it_goes_into(path: str) -> None:
    item = {"path": path, "name": "x", "id": "f_1"}
    with pytest.raises(CommandError):
        names.landing(item, names.parse("**"))
    for name in ("..", ".", "a/b", ""):
        with pytest.raises(CommandError):
            names.landing({"path": "", "name": name}, names.parse("x"))


def test_a_folder_lands_under_its_own_name_a_pattern_below_what_it_fixes() -> None:
    item = {"path": "a/b/c", "name": "x"}
    assert names.landing(item, names.parse("a/b/")) == "b/c/x"
    assert names.landing(item, names.parse("a/b/**")) == "c/x"
    assert names.landing(item, names.parse("a/b/c/x")) == "x"


def test_of_files_with_one_name_the_newest_counts() -> None:
    old, new = ({"path": "", "name": "a", "created_at": at, "id": str(at)} for at in (1, 2))
    other = {"path": "b", "name": "a", "created_at": 0, "id": "0"}
    assert names.newest_of_each([old, other, new]) == [new, other]
