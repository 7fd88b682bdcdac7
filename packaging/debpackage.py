"""Builds the Debian package of this tree, for the Debian release and Python of this machine.

    packaging/deb [--wheelhouse DIR] [--output DIR]

Standard library, and Debian's dpkg-deb. The package brings the whole release as one folder of
dpkg's, which its maintainer scripts land under /opt/holdover/releases (holdoverd/deploy/package.py
says why), and what a distribution wants at its usual places: units, users, man pages, completions,
the configuration. The same tree, locks and SOURCE_DATE_EPOCH (default: the commit's time) give the
same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import hostinstall
from hostinstall import SOURCE, Release, call, say

from holdoverd.deploy import layout, package, services
from holdoverd.deploy.layout import InstallError

DOC = "usr/share/doc/holdover"
MADE_AT_INSTALL = "/usr/local/share/doc/holdover"
CONFFILES = ("/etc/holdover/holdover.toml",)

CONTROL = """\
Package: holdover
Version: {version}
Architecture: {architecture}
Maintainer: Holdover maintainers <holdover@localhost>
Installed-Size: {kilobytes}
Depends: {python}, systemd (>= 252), util-linux, passwd, libc6 (>= 2.34)
Recommends: ca-certificates
Suggests: caddy | nginx | haproxy, prometheus
Section: admin
Priority: optional
Description: keeps coding-agent sessions alive while everything around them is replaced
 Agents run in units of their own and outlive the daemon, which can be killed,
 upgraded and rolled back in the middle of a sentence. People watch and talk to
 their sessions from terminals and browsers, over WebSocket.
 .
 An upgrade of this package is a deploy without downtime: the new release is
 started beside the old one, tried, and taken back by itself if it fails.
"""

COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: holdover

Files: *
Copyright: the Holdover maintainers
License: Apache-2.0
 The text is in /usr/share/common-licenses/Apache-2.0.

Files: usr/lib/holdover/release/lib/*
Copyright: see the metadata folders beside each distribution
License: various
 Each library that the release brings carries its license in its dist-info folder.
"""


# --- Rules ------------------------------------------------------------------------------------


def debian_release(os_release: str) -> str:
    """``deb12`` from /etc/os-release. Raises InstallError elsewhere."""
    values = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', os_release, re.MULTILINE))
    if values.get("ID") != "debian" or not values.get("VERSION_ID", "").isdecimal():
        raise InstallError(
            "a package is built on the Debian release that it is for, and this machine is "
            f"{values.get('PRETTY_NAME', 'unknown')}; elsewhere use `make install`"
        )
    return f"deb{values['VERSION_ID']}"


def interpreter_package(executable: str) -> str:
    """Debian's package of the interpreter: a release needs the very minor version."""
    name = os.path.basename(executable)
    if not re.fullmatch(r"python3\.\d+", name) or not executable.startswith("/usr/bin/"):
        raise InstallError(
            f"a package's release stands on Debian's own Python, and {executable} is another; "
            "name it: PYTHON=/usr/bin/python3"
        )
    return name


# --- Steps ------------------------------------------------------------------------------------


def source_date() -> int:
    """The moment that every file bears, in seconds."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    log = subprocess.run(
        ["git", "-C", SOURCE, "-c", "safe.directory=*", "log", "-1", "--format=%ct"],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(log.stdout) if log.returncode == 0 else 0


def settle_release(target: Path, staged_at: Path) -> None:
    """Give the release the place it will have, and take out what differs from build to build."""
    record = layout.read_release(target / "release.json")
    final = str(layout.RELEASES / record.name)
    for path in sorted((target / "bin").iterdir()):
        if path.name.lower().startswith("activate"):
            path.unlink()  # nobody works inside a release
        elif not path.is_symlink() and path.is_file() and path.read_bytes()[:2] == b"#!":
            path.write_text(path.read_text().replace(str(staged_at), final))
    config = target / "pyvenv.cfg"
    config.write_text(
        "".join(
            line for line in config.read_text().splitlines(True) if not line.startswith("command")
        )
    )
    (site,) = target.glob("lib/python3*/site-packages")
    # They hash what was changed above, and name where the wheel lay; nothing reads them.
    for pattern in ("*.dist-info/RECORD", "*.dist-info/direct_url.json", "**/__pycache__"):
        for path in list(site.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for unit in (path for path in site.glob("holdoverd/units/*") if path.is_file()):
        unit.write_text(unit.read_text().replace(MADE_AT_INSTALL, f"/{DOC}"))
    # By hash instead of time, and never looked up again: a release does not change.
    call(
        *(record.python, "-I", "-m", "compileall", "-q", "-j", "1"),
        *("--invalidation-mode", "unchecked-hash", "-s", target, "-p", final, target / "lib"),
        what="compiling",
    )


def stage(root: Path, record: Release, wheelhouse: Path | None) -> None:
    """All the package's files, in their places below `root`."""
    release = root / str(package.PAYLOAD).removeprefix("/")
    release.parent.mkdir(parents=True)
    hostinstall.fill_release(release, record, wheelhouse, "--no-compile")
    settle_release(release, release)

    units, (site,) = root / "usr/lib/systemd/system", release.glob("lib/python3*/site-packages")
    templates = site / "holdoverd/units"
    units.mkdir(parents=True)
    for name in services.PACKAGED_UNITS:
        shutil.copyfile(templates / name, units / name)
    for kind in ("sysusers.d", "tmpfiles.d"):
        (root / "usr/lib" / kind).mkdir()
        shutil.copyfile(
            templates / kind / "holdover.conf", root / "usr/lib" / kind / "holdover.conf"
        )

    command = root / str(layout.PACKAGED_COMMAND).removeprefix("/")
    command.parent.mkdir()
    command.symlink_to(layout.PACKAGED_LINK)

    with tempfile.TemporaryDirectory() as written:
        call(
            *(release / "bin/python", "-I", "-B", SOURCE / "packaging/manual.py", written),
            what="writing the manual",
        )
        share = root / "usr/share"
        for folder in ("man", "bash-completion", "zsh", "fish"):
            shutil.copytree(Path(written) / folder, share / folder)
        (root / "etc/holdover/holdover.d").mkdir(parents=True)
        shutil.copyfile(Path(written) / "holdover.toml", root / "etc/holdover/holdover.toml")
    for page in sorted((root / "usr/share/man").rglob("*.[15]")):
        compress(page, page.with_name(f"{page.name}.gz"))
        page.unlink()

    doc = root / DOC
    doc.mkdir(parents=True)
    for name in ("README.md", "ARCHITECTURE.md", "packaging/RECOVERY.md"):
        shutil.copyfile(SOURCE / name, doc / Path(name).name)
    compress(SOURCE / "CHANGELOG.md", doc / "changelog.gz")
    (doc / "copyright").write_text(COPYRIGHT)
    for folder in ("prometheus", "proxies"):
        if (SOURCE / "packaging" / folder).is_dir():
            shutil.copytree(SOURCE / "packaging" / folder, doc / folder)


