"""Puts this tree onto a systemd host as a release, and takes it off again.

Runs before anything of Holdover is installed: the standard library alone, from the checkout. It
owns /opt/holdover, the unit files, the system users and the `holdover` command. It promises that
doing it twice changes nothing, and that a release, once complete, is never written again. It does
not migrate, probe or gate: a changed release is simply started beside the old one, which then
stops.

Rules first, then the steps that touch the machine, then the command line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
sys.dont_write_bytecode = True  # the checkout may not be root's
sys.path.insert(0, str(SOURCE / "daemon"))
sys.path.insert(0, str(SOURCE / "packaging"))

import webclient  # noqa: E402 - the checkout is found first

from holdoverd.deploy import workers  # noqa: E402 - the checkout is found first
from holdoverd.deploy.accounts import DEFAULT_ACCOUNT, agent_units  # noqa: E402
from holdoverd.deploy.installing import (  # noqa: E402
    AGENT_HOME,
    DOCUMENTS,
    check_host,
    check_not_packaged,
    choose_release,
    put_into_service,
    uninstall,
)
from holdoverd.deploy.layout import (  # noqa: E402
    RELEASES,
    InstallError,
    Release,
    call,
    generation_units,
    installed_releases,
    one_at_a_time,
    say,
    write_if_changed,
)
from holdoverd.deploy.services import FIXED_UNITS, storage_unit  # noqa: E402

# What a release is made of. Its digest tells a changed tree from one already installed.
INPUTS = (
    *("cli", "daemon", "units", "pyproject.toml", "LICENSE", "requirements.lock"),
    *("packaging/hatch_build.py", "packaging/webclient.py", "requirements-node.lock"),
)
# Made from the inputs, or by them.
LEFT_OUT = ("__pycache__", "node_modules", "static", "*.pyc", ".client-*")
LOCKS = ("requirements.lock", "requirements-build.lock")


# --- Rules: no file is touched below ------------------------------------------------------------


def render_all(templates: Path, *, release_dir: str) -> dict[str, str]:
    """{unit file name: its text}: all that an install writes, as its first generation."""
    units = {name: (templates / name).read_text() for name in FIXED_UNITS}
    units |= agent_units(
        templates, release_dir=release_dir, account=DEFAULT_ACCOUNT, home=str(AGENT_HOME)
    )
    units |= storage_unit(templates, release_dir=release_dir)
    units |= workers.worker_units(templates, release_dir=release_dir)
    return units | generation_units(
        templates, release_dir=release_dir, generation=1, version=tree_version(SOURCE)
    )


def tree_digest(source: Path) -> str:
    """A digest of names and contents of everything a release is made from."""
    digest = hashlib.sha256()
    for name in INPUTS:
        top = source / name
        files = [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file())
        for path in files:
            parts = path.relative_to(source).parts
            if any(fnmatch(part, pattern) for part in parts for pattern in LEFT_OUT):
                continue
            content = path.read_bytes()
            digest.update(f"{path.relative_to(source)}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def tree_version(source: Path) -> str:
    text = (source / "daemon/holdoverd/__init__.py").read_text()
    match = re.search(r'^__version__ = "([0-9A-Za-z.]+)"$', text, re.MULTILINE)
    assert match, "the version stands in daemon/holdoverd/__init__.py"
    return match[1]


# --- Steps --------------------------------------------------------------------------------------


def make_tools(folder: Path) -> Path:
    """A throw-away environment with pip: the host's Python need not have one."""
    try:
        import ensurepip  # noqa: F401 - asked for only to name the package that brings it
        import venv  # noqa: F401
    except ImportError:
        raise InstallError(
            f"{sys.executable} cannot make environments; on Debian: apt-get install python3-venv"
        ) from None
    call(sys.executable, "-I", "-m", "venv", folder, what="making an environment for the build")
    return folder / "bin/python"


def interpreter() -> str:
    """The very interpreter: ``python3`` may be another one after an upgrade of the distribution."""
    return os.path.realpath(sys.executable)


def wheelhouse_stamp(source: Path) -> str:
    """What a complete wheelhouse says of itself: for these locks and this Python."""
    digest = hashlib.sha256(b"".join((source / name).read_bytes() for name in LOCKS)).hexdigest()
    return f"{sys.implementation.cache_tag} {os.uname().machine} {digest}\n"


def wheelhouse_is_complete(folder: Path) -> bool:
    stamp = folder / "COMPLETE"
    return stamp.is_file() and stamp.read_text() == wheelhouse_stamp(SOURCE)


