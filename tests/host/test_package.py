"""The Debian package on a clean Debian 12: install, upgrade under streams, broken, downgrade, gone.

One package is really built. Its next version, and a broken one, are the same package repacked with
another version and a line of its code replaced: what an upgrade brings, without building it again.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from tests import needs
from tests.host import clean_root as roots
from tests.host.machine import SOURCE, Machine, MachineError, copy_source
from tests.host.test_deploy import healthz
from tests.live.up import wait_until
from tests.live.watcher import Watcher

pytestmark = pytest.mark.host

DEBS = "/usr/src"
FIRST, NEXT, BROKEN = "0.2.0", "0.3.0", "0.4.0"
STREAMS = 40
FIRST_SESSION_S = 90
"""Three times the figure of 30 s."""


def built(source: Path, output: Path, wheelhouse: Path) -> Path:
    command = [source / "packaging/deb", "--output", output, "--wheelhouse", wheelhouse]
    done = subprocess.run(
        [*command, "--level", "1"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def repacked(package: Path, version: str, *patches: tuple[str, str, str]) -> Path:
    """The package as another version, with `patches`: (module file, text, its replacement)."""
    suffix = package.name.split("_")[1].partition("+")[2]
    name, before = f"{version}+{suffix}", package.name.split("_")[1]
    tree = package.parent / f"tree-{version}"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace(f"Version: {before}", f"Version: {name}"))
    release = tree / "usr/lib/holdover/release"
    record = json.loads((release / "release.json").read_text())
    record |= {"name": name, "version": version, "digest": version}
    (release / "release.json").write_text(json.dumps(record))
    for script in (release / "bin").iterdir():
        if not script.is_symlink() and script.read_bytes()[:2] == b"#!":
            script.write_text(script.read_text().replace(f"/{before}/", f"/{name}/"))
    (site,) = release.glob("lib/python3*/site-packages/holdoverd")
    for file, old, new in (("__init__.py", f'"{FIRST}"', f'"{version}"'), *patches):
        path = site / file
        assert old in path.read_text(), f"{file} has no {old!r}"
        path.write_text(path.read_text().replace(old, new, 1))
        # What was compiled is never compared with its source.
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()
    made = package.with_name(f"holdover_{name}_amd64.deb")
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zzstd", "-z1", "-b", tree, made],
        check=True,
        capture_output=True,
    )
    shutil.rmtree(tree)
    return made


def with_next(first: Path) -> dict[str, Path]:
    """A package, its next version, and one that cannot start."""
    broken = ("main.py", "import argparse\n", "import argparse\nimport no_such_module\n")
    return {FIRST: first, NEXT: repacked(first, NEXT), BROKEN: repacked(first, BROKEN, broken)}


@pytest.fixture(scope="module")
def packages(
    wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    if needs.NO_MMDEBSTRAP:
        pytest.skip(needs.NO_MMDEBSTRAP)
    folder = tmp_path_factory.mktemp("debs")
    yield with_next(built(SOURCE, folder, wheelhouse))
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def machine(packages: dict[str, Path]) -> Iterator[Machine]:
    """Booted, and without what makes environments: a package asks for no build tools."""
    packages_wanted = tuple(name for name in roots.HOST if name not in ("git", "make"))
    with Machine.boot(roots.debian(packages_wanted)) as booted:
        for path in packages.values():
            shutil.copyfile(path, booted.path(f"{DEBS}/{path.name}"))
        booted.write("/etc/holdover/holdover.d/test.toml", "[deploy]\nbake_s = 2\n")
        yield booted


def apt(machine: Machine, *arguments: str) -> str:
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "-y", "-o", "Dpkg::Use-Pty=0", *arguments]
    done = machine.run(command, env=environment, timeout_s=300)
    return done.stdout + done.stderr


def install(machine: Machine, packages: dict[str, Path], version: str, *options: str) -> str:
    return apt(machine, *options, "install", f"{DEBS}/{packages[version].name}")


def holdover(machine: Machine, *arguments: str) -> str:
    return machine.run(["holdover", *arguments], timeout_s=120).stdout


def runs_of_sockets(machine: Machine) -> dict[str, str]:
    """{socket: its current run}: unchanged means not restarted."""
    listing = machine.systemctl("list-units", "--plain", "--no-legend", "holdover*.socket").stdout
    return {
        unit: machine.show(unit, "InvocationID")
        for unit in (line.split()[0] for line in listing.splitlines())
    }


def alone(machine: Machine, generation: int) -> None:
    def found() -> bool:
        listed = json.loads(holdover(machine, "status", "--json"))["instances"]
        return [(one["generation"], one["state"]) for one in listed] == [(generation, "serving")]

    wait_until(found, f"generation {generation} serves alone", 60)


def installed_version(machine: Machine) -> str:
    query = ["dpkg-query", "-W", "-f", "${db:Status-Abbrev}${Version}", "holdover"]
    return machine.run(query).stdout


def name_of(packages: dict[str, Path], version: str) -> str:
    """The version as this Debian's package has it: 0.2.0+deb12."""
    return packages[version].name.split("_")[1]


