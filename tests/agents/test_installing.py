"""Programs of agents, side by side by version; a stand-in plays npm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdoverd.agents import installing
from holdoverd.agents.installing import AgentInstallError

# `view SPEC version --json` tells $LATEST for @latest and else what was asked for; `pack SPEC` makes
# a package whose program says its version; version 0.0.1 has none, and 9.9.9 is nobody's.
NPM = r"""#!/bin/sh
set -eu
echo "$*" >>"$NPM_LOG"
version=${2##*@}
case $version in
    latest) version=$LATEST ;;
    9.9.9) echo "npm error code ETARGET" >&2; exit 1 ;;
esac
case $1 in
    view) echo "\"$version\"" ;;
    pack)
        target=${3#--pack-destination=}
        mkdir package
        name=claude
        [ "$version" != 0.0.1 ] || name=other
        printf '#!/bin/sh\necho %s\n' "$version" >package/$name
        chmod 755 package/$name
        tar --create --gzip --file "$target/x-$version.tgz" package
        ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    programs = tmp_path / "path"
    programs.mkdir()
    (programs / "npm").write_text(NPM)
    (programs / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("NPM_LOG", str(tmp_path / "npm.log"))
    monkeypatch.setenv("LATEST", "2.1.10")
    return tmp_path / "agents"


def asked(folder: Path) -> list[str]:
    log = folder.parent / "npm.log"
    return [line.split(" --")[0] for line in log.read_text().splitlines()] if log.exists() else []


def test_versions_stay_side_by_side_and_one_is_used(folder: Path) -> None:
    machine = installing.platform_package("", os.uname().machine, glibc=True)
    first = installing.install(folder, "claude@2.1.9")
    assert (first.version, first.used) == ("2.1.9", True)
    newest = installing.install(folder, "claude")
    assert newest.version == "2.1.10"
    assert [(one.version, one.used) for one in installing.installed(folder)] == [
        ("2.1.9", False),
        ("2.1.10", True),
    ]
    assert (folder / "bin/claude").resolve() == newest.program
    assert os.access(newest.program, os.X_OK)
    # One that is there is used again without asking anybody.
    before = len(asked(folder))
    assert installing.install(folder, "claude@2.1.9").used
    assert len(asked(folder)) == before
    assert any(line.endswith(f"{machine}@2.1.9") for line in asked(folder))
    assert not list(folder.glob("claude/.new-*"))


def test_a_failure_leaves_what_was_used_in_use(folder: Path) -> None:
    installing.install(folder, "claude@2.1.9")
    with pytest.raises(AgentInstallError, match="ETARGET"):
        installing.install(folder, "claude@9.9.9")
    with pytest.raises(AgentInstallError, match="holds no program"):
        installing.install(folder, "claude@0.0.1")
    assert [(one.version, one.used) for one in installing.installed(folder)] == [("2.1.9", True)]
    assert sorted(path.name for path in (folder / "claude").iterdir()) == ["2.1.9"]


def test_without_npm_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(AgentInstallError, match="apt-get install npm"):
        installing.install(folder, "claude")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("claude", ("claude", "latest")),
        ("claude@", ("claude", "latest")),
        ("claude@2.1.330", ("claude", "2.1.330")),
        ("claude@stable", ("claude", "stable")),
    ],
)
def test_what_may_be_asked_for(text: str, expected: tuple[str, str]) -> None:
    assert installing.parse_wanted(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "cursor", "claude@-g", "claude@../x", "claude@http://x", "claude@a b", "claude@1;2"],
)
def test_what_may_not(text: str) -> None:
    with pytest.raises(AgentInstallError):
        installing.parse_wanted(text)


@pytest.mark.parametrize("answer", [None, [], {}, 3, "latest", ["x"], "../../etc"])
def test_npms_word_is_a_version_or_nothing(answer: object) -> None:
    with pytest.raises(AgentInstallError, match="knows no version"):
        installing.newest_of(answer, "x")


def test_the_last_of_several_versions_is_taken() -> None:
    assert installing.newest_of(["2.1.1", "2.1.2"], "x") == "2.1.2"


def test_a_machine_without_a_program_is_named() -> None:
    assert installing.platform_package("@a/b", "aarch64", glibc=False) == "@a/b-linux-arm64-musl"
    with pytest.raises(AgentInstallError, match="riscv64"):
        installing.platform_package("@a/b", "riscv64", glibc=True)