def fill_wheelhouse(folder: Path, tools: Path) -> None:
    """Download every locked distribution, verified by its hash, and stamp the folder complete."""
    say(f"Downloading what the lock files name into {folder} ...")
    folder.mkdir(parents=True, exist_ok=True)
    # Only wheels: a source distribution would be built, by code that no hash covers.
    pip: tuple[str | Path, ...] = (tools, "-I", "-m", "pip", "--disable-pip-version-check")
    for name in LOCKS:
        call(
            *(*pip, "download", "--quiet", "--only-binary=:all:", "--require-hashes"),
            *("--dest", folder, "-r", SOURCE / name),
            what=f"downloading what {name} names",
        )
    write_if_changed(folder / "COMPLETE", wheelhouse_stamp(SOURCE))


def copy_tree(tree: Path) -> None:
    """What a release is made of, and nothing made from it. The build writes beside its sources."""
    for item in {*INPUTS, *DOCUMENTS}:
        (tree / item).parent.mkdir(parents=True, exist_ok=True)
        if (SOURCE / item).is_dir():
            left_out = shutil.ignore_patterns(*LEFT_OUT)
            shutil.copytree(SOURCE / item, tree / item, ignore=left_out)
        else:
            shutil.copyfile(SOURCE / item, tree / item)


def has_client(folder: Path) -> bool:
    """Does the wheelhouse bring this tree's web client, built?"""
    return webclient.is_current(folder / "client", SOURCE / webclient.CLIENT)


