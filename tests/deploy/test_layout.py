"""Making a generation permanent, cut off between any two things that are done on the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdoverd.deploy import layout

OLD, NEW = 7, 8


class PowerCut(BaseException):
    """Nothing that comes after it is done."""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Generation 7 is permanent, 8 is installed: releases ``0.7.0`` and ``0.8.0``."""
    places = {
        "RELEASES": "opt/releases",
        "UNITS": "units",
        "STATE": "state",
        "COMMAND": "bin/holdover",
        "PACKAGED_COMMAND": "usr-bin/holdover",
        "HISTORY": "opt/history",
    }
    for name, place in places.items():
        monkeypatch.setattr(layout, name, tmp_path / place)
    for folder in ("opt", "units", "state", "bin"):
        (tmp_path / folder).mkdir()
    for generation in (OLD, NEW):
        (tmp_path / f"units/holdoverd@{generation}.service").write_text(
            f"[Service]\nExecStart={tmp_path}/opt/releases/0.{generation}.0/bin/python -m holdoverd\n"
        )
    layout.commit(OLD)
    return tmp_path


def cut_before(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The power goes before the change number `count` that reaches the disk."""
    left = count

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def changing(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if not left:
                raise PowerCut
            left -= 1
            return change(*arguments, **named)

        return changing

    for name in ("symlink_to", "replace", "write_text", "unlink"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))


def test_a_commit_cut_off_anywhere_leaves_one_generation_that_boots(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for count in range(100):
        with monkeypatch.context() as cutting:
            cut_before(count, cutting)
            try:
                layout.commit(NEW)
            except PowerCut:
                whole = False
            else:
                whole = True
        current = layout.current_generation()
        # There is always one, and its units and its release are there.
        assert current in (OLD, NEW)
        assert layout.release_of_generation(current) == f"0.{current}.0"
        assert (host / "bin/holdover").is_symlink()
        seen.append(current)
        if whole:
            break
        layout.commit(NEW)  # taken up again, it is whole
        assert layout.current_generation() == NEW
        assert (host / "bin/holdover").readlink().parent.parent.name == "0.8.0"
        assert layout.committed()[-1] == "0.8.0"
        layout.commit(OLD)
    # Once it is the new one, it stays: by one rename, whatever comes after.
    assert seen == sorted(seen)
    assert set(seen) == {OLD, NEW}
