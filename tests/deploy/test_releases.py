"""What a wheel is made a release of: itself, and what its own lock file names."""

import zipfile
from pathlib import Path

import pytest

from holdoverd.deploy.layout import InstallError
from holdoverd.deploy.releases import LOCK, _lock_of


def wheel(folder: Path, **files: bytes) -> Path:
    path = folder / "holdover-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_a_wheel_brings_the_hashes_of_what_it_needs(tmp_path: Path) -> None:
    lock = b"trio==1 --hash=sha256:00\n"
    assert _lock_of(wheel(tmp_path, **{LOCK: lock})) == lock


def test_one_without_them_is_no_release(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="so nobody could say what it was tested with"):
        _lock_of(wheel(tmp_path, **{"holdoverd/__init__.py": b""}))


def test_what_is_no_wheel_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "holdover-1.0-py3-none-any.whl"
    path.write_bytes(b"no zip")
    with pytest.raises(InstallError, match="is no wheel"):
        _lock_of(path)