def compress(source: Path, target: Path) -> None:
    target.write_bytes(gzip.compress(source.read_bytes(), mtime=0))


def every_file(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink())


def describe(root: Path, version: str, record: Release) -> None:
    """DEBIAN/: control, md5sums, conffiles, maintainer scripts."""
    folder = root / "DEBIAN"
    sums, size = "", 0
    for path in every_file(root):
        data = path.read_bytes()
        size += -(-len(data) // 1024)
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        sums += f"{digest}  {path.relative_to(root)}\n"
    folder.mkdir()
    (folder / "control").write_text(
        CONTROL.format(
            version=version,
            architecture=architecture(),
            kilobytes=size,
            python=interpreter_package(record.python),
        )
    )
    (folder / "md5sums").write_text(sums)
    (folder / "conffiles").write_text("".join(f"{name}\n" for name in CONFFILES))
    for script in ("postinst", "prerm", "postrm"):
        shutil.copyfile(SOURCE / "packaging/debian" / script, folder / script)
        (folder / script).chmod(0o755)


def architecture() -> str:
    return subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()


def settle_modes(root: Path, when: int) -> None:
    """One time for all, and the modes that umask and wheels left to chance."""
    for path in [root, *sorted(root.rglob("*"))]:
        if not path.is_symlink():
            runs = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if runs else 0o644)
        os.utime(path, (when, when), follow_symlinks=False)


def build(wheelhouse: Path | None, output: Path, level: int) -> Path:
    """The package's path."""
    for tool in ("dpkg", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise InstallError(f"{tool} not found: packages are built on Debian")
    os.umask(0o022)
    when = source_date()
    os.environ["SOURCE_DATE_EPOCH"] = str(when)
    # pip takes the time of a wheel's files from it; strings hash alike in compiled files.
    os.environ["PYTHONHASHSEED"] = "0"
    suffix = debian_release(Path("/etc/os-release").read_text())
    version = f"{hostinstall.tree_version(SOURCE)}+{suffix}"
    python = hostinstall.interpreter()
    interpreter_package(python)
    digest = f"{hostinstall.tree_digest(SOURCE)}-{platform.python_version()}"
    record = Release(version, hostinstall.tree_version(SOURCE), digest, python)
    with tempfile.TemporaryDirectory(prefix="holdover-deb-") as scratch:
        root = Path(scratch) / "root"
        root.mkdir()
        stage(root, record, wheelhouse)
        describe(root, version, record)
        settle_modes(root, when)
        output.mkdir(parents=True, exist_ok=True)
        made = output / f"holdover_{version}_{architecture()}.deb"
        call(
            *("dpkg-deb", "--root-owner-group", "-Zzstd", f"-z{level}", "--build", root, made),
            what="packing",
        )
    say(f"{made}: {json.dumps(asdict(record))}")
    return made


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="packaging/deb")
    parser.add_argument("--wheelhouse", type=Path, metavar="DIR", help="as for packaging/install")
    parser.add_argument("--output", type=Path, metavar="DIR", default=SOURCE / "dist")
    parser.add_argument("--level", type=int, default=15, help="of compression, 1 to 19")
    options = parser.parse_args(arguments)
    try:
        wheelhouse = options.wheelhouse and options.wheelhouse.absolute()
        print(build(wheelhouse, options.output.absolute(), options.level))
    except (InstallError, OSError) as error:
        say(f"holdover: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
