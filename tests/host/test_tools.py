"""pipx and uv themselves on a clean Debian 12: a tool as theirs, onto the host, off again.

In `make soak`: test_package does the same with an environment that is laid out as theirs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.debian13.test_debian13 import CLIENT, answered
from tests.host import clean_root as roots
from tests.host.machine import WHEELHOUSE_INSIDE, Machine, copy_source
from tests.host.test_deploy import healthz
from tests.host.test_package import DEBS, FIRST, holdover

pytestmark = [pytest.mark.host, pytest.mark.soak]

# A person's: `sudo` and root's home are all that is asked of a host.
ROOT = (*(name for name in roots.HOST if name not in ("git", "make")), "pipx")
TOOLS = {
    "pipx": (
        ["pipx", "install", "--python", "/usr/bin/python3"],
        ["--pip-args", f"--no-index --find-links {WHEELHOUSE_INSIDE}"],
    ),
    "uv": (
        ["/usr/local/bin/uv", "tool", "install", "--python", "/usr/bin/python3"],
        ["--offline", "--no-index", "--find-links", WHEELHOUSE_INSIDE],
    ),
}


@pytest.fixture(scope="module")
def wheel(wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    copy_source(tree)
    shutil.copytree(wheelhouse / "client", tree / CLIENT)
    make = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*make, "--wheel-dir", folder, tree], check=True)
    (made,) = folder.glob("holdover-*.whl")
    return made


@pytest.fixture
def machine(wheel: Path, tmp_path: Path) -> Iterator[Machine]:
    if needs.NO_MMDEBSTRAP:
        pytest.skip(needs.NO_MMDEBSTRAP)
    get = [sys.executable, "-m", "pip", "install", "--quiet", "--target", tmp_path / "uv", "uv"]
    subprocess.run(get, check=True)
    with Machine.boot(roots.debian(ROOT)) as booted:
        shutil.copyfile(wheel, booted.path(f"{DEBS}/{wheel.name}"))
        shutil.copy2(tmp_path / "uv/bin/uv", booted.path("/usr/local/bin/uv"))
        yield booted


@pytest.mark.parametrize("tool", list(TOOLS))
def test_a_tool_of_theirs_is_installed_onto_the_host_and_taken_off(
    machine: Machine, wheel: Path, tool: str
) -> None:
    before, after = TOOLS[tool]
    machine.run([*before, *after, f"{DEBS}/{wheel.name}[daemon]"], timeout_s=300)
    command = "/root/.local/bin/holdover"
    said = machine.run([command, "host", "install"], timeout_s=300).stderr
    assert f"Holdover {FIRST} is installed and runs as generation 1." in said
    assert (healthz(machine)["release"], healthz(machine)["generation"]) == (FIRST, 1)
    session = holdover(machine, "session", "new", "--agent", "demo", "hello").split()[0]
    answered(machine, session)
    holdover(machine, "file", "put", "/etc/hostname")
    assert machine.systemctl("list-units", "--failed", "--plain", "--no-legend").stdout == ""
    # It owns what it runs from: the tool may go.
    program = machine.run(["readlink", "-f", command]).stdout.strip()
    machine.run(["rm", "-r", str(Path(program).parents[1])])
    machine.systemctl("restart", "holdoverd@1.service")
    holdover(machine, "session", "send", session, "still there?", "--wait")
    machine.reboot()
    machine.systemctl("start", "holdover.target")
    holdover(machine, "session", "send", session, "and now?", "--wait")
    said = machine.run(["holdover", "host", "uninstall", "--purge"]).stderr
    assert "uninstalled" in said
    listed = ["list-units", "--all", "--plain", "--no-legend", "holdover*"]
    assert machine.systemctl(*listed).stdout == ""
    find = ["find", "/etc", "/opt", "/run", "/var/lib", "/usr/local", "-name", "*holdover*"]
    left = machine.run(find, check=False).stdout.split()
    assert [path for path in left if not path.startswith("/run/log")] == []
