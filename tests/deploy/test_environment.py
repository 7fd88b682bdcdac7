"""Which environments can be made a release, and how their programs are renamed."""

from __future__ import annotations

from pathlib import Path, PurePath

import pytest

from holdoverd.deploy import environment
from holdoverd.deploy.environment import Part
from holdoverd.deploy.layout import InstallError

PYTHON = "/opt/holdover/releases/1.0/bin/python"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (b"#!/root/.local/pipx/bin/python\nimport sys\n", b"#!%b\nimport sys\n"),
        (b"#!/usr/bin/env python3\nimport sys\n", b"#!%b\nimport sys\n"),
        (
            b"#!/bin/sh\n'''exec' /very/long/python \"$0\" \"$@\"\n' '''\nimport sys\n",
            b"#!%b\nimport sys\n",
        ),
        (b"#!/bin/sh\nexec weed\n", b"#!/bin/sh\nexec weed\n"),
        (b"#!/usr/bin/perl\nprint;\n", b"#!/usr/bin/perl\nprint;\n"),
        (b"\x7fELF\x02\x01", b"\x7fELF\x02\x01"),
        (b"", b""),
        (b"#!python", b"#!%b\n"),
    ],
)
def test_a_program_runs_by_the_releases_python(script: bytes, expected: bytes) -> None:
    wanted = expected.replace(b"%b", PYTHON.encode())
    assert environment.renamed_interpreter(script, PYTHON) == wanted


@pytest.mark.parametrize(
    "executable",
    [
        "/root/.local/share/uv/python/cpython-3.13/bin/python3.13",
        "/home/alice/.pyenv/versions/3.12.1/bin/python3.12",
        "/tmp/python/bin/python3.11",
    ],
)
def test_a_python_that_the_daemon_may_not_see_is_refused_by_name(executable: str) -> None:
    with pytest.raises(InstallError, match=r"may not see.*--python /usr/bin/python3"):
        environment.check_interpreter(executable)


def test_the_hosts_own_pythons_are_taken() -> None:
    for executable in ("/usr/bin/python3.11", "/usr/local/bin/python3.13", "/opt/python/bin/p"):
        environment.check_interpreter(executable)


def test_the_digest_is_of_contents_and_not_of_the_place(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        program = tmp_path / name / "bin/holdover"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!{tmp_path}/{name}/bin/python\nimport holdover\n")
        module = tmp_path / name / "holdover.py"
        module.write_text("x = 1\n")
        parts = [Part("bin/holdover", program), Part("site-packages/holdover.py", module)]
        found.append(environment.digest_of(parts, "/usr/bin/python3.11"))
    assert found[0] == found[1]
    assert environment.digest_of(parts, "/usr/bin/python3.13") != found[0]
    module.write_text("x = 2\n")
    assert environment.digest_of(parts, "/usr/bin/python3.11") != found[0]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("bin/holdover", True),
        ("bin/weed", True),
        ("bin/python3.11", False),
        ("bin/activate.fish", False),
        ("bin/pip3", False),
        ("site-packages/holdoverd/main.py", True),
        ("site-packages/holdoverd/units/holdover.socket", True),
        ("site-packages/trio-0.30.0.dist-info/RECORD", True),
        ("site-packages/botocore/wheel/x.py", True),
        ("site-packages/holdoverd/__pycache__/main.cpython-311.pyc", False),
        ("site-packages/old.pyc", False),
        ("site-packages/pip/__init__.py", False),
        ("site-packages/pip-24.0.dist-info/METADATA", False),
        ("site-packages/pipx_shared.pth", False),
        ("site-packages/distutils-precedence.pth", False),
        ("site-packages/_distutils_hack/__init__.py", False),
    ],
)
def test_what_adds_things_is_no_part_of_a_release(path: str, expected: bool) -> None:
    assert environment.belongs(PurePath(path)) == expected


def test_a_checkout_is_sent_to_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InstallError, match="make install"):
        environment.find_parts()
    monkeypatch.setattr(environment.sys, "prefix", environment.sys.base_prefix)
    with pytest.raises(InstallError, match="pipx install"):
        environment.find_parts()