# --- in order ---------------------------------------------------------------------------------


@pytest.mark.soak  # a build more
def test_the_same_tree_gives_the_same_bytes(
    packages: dict[str, Path], wheelhouse: Path, tmp_path: Path
) -> None:
    """Built from another folder, at another time."""
    tree = tmp_path / "elsewhere/tree"
    tree.parent.mkdir()
    subprocess.run(["git", "clone", "--quiet", SOURCE, tree], check=True)
    copy_source(tree)  # with what is not committed yet
    again = built(tree, tmp_path, wheelhouse)
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (again, packages[FIRST])}
    assert len(digests) == 1


def test_an_install_gives_a_serving_host_and_a_session_within_half_a_minute(
    machine: Machine, packages: dict[str, Path]
) -> None:
    started = time.monotonic()
    said = install(machine, packages, FIRST)
    session = holdover(machine, "session", "new", "--agent", "demo", "hello").split()[0]

    def answered() -> bool:
        shown = json.loads(holdover(machine, "session", "show", "--json", session))
        return bool(shown["state"] == "idle" and shown["last_seq"] > 2)

    wait_until(answered, "the demo has answered", 60)
    took = time.monotonic() - started
    print(f"from `apt install` to the first answer: {took:.1f} s")
    assert took < FIRST_SESSION_S
    assert "Holdover 0.2.0 serves on http://127.0.0.1:8780" in said
    for line in ("holdover session new", "usermod -aG holdover-admin", "holdover token new"):
        assert re.search(rf"^ +{line}", said, re.MULTILINE), said
    assert (healthz(machine)["release"], healthz(machine)["generation"]) == (FIRST, 1)
    assert machine.run(["readlink", "/usr/bin/holdover"]).stdout == "/opt/holdover/command\n"
    assert holdover(machine, "config", "check").startswith("No mistakes in /etc/holdover")
    # dpkg's own files are as they came, and the release is no one's to change.
    assert machine.run(["dpkg", "--verify", "holdover"]).stdout == ""
    find = ["find", "/opt/holdover", "/usr/lib/holdover", "-not", "-type", "l"]
    assert machine.run([*find, "-perm", "/022"]).stdout == ""
    assert machine.systemctl("list-units", "--failed", "--plain", "--no-legend").stdout == ""
    holdover(machine, "session", "end", session)


def test_again_changes_and_restarts_nothing(machine: Machine, packages: dict[str, Path]) -> None:
    before, sockets = machine.show("holdoverd@1.service", "InvocationID"), runs_of_sockets(machine)
    install(machine, packages, FIRST, "--reinstall")
    assert machine.show("holdoverd@1.service", "InvocationID") == before
    assert runs_of_sockets(machine) == sockets
    assert machine.run(["readlink", "/var/lib/holdover/current"]).stdout == "1\n"


