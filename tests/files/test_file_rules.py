"""Names, parts, verification, dispositions, links: the rules without anything around them."""

import base64
import hashlib
from email.message import Message

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.errors import BadRequest, Conflict, Gone, TooLarge, Unprocessable
from holdoverd.files import passwords, rules
from holdoverd.files.rules import FILE_MOVES, UPLOAD_MOVES, Held, LinkTerms, Parts
from holdoverd.files.sweeper import wants_object, wants_upload

UNICODE = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=80)


@given(UNICODE)
def test_name_is_data(name: str) -> None:
    if name in (".", "..") or len(name.encode()) > 255:
        with pytest.raises(Unprocessable):
            rules.check_name(name)
    else:
        assert rules.check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * 256, "ü" * 128, "\ud800"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(Unprocessable):
        rules.check_name(name)


@pytest.mark.parametrize(
    ("given", "stored"), [("", ""), ("/", ""), ("a", "a"), ("/a/b/", "a/b"), ("a b/ü", "a b/ü")]
)
def test_path_has_one_form(given: str, stored: str) -> None:
    assert rules.check_path(given) == stored
    assert rules.check_path(stored) == stored


@pytest.mark.parametrize("path", ["a//b", "a/../b", "./a", "a\0", "/".join(["x" * 200] * 6)])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(Unprocessable):
        rules.check_path(path)


@given(st.integers(0, rules.MAX_FILE_BYTES))
def test_parts_make_the_file(size: int) -> None:
    parts = rules.cut(size)
    assert 1 <= parts.count <= rules.MAX_PARTS
    assert parts.part_size >= rules.PART_BYTES
    assert parts.part_size % rules.MIB == 0
    assert parts.part_size * (parts.count - 1) + parts.size_of(parts.count) == size
    assert parts.size_of(1) == min(size, parts.part_size)
    assert size == 0 or parts.size_of(parts.count) > 0


def test_size_at_which_parts_grow() -> None:
    most = rules.PART_BYTES * rules.MAX_PARTS
    assert rules.cut(most).part_size == rules.PART_BYTES
    assert rules.cut(most + 1).part_size == rules.PART_BYTES + rules.MIB
    with pytest.raises(TooLarge):
        rules.cut(rules.MAX_FILE_BYTES + 1)


def test_first_window() -> None:
    many = Parts(rules.PART_BYTES * 100, rules.PART_BYTES)
    one = Parts(5, rules.PART_BYTES)
    assert rules.first_window(many, digests=False, known=False) == list(range(1, 65))
    assert rules.first_window(many, digests=True, known=False) == []
    assert rules.first_window(one, digests=True, known=True) == [1]


def test_numbers_of_parts() -> None:
    parts = Parts(10, 4)
    assert parts.check_numbers([3, 1, 3]) == [1, 3]
    for bad in ([], [0], [4], range(1, 1000)):
        with pytest.raises(Unprocessable):
            parts.check_numbers(bad)


def test_completing_names_what_is_wrong() -> None:
    parts = Parts(10, 4)
    held = {n: Held(size, f"e{n}") for n, size in ((1, 4), (2, 4), (3, 2))}
    named = {n: f'"E{n}"' for n in held}
    rules.check_parts(parts, held, named)
    with pytest.raises(Conflict) as caught:
        rules.check_parts(parts, {1: held[1]}, named)
    assert caught.value.extra == {"missing": [2, 3]}
    with pytest.raises(Conflict, match="Part 3 has 4 bytes"):
        rules.check_parts(parts, {**held, 3: held[1]}, named)
    with pytest.raises(Conflict, match="Part 2 in storage is another"):
        rules.check_parts(parts, held, {**named, 2: "other"})
    with pytest.raises(Unprocessable, match="part 2"):
        rules.check_parts(parts, held, {1: "e1", 3: "e3"})


def test_what_storages_checksum_proves() -> None:
    one, two = (hashlib.sha256(text).hexdigest() for text in (b"1", b"2"))
    whole = base64.b64encode(bytes.fromhex(one)).decode()
    assert rules.how_verified([one], rules.composite([one])) == "sha256"
    assert rules.how_verified([one], whole) == "sha256"
    assert rules.how_verified([one, two], rules.composite([one, two])) == "parts"
    assert rules.how_verified([one, two], rules.composite([two, one])) is None
    assert rules.how_verified([one, two], whole) is None
    assert rules.how_verified([one], None) == "size"
    assert rules.how_verified([], rules.composite([one])) == "size"


