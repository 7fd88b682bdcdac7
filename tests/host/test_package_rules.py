"""What the Debian package decides and writes, without a host and without building one."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from holdover.main import COMMANDS
from holdoverd.deploy.layout import InstallError
from holdoverd.deploy.package import choose, next_lines, to_prune
from holdoverd.settings import SETTINGS, load
from tests.host.machine import SOURCE

sys.path.insert(0, str(SOURCE / "packaging"))  # the programs there import each other


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SOURCE / f"packaging/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


debpackage = program("debpackage")
manual = program("manual")
FILES: dict[str, str] = manual.files()


@pytest.mark.parametrize("may_start", [True, False])
@pytest.mark.parametrize("target_active", [True, False])
@pytest.mark.parametrize("current", [None, "1+deb12", "2+deb12"])
def test_what_a_configured_package_does(
    may_start: bool, target_active: bool, current: str | None
) -> None:
    way = choose(
        landed="2+deb12", current=current, may_start=may_start, target_active=target_active
    )
    if current == "2+deb12":
        assert way == "nothing"
    elif not may_start:
        assert way == "boot"
    elif current is None or target_active:
        assert way == "start"
    else:
        assert way == "boot", "somebody has stopped it"


def test_the_release_before_stays_and_older_packaged_ones_go() -> None:
    installed = ["0.1.0", "1+deb12", "2+deb12", "3+deb12", "4+deb12"]
    committed = ["0.1.0", "1+deb12", "2+deb12", "3+deb12", "2+deb12"]
    # 4 has just landed and was taken back; 0.1.0 came from a checkout.
    assert to_prune(installed, committed, "4+deb12") == ["1+deb12"]
    assert to_prune(installed, [], "4+deb12") == ["1+deb12", "2+deb12", "3+deb12"]


def test_a_first_install_prints_three_lines_to_type() -> None:
    lines = [
        line for line in next_lines("1.2+deb12", "127.0.0.1:1").splitlines() if line[:4] == "    "
    ]
    assert len(lines) == 3
    assert "Holdover 1.2 serves on http://127.0.0.1:1." in next_lines("1.2+deb12", "127.0.0.1:1")


def test_packages_are_for_the_release_they_are_built_on() -> None:
    assert debpackage.debian_release('ID=debian\nVERSION_ID="13"\n') == "deb13"
    with pytest.raises(InstallError, match="Fedora"):
        debpackage.debian_release('ID=fedora\nVERSION_ID=40\nPRETTY_NAME="Fedora"\n')
    assert debpackage.interpreter_package("/usr/bin/python3.11") == "python3.11"
    with pytest.raises(InstallError, match="PYTHON=/usr/bin/python3"):
        debpackage.interpreter_package("/opt/python/bin/python3.12")


def test_conffiles_and_scripts_are_there() -> None:
    for script in ("postinst", "prerm", "postrm"):
        subprocess.run(["sh", "-n", SOURCE / "packaging/debian" / script], check=True)
    assert debpackage.CONFFILES == ("/etc/holdover/holdover.toml",)


# --- the manual -------------------------------------------------------------------------------


def test_the_shipped_configuration_changes_nothing_and_names_every_setting(tmp_path: Path) -> None:
    text = FILES["holdover.toml"]
    path = tmp_path / "holdover.toml"
    path.write_text(text)
    assert load([path], {}) == load([], {})
    # With every line taken in, it is still TOML, and still the defaults.
    taken_in = re.sub(r"^#(?=\[|[a-z_]+ = )", "", text, flags=re.MULTILINE)
    document = tomllib.loads(taken_in)
    for row in SETTINGS:
        section = document
        for part in row.section.split("."):
            section = section[part]
        default = row.default
        if row.kind == "pairs":
            default = {}
        elif isinstance(default, tuple):
            default = list(default)
        assert section[row.key] == default, f"[{row.section}] {row.key}"
    assert max(map(len, text.splitlines())) <= 100


def test_every_command_has_a_page_and_every_setting_its_entry() -> None:
    for name in COMMANDS:
        page = FILES[f"man/man1/holdover-{name}.1"]
        assert page.startswith(f'.TH "HOLDOVER-{name.upper()}" "1"')
        assert manual.roff(f"holdover-{name}") in FILES["man/man1/holdover.1"]
    for row in SETTINGS:
        assert row.key in FILES["man/man5/holdover.toml.5"]


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff (Debian: groff-base)")
@pytest.mark.parametrize("name", sorted(name for name in FILES if name.startswith("man/")))
def test_pages_are_sound_to_troff(name: str) -> None:
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-Kutf8", "-z"],
        input=FILES[name],
        capture_output=True,
        text=True,
        check=True,
    )
    complaints = [line for line in done.stderr.splitlines() if "cannot adjust" not in line]
    assert [line for line in complaints if "can't break" not in line] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_are_what_their_shell_reads(shell: str) -> None:
    (text,) = [text for name, text in FILES.items() if name.startswith(shell)]
    assert f"_HOLDOVER_COMPLETE={shell}_complete" in text
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n"], input=text, text=True, check=True)