async def test_an_upgrade_under_streams_refuses_loses_and_closes_nothing(
    machine: Machine, packages: dict[str, Path]
) -> None:
    sockets = runs_of_sockets(machine)
    token = json.loads(holdover(machine, "token", "new", "--name", "watchers", "--json"))["token"]
    sessions = [
        holdover(machine, "session", "new", "--agent", "demo", "stream 3000 rate 20").split()[0]
        for _ in range(4)
    ]
    watchers = [
        Watcher(
            Path("/nowhere"),
            sessions[number % len(sessions)],
            dial=partial(machine.connect_tcp, 8780),
            token=token,
        )
        for number in range(STREAMS)
    ]
    refused: list[str] = []
    asked = 0
    async with trio.open_nursery() as nursery:
        for watcher in watchers:
            nursery.start_soon(watcher.run)
        with trio.fail_after(60):
            for watcher in watchers:
                await watcher.live.wait()
        over = trio.Event()

        async def ask() -> None:
            nonlocal asked
            while not over.is_set():
                asked += 1
                try:
                    await trio.to_thread.run_sync(healthz, machine)
                except (OSError, ValueError, http.client.HTTPException) as error:
                    refused.append(repr(error))
                await trio.sleep(0.02)

        nursery.start_soon(ask)
        started = time.monotonic()
        said = await trio.to_thread.run_sync(install, machine, packages, NEXT)
        took = time.monotonic() - started
        await trio.to_thread.run_sync(holdover, machine, "drain", "--migrate")
        await trio.to_thread.run_sync(alone, machine, 2)
        over.set()
        # Everybody hears the new instance.
        with trio.fail_after(60):
            for watcher in watchers:
                heard = len(watcher.frames)
                await watcher.wait(lambda one, heard=heard: len(one.frames) != heard)
        nursery.cancel_scope.cancel()
    print(f"upgrade with {STREAMS} streams: {took:.1f} s, {asked} requests meanwhile")
    assert "serves as generation 2" in said
    assert refused == []
    assert [watcher.closes for watcher in watchers] == [[]] * STREAMS
    assert {watcher.connects for watcher in watchers} == {1}
    assert healthz(machine) == {"status": "ok", "generation": 2, "release": NEXT}
    assert runs_of_sockets(machine) == sockets
    for session in sessions:
        shown = json.loads(holdover(machine, "session", "show", "--json", session))
        assert (shown["state"], shown["generation"]) == ("working", 2)
        holdover(machine, "session", "end", session)
    # The release before stays, for a rollback.
    assert machine.run(["ls", "/opt/holdover/releases"]).stdout.split() == [
        name_of(packages, FIRST),
        name_of(packages, NEXT),
    ]


def test_a_broken_version_is_configured_and_taken_back(
    machine: Machine, packages: dict[str, Path]
) -> None:
    said = install(machine, packages, BROKEN)
    assert "was taken back" in said
    assert "no_such_module" in said
    assert installed_version(machine) == f"ii {name_of(packages, BROKEN)}"
    assert machine.show("holdover-deploy@3.service", "ActiveState") == "failed"
    assert healthz(machine) == {"status": "ok", "generation": 2, "release": NEXT}
    status = holdover(machine, "status")
    assert re.search(
        rf"Last deploy: generation 3, release {re.escape(BROKEN)}\S*, rolled back", status
    )
    assert "no_such_module" in status
    # The command is the serving release's, not that of the one that was taken back.
    assert NEXT in machine.run(["readlink", "/opt/holdover/command"]).stdout


def test_a_downgrade_is_a_deploy_too(machine: Machine, packages: dict[str, Path]) -> None:
    said = install(machine, packages, FIRST, "--allow-downgrades")
    assert "serves as generation 4" in said
    alone(machine, 4)
    assert healthz(machine)["release"] == FIRST


def test_who_has_stopped_it_is_not_surprised_by_an_upgrade(
    machine: Machine, packages: dict[str, Path]
) -> None:
    holdover(machine, "stop")
    said = install(machine, packages, NEXT)
    assert "starts with `systemctl start holdover.target`" in said
    assert machine.show("holdover.target", "ActiveState") == "inactive"
    machine.systemctl("start", "holdover.target")
    wait_until(lambda: healthz(machine)["release"] == NEXT, "the new release serves", 60)


def findings(machine: Machine) -> dict[str, tuple[str, str]]:
    """{what is wrong: (area, remedy)}, as the doctor tells it."""
    done = machine.run(["holdover", "doctor", "--json"], check=False, timeout_s=120)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    failed = {
        one["what"]: (one["area"], one["remedy"]) for one in found if one["level"] == "failed"
    }
    assert done.returncode == (1 if failed else 0), done.stderr
    areas = {one["area"] for one in found}
    assert areas >= {"daemon", "sockets", "limits", "clock", "disk", "deploy"}
    # Without a configuration nobody knows where these are.
    assert {"configuration"} & {area for area, _ in failed.values()} or areas >= {
        "database",
        "storage",
    }
    return failed


def test_the_doctor_names_what_is_wrong_and_the_remedy(machine: Machine) -> None:
    # Nobody has installed Claude Code here, and nobody said that the demo will do.
    assert {area for area, _ in findings(machine).values()} == {"agents"}
    machine.write("/etc/holdover/holdover.d/demo.toml", '[sessions]\ndefault_agent = "demo"\n')
    assert findings(machine) == {}
    machine.systemctl("stop", "holdover-s3.socket", "holdover-storage.service")
    wrong = findings(machine)
    assert {area for area, _ in wrong.values()} == {"sockets", "storage"}
    assert wrong["holdover-s3.socket is inactive"][1].startswith("`systemctl reset-failed")
    machine.systemctl("start", "holdover-storage.service", "holdover-s3.socket")
    machine.write("/etc/holdover/holdover.d/demo.toml", "[sessions]\nmax_life = 3\n")
    ((what, (area, _)),) = findings(machine).items()
    assert area == "configuration"
    assert "demo.toml:2" in what
    machine.run(["rm", "/etc/holdover/holdover.d/demo.toml"])