@given(UNICODE)
def test_disposition_holds_any_name_and_nothing_else(name: str) -> None:
    value = rules.content_disposition("attachment", name)
    assert value.isascii()
    assert value.isprintable()
    message = Message()
    message["Content-Disposition"] = value
    found = message.get_param("filename*", header="content-disposition")
    encoded = value.rpartition("; filename*=UTF-8''")[2]
    from urllib.parse import unquote

    assert unquote(encoded, errors="strict") == name
    assert '"' not in value.partition('filename="')[2].partition('"; ')[0]
    assert found is None or isinstance(found, str | tuple)


@pytest.mark.parametrize(
    ("claimed", "inline", "served"),
    [
        ("text/html", False, ("attachment", rules.OCTETS)),
        ("text/html", True, ("attachment", rules.OCTETS)),
        ("image/svg+xml", True, ("attachment", rules.OCTETS)),
        ("image/png", False, ("attachment", rules.OCTETS)),
        ("Image/PNG; x=y", True, ("inline", "image/png")),
        ("text/plain; charset=utf-7", True, ("inline", "text/plain; charset=utf-8")),
    ],
)
def test_type_is_obeyed_only_where_it_is_harmless(
    claimed: str, inline: bool, served: tuple[str, str]
) -> None:
    assert rules.served_as(claimed, inline=inline) == served


def test_types() -> None:
    for good in ("image/png", "text/plain; charset=utf-8", "application/vnd.a+json"):
        assert rules.check_type(good) == good
    for bad in ("", "png", "a/b\r\nX: y", "a/ü", "a/b" + "c" * 300):
        with pytest.raises(Unprocessable):
            rules.check_type(bad)


def test_words_are_folded_and_bounded() -> None:
    assert rules.words("Straße_2026-Köln.TXT") == ["2026", "köln", "strasse", "txt"]
    assert len(rules.words(" ".join(map(str, range(100))))) == 32
    assert rules.words("---") == []


def test_link_ends_in_every_way_it_can() -> None:
    LinkTerms(False, 100, 0, 1).check(99)
    LinkTerms(False, None, 10**9, None).check(99)
    for terms in (
        LinkTerms(True, None, 0, None),
        LinkTerms(False, 100, 0, None),
        LinkTerms(False, None, 1, 1),
    ):
        with pytest.raises(Gone):
            terms.check(100)


def test_quota() -> None:
    rules.check_quota("a", 5, 5, 10)
    rules.check_quota("a", 10**12, 5, 0)
    with pytest.raises(TooLarge):
        rules.check_quota("a", 6, 5, 10)


def test_ends_stay_ends() -> None:
    """No state that is an end leads anywhere, and `ready` is reached from `uploading` alone."""
    assert FILE_MOVES["deleted"] == UPLOAD_MOVES["completed"] == UPLOAD_MOVES["aborted"] == set()
    assert [state for state, to in FILE_MOVES.items() if "ready" in to] == ["uploading"]
    assert [state for state, to in UPLOAD_MOVES.items() if "completed" in to] == ["open"]


def test_sweeper_wants_all_that_a_living_row_may_need() -> None:
    assert wants_object("ready")
    assert wants_object("uploading")
    assert not wants_object("deleted")
    assert not wants_object(None)
    assert wants_upload("open", same=True)
    assert not wants_upload("open", same=False)
    assert wants_upload("opening", same=False)
    for state in ("completed", "aborted", None):
        assert not wants_upload(state, same=True)  # type: ignore[arg-type]


def test_password_matches_itself_alone() -> None:
    stored = passwords.hash_password("pässword")
    assert stored != passwords.hash_password("pässword")
    assert passwords.matches("pässword", stored)
    assert not passwords.matches("password", stored)
    assert "pässword" not in stored


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ([""], [""]),
        (["a"], ["a"]),
        (["re", "report", "may"], ["report", "may"]),
        (["b", "a", "a"], ["a", "b"]),
        (["ab", "abc", "abcd", "b"], ["abcd", "b"]),
    ],
)
def test_a_word_that_another_begins_with_is_not_looked_for(
    wanted: list[str], kept: list[str]
) -> None:
    assert rules.needed(wanted) == kept


def test_a_cursor_tells_which_word_led() -> None:
    assert rules.leading(["report", "may"], "mayor") == "may"
    with pytest.raises(BadRequest, match="not one of ours"):
        rules.leading(["report", "may"], "june")
