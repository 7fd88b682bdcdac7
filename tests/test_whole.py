"""A small file is written whole, with the mode asked for, and never through a link."""

import os
import stat
from pathlib import Path

import pytest

from holdoverd.whole import write_whole


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_has_its_text_and_its_mode_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o777)
    try:
        for text in ("one\n", "", "zwölf\n"):
            write_whole(tmp_path / "file", text, mode=mode, sync=True)
            assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
            assert (tmp_path / "file").read_text(encoding="utf-8") == text
    finally:
        os.umask(before)
    assert os.listdir(tmp_path) == ["file"]


def test_links_in_its_way_are_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for name in ("file", f".file.{os.getpid()}"):
        (tmp_path / name).symlink_to(victim)
    write_whole(tmp_path / "file", "mine")
    assert (victim.read_text(), (tmp_path / "file").read_text()) == ("untouched", "mine")
    assert not (tmp_path / "file").is_symlink()


def test_a_folder_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "file", "text")