def test_a_backup_is_restored_on_the_host(machine: Machine) -> None:
    kept = holdover(machine, "session", "new", "--agent", "demo", "hello").split()[0]
    holdover(machine, "db", "backup", "/root/copy.db")
    assert machine.run(["stat", "-c", "%a %U", "/root/copy.db"]).stdout == "600 root\n"
    later = holdover(machine, "session", "new", "--agent", "demo", "hello").split()[0]
    before = json.loads(holdover(machine, "session", "show", "--json", kept))
    holdover(machine, "db", "restore", "--yes", "/root/copy.db")

    def served() -> dict[str, object] | None:
        try:
            shown: dict[str, object] = json.loads(
                holdover(machine, "session", "show", "--json", kept)
            )
        except MachineError:
            return None
        return shown if shown["state"] == "dormant" else None

    shown = wait_until(served, "the session is back, at rest", 60)
    assert shown["epoch"] != before["epoch"]
    assert machine.run(["holdover", "session", "show", later], check=False).returncode == 3
    owners = machine.run(["stat", "-c", "%U", "/var/lib/holdover/catalogue.db"]).stdout
    assert owners == "holdover\n"
    assert "sound" in holdover(machine, "db", "status", "--check")


def test_a_removal_keeps_the_data_and_an_install_finds_it(
    machine: Machine, packages: dict[str, Path]
) -> None:
    session = holdover(machine, "session", "new", "--agent", "demo", "hello").split()[0]
    apt(machine, "remove", "holdover")
    units = machine.systemctl("list-units", "--all", "--plain", "--no-legend", "holdover*").stdout
    assert units == ""
    assert machine.run(["ls", "/opt/holdover"]).stdout.split() == [
        "history",
        "last-deploy.json",
        "last-generation",
    ]
    find = ["find", "/etc/systemd", "/usr/lib/systemd", "/run/holdover", "-name", "holdover*"]
    assert machine.run(find, check=False).stdout == ""
    machine.run(["test", "-f", "/var/lib/holdover/catalogue.db"])
    install(machine, packages, NEXT)
    shown = json.loads(holdover(machine, "session", "show", "--json", session))
    assert shown["state"] == "dormant"


def test_a_purge_leaves_nothing(machine: Machine, packages: dict[str, Path]) -> None:
    machine.write("/etc/systemd/system/holdover.socket.d/test.conf", "[Socket]\nBacklog=99\n")
    apt(machine, "purge", "holdover")
    find = ["find", "/etc", "/opt", "/run", "/var/lib", "/usr/lib", "/usr/local", "/usr/bin"]
    left = machine.run([*find, "-name", "*holdover*"], check=False).stdout.split()
    # The journal's and dpkg's own memories are not ours.
    assert [path for path in left if not path.startswith("/run/log")] == []
    for name in ("holdover", "holdover-agent", "holdover-storage", "holdover-admin"):
        assert machine.run(["getent", "group", name], check=False).returncode == 2
    assert os.path.exists(machine.path("/usr/bin/python3"))


# --- the same host, as another distribution would have it: no package any more ---------------------

TOOL = "/opt/pipx/venvs/holdover"
UNIT_OF_FIRST = "holdoverd@1.service"
LAY_OUT = f"""
set -e
dpkg-deb -x {DEBS}/NAME /opt/unpacked
python3 -m venv --without-pip {TOOL}
cd /opt/unpacked/usr/lib/holdover/release
cp -a lib/python3*/site-packages/. {TOOL}/lib/python3*/site-packages/
for program in bin/*; do
    case $program in *python*|*ctivate*) continue ;; esac
    [ -L $program ] || cp $program {TOOL}/bin/
done
cd {TOOL}/bin
sed -i '1s|^#!.*python.*|#!{TOOL}/bin/python|' $(grep -lI '^#!' *)
rm -r /opt/unpacked
"""


def lay_out(machine: Machine, package: Path) -> None:
    """The environment that pipx makes, with the files that pip puts there."""
    machine.run(["rm", "-rf", TOOL])
    machine.run(["sh", "-c", LAY_OUT.replace("NAME", package.name)])


