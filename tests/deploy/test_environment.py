"""Which environments can be made a release, and how their programs are renamed."""

from __future__ import annotations

import pytest

from holdoverd.deploy import environment
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


def test_the_digest_tells_versions_and_pythons_apart_and_knows_no_order() -> None:
    parts = [("trio 1.0", "aa"), ("h11 2.0", "bb")]
    digest = environment.digest_of(parts, "cpython-311 /usr/bin/python3.11")
    assert digest == environment.digest_of(parts[::-1], "cpython-311 /usr/bin/python3.11")
    assert digest != environment.digest_of(parts, "cpython-313 /usr/bin/python3.13")
    assert digest != environment.digest_of([*parts[:1], ("h11 2.1", "bb")], "cpython-311 /usr/…")


def test_a_checkout_is_sent_to_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InstallError, match="make install"):
        environment.find_parts()
    monkeypatch.setattr(environment.sys, "prefix", environment.sys.base_prefix)
    with pytest.raises(InstallError, match="pipx install"):
        environment.find_parts()
