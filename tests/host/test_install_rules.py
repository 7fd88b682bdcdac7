"""What the installer decides, without a host."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from holdoverd.deploy import layout
from tests.host.machine import SOURCE
from tests.needs import needs_root


def load(path: Path) -> ModuleType:
    """The installer is a program beside the packages, not a part of one."""
    spec = importlib.util.spec_from_file_location("holdover_hostinstall", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


installer = load(SOURCE / "packaging/hostinstall.py")


def release(name: str, digest: str) -> object:
    version = name.partition("+")[0]
    return installer.Release(name=name, version=version, digest=digest, python="/usr/bin/python3")


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ([], ("1.0", False)),
        ([("1.0", "this")], ("1.0", True)),
        ([("1.0", "other")], ("1.0+1", False)),
        ([("1.0", "other"), ("1.0+1", "this")], ("1.0+1", True)),
        ([("1.0", "other"), ("1.0+1", "another")], ("1.0+2", False)),
        # A hole in the numbers may be filled: the folder is not there, so nobody runs it.
        ([("1.0", "other"), ("1.0+2", "another")], ("1.0+1", False)),
        ([("0.9", "this")], ("1.0", False)),
    ],
)
def test_a_release_is_recognised_or_gets_a_folder_of_its_own(
    installed: list[tuple[str, str]], expected: tuple[str, bool]
) -> None:
    releases = [release(name, digest) for name, digest in installed]
    assert installer.choose_release("1.0", "this", releases) == expected


@pytest.mark.parametrize(
    ("recorded", "units", "expected"),
    [
        (0, [], 1),
        (4, [], 5),
        (0, ["holdoverd@7.service"], 8),
        (9, ["holdoverd@7.service", "holdoverd@10.service"], 11),
        (0, ["holdoverd@.service", "holdoverd@x.service", "holdoverd@3.service.d"], 1),
        (0, ["holdoverd@99999999999999.service"], 1),
    ],
)
def test_a_generation_is_never_reused(recorded: int, units: list[str], expected: int) -> None:
    assert layout.next_generation(recorded, units) == expected


def test_a_placeholder_that_nothing_fills_is_refused_by_name() -> None:
    assert layout.render("a @X@ c", {"X": "b"}) == "a b c"
    with pytest.raises(layout.InstallError, match="asks for @Y@"):
        layout.render("@Y@", {"X": "b"})


def test_every_placeholder_of_every_template_is_filled() -> None:
    units = installer.render_all(SOURCE / "units", release_dir="/release")
    assert sorted(units) == [
        "holdover-admin.socket",
        "holdover-agent-holdover-agent.socket",
        "holdover-agent-holdover-agent@.service",
        "holdover-agents.slice",
        "holdover-boot.service",
        "holdover-deploy@1.service",
        "holdover-processor-holdover-agent.socket",
        "holdover-processor-holdover-agent@.service",
        "holdover-s3.service",
        "holdover-s3.socket",
        "holdover-storage.service",
        "holdover-worker.socket",
        "holdover-worker@.service",
        "holdover.slice",
        "holdover.socket",
        "holdover.target",
        "holdoverd@1.service",
    ]
    for name, text in units.items():
        assert "@ACCOUNT" not in text, name
        assert "@RELEASE" not in text, name
    # Each file of units/ is one that an install writes.
    files = {path.name for path in (SOURCE / "units").iterdir() if path.is_file()}
    templates = {name for name in files if name.endswith(".in")}
    assert files - templates == set(installer.FIXED_UNITS)
    assert len(templates) == len(units) - len(installer.FIXED_UNITS)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    copy = tmp_path / "tree"
    installer.copy_tree(copy)
    return copy


def test_the_digest_tells_a_changed_tree_from_the_same_one(tree: Path) -> None:
    before = installer.tree_digest(tree)
    cache = tree / "daemon/holdoverd/__pycache__/left.cpython-311.pyc"
    cache.parent.mkdir(exist_ok=True)
    cache.write_bytes(b"bytecode")
    for made in ("client/node_modules/x/index.js", "static/index.html"):
        path = tree / "daemon/holdoverd/web" / made
        path.parent.mkdir(parents=True)
        path.write_text("made from the inputs")
    assert installer.tree_digest(tree) == before

    (tree / "units/holdover.target").write_text("[Unit]\n")
    changed = installer.tree_digest(tree)
    assert changed != before
    (tree / "units/holdover.target").rename(tree / "units/renamed.target")
    assert installer.tree_digest(tree) not in (before, changed)


def test_the_version_is_the_packages_own(tree: Path) -> None:
    import holdoverd

    assert installer.tree_version(tree) == holdoverd.__version__


def test_a_wheelhouse_for_other_locks_is_not_complete(tmp_path: Path) -> None:
    assert not installer.wheelhouse_is_complete(tmp_path)
    (tmp_path / "COMPLETE").write_text(installer.wheelhouse_stamp(SOURCE))
    assert installer.wheelhouse_is_complete(tmp_path)
    (tmp_path / "COMPLETE").write_text("cpython-39 riscv64 0\n")
    assert not installer.wheelhouse_is_complete(tmp_path)


def test_files_and_links_are_written_only_when_they_differ(tmp_path: Path) -> None:
    path = tmp_path / "folder/unit"
    assert installer.write_if_changed(path, "one")
    assert not installer.write_if_changed(path, "one")
    assert installer.write_if_changed(path, "two")
    assert path.read_text() == "two"

    link = tmp_path / "current"
    assert layout.link(link, "1")
    assert not layout.link(link, "1")
    assert layout.link(link, "2")
    assert link.readlink() == Path("2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["current", "folder"]


def test_units_of_generations_long_gone_are_forgotten() -> None:
    kinds = ("holdoverd", "holdover-deploy")
    units = [f"{kind}@{n}.service" for kind in kinds for n in range(1, 16)]
    others = ["holdoverd@.service", "holdover-agent-bob@1.service", "holdover-agent-x@.service"]
    found = layout.forgotten([*units, *others], newest=15, needed=[2, 15])
    assert found == sorted(f"{kind}@{n}.service" for kind in kinds for n in (1, 3, 4, 5))
    assert layout.forgotten(units, newest=10, needed=[]) == []
    assert layout.forgotten([], newest=100, needed=[]) == []


@needs_root
def test_a_python_below_a_private_home_is_passed_over(tmp_path: Path) -> None:
    """Releases run as users of their own; root's interpreter may be out of their reach."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    shutil.copyfile("/usr/bin/python3", private / "python3")
    (private / "python3").chmod(0o755)
    show = f'. {SOURCE}/packaging/find-python; echo "$python"'
    done = subprocess.run(
        ["sh", "-euc", show],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(private / "python3")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "/usr/bin/python3"


def test_without_a_usable_python_it_says_which_to_install(tmp_path: Path) -> None:
    script = (SOURCE / "packaging/find-python").read_text()
    alone = tmp_path / "find-python"
    alone.write_text(script.replace("/usr/bin/python3 ", ""))  # the one fixed place
    done = subprocess.run(
        ["/bin/sh", "-euc", f'. {alone}; echo "$python"'],
        env={"PATH": "/nonexistent", "PYTHON": "/bin/false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no Python of at least 3.11" in done.stderr
    assert "apt-get install" in done.stderr