def host_command(
    machine: Machine, *arguments: str, user: str | None = None, status: int = 0
) -> str:
    command = [f"{TOOL}/bin/holdover", "host", *arguments]
    done = machine.run(command, user=user, check=False, timeout_s=120)
    assert done.returncode == status, done.stderr
    return done.stderr


def test_an_environment_of_pipx_is_installed_into_an_image_and_taken_off(
    packages: dict[str, Path],
) -> None:
    without_venv = tuple(name for name in roots.HOST if name not in ("git", "make"))
    with Machine.enter(roots.debian(without_venv)) as image:
        shutil.copyfile(packages[FIRST], image.path(f"{DEBS}/{packages[FIRST].name}"))
        lay_out(image, packages[FIRST])
        assert "it starts when systemd boots here" in host_command(image, "install")
        assert image.run(["holdover", "--version"]).stdout == f"holdover, version {FIRST}\n"
        assert image.run(["readlink", "/var/lib/holdover/current"]).stdout == "1\n"
        release = f"/opt/holdover/releases/{FIRST}"
        # Nothing of it leads back to where it came from, and nobody but root may change it.
        grep = ["grep", "-rIl", TOOL, release, "/etc/systemd/system"]
        assert image.run(grep, check=False).stdout == ""
        writable = ["find", release, "-perm", "/022", "-not", "-type", "l"]
        assert image.run(writable).stdout == ""
        verify = f"systemd-analyze verify /etc/systemd/system/{UNIT_OF_FIRST} 2>&1"
        assert "holdover" not in image.run(["sh", "-c", verify], check=False).stdout
        assert "already installed" in host_command(image, "install")
        itself = image.run(["holdover", "host", "install"], check=False)
        assert f"is release {FIRST} itself" in itself.stderr
        assert host_command(image, "install", user="nobody", status=4).startswith(
            "holdover: only root can change what is installed"
        )
        said = image.run(["holdover", "host", "uninstall"]).stderr
        assert "are kept (--purge removes them)" in said
        image.run(["test", "-d", "/var/lib/holdover/spool"])
        assert "uninstalled" in host_command(image, "uninstall", "--purge")
        find = ["find", "/etc", "/opt", "/var/lib", "/usr/local", "-name", "*holdover*"]
        assert image.run([*find, "-not", "-path", "/opt/pipx*"]).stdout == ""


@pytest.mark.soak  # the deploys above, by another way in
def test_an_environment_of_pipx_is_installed_onto_the_host(
    machine: Machine, packages: dict[str, Path]
) -> None:
    lay_out(machine, packages[FIRST])
    said = host_command(machine, "install")
    assert f"Holdover {FIRST} is installed and runs as generation 1." in said
    assert (healthz(machine)["release"], healthz(machine)["generation"]) == (FIRST, 1)
    assert machine.run(["readlink", "/usr/local/bin/holdover"]).stdout == (
        f"/opt/holdover/releases/{FIRST}/bin/holdover\n"
    )
    machine.run(["test", "-f", "/usr/local/share/doc/holdover/ARCHITECTURE.md"])
    session = holdover(machine, "session", "new", "--agent", "demo", "hello").split()[0]
    wait_until(
        lambda: json.loads(holdover(machine, "session", "show", "--json", session))["last_seq"] > 2,
        "the demo has answered",
        60,
    )
    # Storage's program came along, too.
    holdover(machine, "file", "put", "/etc/hostname")
    before, sockets = machine.show("holdoverd@1.service", "InvocationID"), runs_of_sockets(machine)
    assert "already installed" in host_command(machine, "install")
    assert machine.show("holdoverd@1.service", "InvocationID") == before
    assert runs_of_sockets(machine) == sockets


@pytest.mark.soak  # the deploys above, by another way in
def test_its_next_version_is_a_deploy_and_a_broken_one_is_taken_back(
    machine: Machine, packages: dict[str, Path]
) -> None:
    sockets = runs_of_sockets(machine)
    lay_out(machine, packages[NEXT])
    assert "runs as generation 2" in host_command(machine, "install")
    # Its session is idle, and would stay for minutes.
    holdover(machine, "drain", "--migrate")
    alone(machine, 2)
    lay_out(machine, packages[BROKEN])
    said = host_command(machine, "install", status=1)
    assert "was taken back" in said
    assert "no_such_module" in said
    assert healthz(machine) == {"status": "ok", "generation": 2, "release": NEXT}
    assert runs_of_sockets(machine) == sockets
