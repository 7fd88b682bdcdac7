"""Files, links and the audit as stored, in both databases: every end is reached once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, event

from holdoverd.catalogue import audit, cursors, files, links, schema
from holdoverd.catalogue.files import FileRow, UploadRow
from holdoverd.catalogue.links import LinkRow, UploadLinkRow
from holdoverd.errors import BadRequest, TooLarge

DIGEST = "ab" * 32


def a_file(number: int, **values: Any) -> FileRow:
    row = FileRow(
        id=f"f_{number}",
        owner="ann",
        name=f"{number}.txt",
        path="",
        size=10,
        sha256=None,
        verified=None,
        content_type="text/plain",
        state="uploading",
        key=f"f/{number}",
        created_at=number,
    )
    return replace(row, **values)


def an_upload(file: FileRow, **values: Any) -> UploadRow:
    row = UploadRow(
        id=f"u{file.id}",
        file=file.id,
        owner=file.owner,
        upload_link=None,
        storage_upload=None,
        part_size=16,
        digests=True,
        state="opening",
        created_at=file.created_at,
        expires_at=file.created_at + 100,
    )
    return replace(row, **values)


def make(cx: Connection, number: int, quota: int = 0, **values: Any) -> tuple[FileRow, UploadRow]:
    file = a_file(number, **values)
    upload = an_upload(file)
    files.create(cx, file, upload, {1: DIGEST}, quota)
    return file, upload


def test_upload_is_completed_once(cx: Connection) -> None:
    file, upload = make(cx, 1)
    assert not files.completed(cx, upload, "size")  # not open yet
    assert files.opened(cx, upload.id, "s3")
    assert not files.opened(cx, upload.id, "s3-again")
    found = files.upload_row(cx, upload.id)
    assert found == (replace(upload, state="open", storage_upload="s3"), file)
    assert files.digests_of(cx, upload.id) == {1: DIGEST}
    files.put_digests(cx, upload.id, {1: "cd" * 32, 2: DIGEST})
    assert files.digests_of(cx, upload.id) == {1: "cd" * 32, 2: DIGEST}
    assert files.completed(cx, upload, "sha256")
    assert not files.completed(cx, upload, "sha256")
    assert files.file_row(cx, file.id) == replace(file, state="ready", verified="sha256")
    assert files.digests_of(cx, upload.id) == {}


def test_deleting_gives_the_upload_up_and_counts_back(cx: Connection) -> None:
    file, upload = make(cx, 1)
    make(cx, 2)
    files.opened(cx, upload.id, "s3")
    assert [(row.bytes, row.files) for row in files.usages(cx)] == [(20, 2)]
    assert files.delete_file(cx, file)
    assert not files.delete_file(cx, file)
    assert not files.completed(cx, upload, "size")
    assert [(row.bytes, row.files) for row in files.usages(cx)] == [(10, 1)]
    assert [row.id for row in files.to_erase(cx, limit=10)] == ["f_1"]
    files.erased(cx, "f_1", 5)
    files.erased(cx, "f_2", 5)  # not deleted, so not erased either
    assert files.to_erase(cx, limit=10) == []
    assert files.rename(cx, file, "new", "") is None
    assert files.list_files(cx, owner="ann", q="1", limit=5) == ([], None)


def test_quota_of_an_owner_goes_before_that_of_all(cx: Connection) -> None:
    make(cx, 1, quota=10)
    with pytest.raises(TooLarge):
        make(cx, 2, quota=19)
    files.set_quota(cx, "ann", 20)
    make(cx, 3, quota=19)
    files.set_quota(cx, "bob", 5)
    with pytest.raises(TooLarge):
        make(cx, 4, owner="bob")
    files.set_quota(cx, "bob", None)
    make(cx, 5, owner="bob")


def listed(cx: Connection, **filters: Any) -> list[str]:
    """All of a list, by pages of two."""
    names: list[str] = []
    cursor = None
    filters = {"owner": "ann", **filters}
    while True:
        rows, cursor = files.list_files(cx, limit=2, cursor=cursor, **filters)
        names += [row.name for row in rows]
        if cursor is None:
            return names
        assert len(rows) == 2


def test_lists_in_every_order(cx: Connection) -> None:
    for number, (path, name) in enumerate(
        [
            ("a", "z report.txt"),
            ("a", "Zebra Report"),
            ("a/b", "ärger-report"),
            ("a0", "reporting"),
            ("a-b", "x"),
            ("", "report report2 report3"),
        ],
        start=1,
    ):
        make(cx, number, path=path, name=name)
    make(cx, 7, owner="bob", name="report of bob")
    assert listed(cx)[0] == "report report2 report3"
    assert len(listed(cx)) == 6
    assert listed(cx, path="a") == ["Zebra Report", "z report.txt"]
    assert listed(cx, path="a", below=True) == ["Zebra Report", "z report.txt", "ärger-report"]
    assert len(listed(cx, path="", below=True)) == 6
    assert sorted(listed(cx, q="REPO")) == sorted(listed(cx, q="repo"))
    assert len(listed(cx, q="repo")) == 5
    assert listed(cx, q="repo zeb") == ["Zebra Report"]
    assert listed(cx, q="ÄRG") == ["ärger-report"]
    assert listed(cx, q="repor", path="a0") == ["reporting"]
    assert listed(cx, q="eport") == []
    assert listed(cx, owner=None, q="bob") == ["report of bob"]
    assert len(listed(cx, owner=None)) == 7
    assert listed(cx, state="ready") == []
    _, cursor = files.list_files(cx, owner="ann", limit=1)
    with pytest.raises(BadRequest):
        files.list_files(cx, owner="ann", path="a", limit=1, cursor=cursor)


@pytest.mark.parametrize("seen", [1, 2, 3, 50])
def test_a_search_for_words_that_are_all_common_ends_and_goes_on(
    cx: Connection, monkeypatch: pytest.MonkeyPatch, seen: int
) -> None:
    monkeypatch.setattr(files, "SEEN", seen)
    names = [f"{'red ' * (n % 3 == 0)}{'green ' * (n % 4 == 0)}greens {n}" for n in range(1, 25)]
    for number, name in enumerate(names, start=1):
        make(cx, number, name=name)
    make(cx, 99, name="red green of bob", owner="bob")

    def found(q: str, owner: str | None) -> list[str]:
        rows: list[str] = []
        cursor = None
        while True:
            page, cursor = files.list_files(cx, owner=owner, q=q, limit=2, cursor=cursor)
            rows += [row.name for row in page]
            if cursor is None:
                return rows

    assert sorted(found("green red", "ann")) == sorted(names[2::3])  # "greens" begins so
    assert sorted(found("red greens gr", "ann")) == sorted(names[2::3])
    assert sorted(found("red green", None)) == sorted([*names[2::3], "red green of bob"])
    assert found("red blue", "ann") == []
    assert found("12 red", "ann") == [names[11]]
    _, cursor = files.list_files(cx, owner="ann", q="green red", limit=1)
    with pytest.raises(BadRequest, match="begin without it"):
        files.list_files(cx, owner="ann", q="blue yellow", limit=1, cursor=cursor)


def test_sweeper_sees_rows_by_key_and_by_age(cx: Connection) -> None:
    file, upload = make(cx, 1)
    other, open_upload = make(cx, 2)
    files.opened(cx, open_upload.id, "s3")
    assert files.to_give_up(cx, now=50, opened_before=0, limit=5) == []
    early = files.to_give_up(cx, now=50, opened_before=1, limit=5)
    assert [row.id for row in early] == [file.id]
    late = files.to_give_up(cx, now=102, opened_before=0, limit=5)
    assert [row.id for row in late] == [other.id]
    assert set(files.by_keys(cx, ["f/1", "f/none"])) == {"f/1"}
    assert files.ready_after(cx, "", limit=5) == []
    files.completed(cx, open_upload, "size")
    assert [row.key for row in files.ready_after(cx, "", limit=5)] == ["f/2"]
    assert files.ready_after(cx, "f/2", limit=5) == []
    assert upload.state == "opening"


def test_turn_is_taken_once_in_its_time(cx: Connection) -> None:
    assert files.take_turn(cx, "swept", 1000, 100)
    assert not files.take_turn(cx, "swept", 1099, 100)
    assert not files.take_turn(cx, "swept", 999, 100)  # a clock a little behind
    assert files.take_turn(cx, "swept", 1100, 100)
    assert files.take_turn(cx, "swept", 500, 100)  # the clock had been wrong


def test_link_is_used_as_often_as_it_may_be(cx: Connection) -> None:
    file, _ = make(cx, 1)
    row = LinkRow("l_1", links.digest_of("t"), file.id, "ann", None, 2, 0, 1, 100, None)
    links.create_link(cx, row)
    assert links.link_by_token(cx, "t") == row
    assert links.link_by_token(cx, "l_1") is None
    assert not links.count_download(cx, "l_1", 100)
    assert [links.count_download(cx, "l_1", 99) for _ in range(3)] == [True, True, False]
    other = replace(row, id="l_2", digest="d", max_downloads=None, expires_at=None)
    links.create_link(cx, other)
    assert links.count_download(cx, "l_2", 10**15)
    assert links.revoke(cx, schema.links, "l_2", 5)
    assert not links.revoke(cx, schema.links, "l_2", 6)
    assert not links.count_download(cx, "l_2", 5)
    found, cursor = links.list_links(cx, owner="ann", file=file.id, limit=1, cursor=None)
    rest, end = links.list_links(cx, owner="ann", file=file.id, limit=1, cursor=cursor)
    assert ([*found, *rest][0].id, end) == ("l_2", None)
    assert links.list_links(cx, owner="bob", file=None, limit=5, cursor=None) == ([], None)


def test_upload_link_takes_what_it_holds(cx: Connection) -> None:
    row = UploadLinkRow("ul_1", "d", "ann", "in", 15, 0, 1, 100, None)
    links.create_upload_link(cx, row)
    links.reserve(cx, "ul_1", 10)
    with pytest.raises(TooLarge):
        links.reserve(cx, "ul_1", 6)
    file = a_file(1)
    files.create(cx, file, an_upload(file, upload_link="ul_1"), {}, 0)
    files.delete_file(cx, file)
    links.reserve(cx, "ul_1", 15)
    assert links.list_upload_links(cx, owner="ann", limit=5, cursor=None)[0][0].used_bytes == 15


def test_audit_is_read_backwards(cx: Connection) -> None:
    for number in range(5):
        audit.record(
            cx,
            at=number // 2,
            owner="ann",
            actor="admin",
            action="link.made",
            subject=f"l_{number}",
            details={"n": number},
        )
    seen: list[str] = []
    cursor = None
    while True:
        rows, cursor = audit.list_rows(cx, limit=2, cursor=cursor)
        seen += [row.subject for row in rows]
        if cursor is None:
            break
    assert sorted(seen) == [f"l_{number}" for number in range(5)]
    assert seen[0] == "l_4"
    assert len(audit.list_rows(cx, owner="ann", subject="l_1", limit=5)[0]) == 1
    assert audit.list_rows(cx, action="x", limit=5)[0] == []


@pytest.mark.parametrize("owner", ["ann", None])
@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ({}, "created_at_id"),
        ({"cursor": cursors.encode("new", (5, "f_5"))}, "created_at_id"),
        ({"path": "a"}, "path_name_id"),
        ({"path": "a", "below": True}, "path_name_id"),
        ({"q": "report january"}, None),
    ],
)
def test_lists_walk_an_index(
    cx: Connection, owner: str | None, wanted: dict[str, Any], index: str | None
) -> None:
    """None sorts, and none looks at rows that it does not show; SQLite says how it goes about it."""
    if cx.dialect.name != "sqlite":
        pytest.skip("asks SQLite's planner")
    asked: list[tuple[str, Any]] = []

    def note(_cx: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
        asked.append((statement, values))

    event.listen(cx, "before_cursor_execute", note)
    files.list_files(cx, owner=owner, limit=5, **wanted)
    *before, (statement, values) = list(asked)
    for counting, given in before:  # how many entries the words have, and where to end
        plan = [row[3] for row in cx.exec_driver_sql(f"EXPLAIN QUERY PLAN {counting}", given)]
        assert not any(step.startswith("SCAN file") or "TEMP" in step for step in plan), plan
    plan = [row[3] for row in cx.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert not any("TEMP B-TREE" in step for step in plan), plan
    if index is None:
        assert all(step.startswith(("SEARCH", "CORRELATED")) for step in plan), plan
    else:
        name = f"ix_files_{'owner_' if owner is not None else ''}{index}"
        assert len(plan) == 1, plan
        assert f"INDEX {name}" in plan[0], plan
        assert wanted == {} or "SEARCH" in plan[0], plan
        # The folder alone, or its beginning: not all that is the owner's.
        assert "path" not in wanted or "path=" in plan[0] or "path>" in plan[0], plan


@pytest.mark.parametrize("owner", ["ann", None])
def test_a_page_of_a_search_costs_the_same_however_many_have_the_word(
    cx: Connection, owner: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every page: the first, and one behind thousands of entries. SQLite's own steps are counted."""
    if cx.dialect.name != "sqlite":
        pytest.skip("counts SQLite's steps")
    monkeypatch.setattr(files, "SEEN", 10)
    driver: Any = cx.connection.dbapi_connection
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    def pages() -> list[int]:
        nonlocal steps
        cost, cursor = [], None
        while True:
            steps = 0
            found, cursor = files.list_files(
                cx, owner=owner, q="january february", limit=5, cursor=cursor
            )
            assert found == []
            cost.append(steps)
            if cursor is None:
                return cost

    months = ("january", "february")
    for number in range(40):
        make(cx, number, name=months[number % 2])
    driver.set_progress_handler(step, 10)
    few = pages()
    driver.set_progress_handler(None, 0)
    for number in range(40, 800):
        make(cx, number, name=months[number % 2])
    driver.set_progress_handler(step, 10)
    many = pages()
    driver.set_progress_handler(None, 0)
    assert len(many) == 41  # the last is empty: ten entries were there to be seen before it
    assert max(many) <= 2 * max(few)