def put_client(tree: Path, wheelhouse: Path, tools: Path) -> None:
    """The built web client into `tree`: from this checkout, from `wheelhouse`, or made now."""
    for built in (SOURCE / webclient.STATIC, wheelhouse / "client"):
        if webclient.is_current(built, SOURCE / webclient.CLIENT):
            shutil.copytree(built, tree / webclient.STATIC)
            return
    if webclient.node_on_path() is None:
        call(
            *(tools, "-I", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
            *("--require-hashes", "-r", SOURCE / "requirements-node.lock"),
            what="fetching Node for the web client",
        )
    script = tree / "packaging/webclient.py"
    call(tools, "-I", script, "build", what="building the web client")


def add_client(folder: Path, tools: Path) -> None:
    """Put the built web client into a wheelhouse."""
    with tempfile.TemporaryDirectory(prefix="holdover-install-") as scratch:
        tree = Path(scratch) / "tree"
        copy_tree(tree)
        put_client(tree, folder, tools)
        shutil.rmtree(folder / "client", ignore_errors=True)
        shutil.copytree(tree / webclient.STATIC, folder / "client")


def build_release(name: str, version: str, digest: str, wheelhouse: Path | None) -> Path:
    """Make /opt/holdover/releases/NAME, readable by every user, complete or not at all."""
    target = RELEASES / name
    RELEASES.mkdir(mode=0o755, parents=True, exist_ok=True)
    if target.exists():
        say(f"{target} was left incomplete by an install that broke off; making it again")
        shutil.rmtree(target)
    fill_release(target, Release(name, version, digest, interpreter()), wheelhouse)
    return target


def fill_release(
    target: Path, release: Release, wheelhouse: Path | None, *pip_options: str
) -> None:
    """An environment of its own in `target` with this tree and what it needs.

    Its record is written last. `pip_options` are for what goes into it.
    """
    with tempfile.TemporaryDirectory(prefix="holdover-install-") as scratch_name:
        scratch = Path(scratch_name)
        tools = make_tools(scratch / "tools")
        pip: tuple[str | Path, ...] = (tools, "-I", "-m", "pip", "--isolated", "--quiet")
        if wheelhouse is None:
            wheelhouse = SOURCE / ".build/wheelhouse"
            if not wheelhouse_is_complete(wheelhouse):
                wheelhouse = scratch / "wheelhouse"
                fill_wheelhouse(wheelhouse, tools)
        elif not (wheelhouse_is_complete(wheelhouse) and has_client(wheelhouse)):
            raise InstallError(
                f"{wheelhouse} does not hold what this tree is built from, for this Python; "
                f"fill it on a machine with network: packaging/wheelhouse {wheelhouse}"
            )
        offline = ("--disable-pip-version-check", "--no-index", "--find-links", wheelhouse)
        say(f"Building release {release.name} ...")
        tree = scratch / "tree"
        copy_tree(tree)
        put_client(tree, wheelhouse, tools)
        call(
            *(*pip, "install", *offline, "--require-hashes"),
            *("-r", SOURCE / "requirements-build.lock"),
            what="installing the build backend",
        )
        call(
            *(*pip, "wheel", *offline, "--no-deps", "--no-build-isolation"),
            *("--wheel-dir", scratch / "dist", tree),
            what="building the wheel",
        )
        # Without pip: nothing is ever added to a release.
        call(
            *(release.python, "-I", "-m", "venv", "--without-pip", target),
            what="making the release's environment",
        )
        into = ("--python", target / "bin/python")
        call(
            *(*pip, *into, "install", *offline, *pip_options, "--require-hashes"),
            *("-r", SOURCE / "requirements.lock"),
            what="installing what requirements.lock names",
        )
        (wheel,) = (scratch / "dist").glob("holdover-*.whl")
        call(
            *(*pip, *into, "install", *offline, *pip_options, "--no-deps", wheel),
            what="installing the wheel",
        )
    write_if_changed(target / "release.json", json.dumps(asdict(release), indent=1) + "\n")


def install(wheelhouse: Path | None, *, start_it: bool) -> None:
    check_host("sudo make install", "`make run`")
    check_not_packaged(f"holdover release install {SOURCE} && holdover deploy")
    os.umask(0o022)
    os.chdir("/")
    version, digest = tree_version(SOURCE), tree_digest(SOURCE)
    with one_at_a_time():
        name, there = choose_release(version, digest, installed_releases())
        if not there:
            build_release(name, version, digest, wheelhouse)
        put_into_service(name, documents=SOURCE, start_it=start_it)


def build(wheelhouse: Path | None) -> str:
    """Make this tree a release, and change nothing else; its name."""
    check_host("sudo make install", "`make run`")
    os.umask(0o022)
    os.chdir("/")
    version, digest = tree_version(SOURCE), tree_digest(SOURCE)
    with one_at_a_time():
        name, there = choose_release(version, digest, installed_releases())
        if not there:
            build_release(name, version, digest, wheelhouse)
    return name


def render_for_check(folder: Path) -> None:
    """All units in FOLDER/units, with a stand-in for the release: systemd wants programs to exist."""
    (folder / "release/bin").mkdir(parents=True)
    (folder / "release/bin/python").symlink_to(sys.executable)
    units = render_all(SOURCE / "units", release_dir=str(folder / "release"))
    for name, text in units.items():
        write_if_changed(folder / "units" / name, text)


def fill(folder: Path) -> None:
    """Make a wheelhouse complete: the locked distributions, and the built web client."""
    if wheelhouse_is_complete(folder) and has_client(folder):
        return
    with tempfile.TemporaryDirectory(prefix="holdover-install-") as scratch:
        tools = make_tools(Path(scratch) / "tools")
        if not wheelhouse_is_complete(folder):
            fill_wheelhouse(folder, tools)
        add_client(folder, tools)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="packaging")
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("install", help="install this tree as a release and start it")
    adding.add_argument(
        "--wheelhouse",
        type=Path,
        metavar="DIR",
        help="install from this folder, without network (default: .build/wheelhouse when complete)",
    )
    making = commands.add_parser("build", help="make this tree a release, start nothing")
    making.add_argument("--wheelhouse", type=Path, metavar="DIR", help="as for install")
    adding.add_argument("--no-start", action="store_true", help="install and enable, start nothing")
    removing = commands.add_parser("uninstall", help="stop everything, agents too, and remove it")
    removing.add_argument(
        "--purge", action="store_true", help="remove sessions, configuration and accounts, too"
    )
    filling = commands.add_parser("wheelhouse", help="download what a release is built from")
    filling.add_argument("folder", type=Path, nargs="?", default=SOURCE / ".build/wheelhouse")
    showing = commands.add_parser("render", help="write all units, to be looked at, into a folder")
    showing.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "install":
            folder = options.wheelhouse and options.wheelhouse.absolute()
            install(folder, start_it=not options.no_start)
        elif options.command == "build":
            print(build(options.wheelhouse and options.wheelhouse.absolute()))
        elif options.command == "uninstall":
            check_host("sudo make uninstall", "`make run`")
            uninstall(purge=options.purge)
        elif options.command == "render":
            render_for_check(options.folder.absolute())
        else:
            fill(options.folder.absolute())
    except (InstallError, OSError) as error:
        say(f"holdover: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
