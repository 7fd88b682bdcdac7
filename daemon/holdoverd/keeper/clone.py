"""A repository, cloned into a new workspace before its agent is started.

With the account's rights, in a unit like an agent's. It is cloned beside the workspace and renamed
into place, so that a workspace is there whole or not at all; submodules are left to the agent, which
can be asked whether it wants them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

from holdoverd.errors import LaunchError
from holdoverd.keeper import folders, git

CLONE_S = 100.0
"""A client waits for it; what takes longer is cloned by hand and named as `cwd`."""

MAX_PACK_BYTES = 2 * 1024**3
MAX_TREE_BYTES = 4 * 1024**3
MAX_LISTING_BYTES = 64 * 1024**2
"""Of one version's files: some 500,000 of them. A pack of a few kilobytes can stand for billions."""

# The password travels in the environment, which other users cannot read as they can a command line.
_HELPER: Final = (
    '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n"'
    ' "$HOLDOVER_GIT_USER" "$HOLDOVER_GIT_PASSWORD"; }; f'
)


def check(url: str, ref: str | None) -> None:
    """Raises `LaunchError` (``repo_refused``) for what no repository may be cloned by."""
    scheme = None if url.startswith("-") or "\0" in url else git.scheme_of(url)
    if scheme not in git.SCHEMES:
        raise LaunchError(
            f"the repository {git.shown(url)[:100]!r} is not cloned: it has to be a URL of "
            f"{', '.join(git.SCHEMES)}, or user@host:path",
            code="repo_refused",
        )
    if ref is not None and not git.is_ref(ref):
        raise LaunchError(
            f"{ref[:80]!r} is no name of a branch, tag or commit", code="repo_refused"
        )


def without_password(url: str) -> tuple[str, str | None, str | None]:
    """(the URL that may be seen and kept, user, password) of an http URL; others as they are."""
    parts = urlsplit(url) if re.match("https?://", url, re.IGNORECASE) else None
    if parts is None or parts.password is None:
        return url, None, None
    plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return plain, unquote(parts.username or ""), unquote(parts.password)


def clone(
    workspace: str, url: str, ref: str | None, home: str, unwanted: Callable[[], bool]
) -> str:
    """Make ``HOME/workspaces/WORKSPACE`` of the repository at `ref`; its path.

    `ref` left out: what the repository itself has checked out; a branch is one to work on, a tag
    or commit a detached head. `unwanted`: nobody waits for it any more. Raises `LaunchError`, and
    then leaves nothing behind.
    """
    check(url, ref)
    if shutil.which("git") is None:
        raise LaunchError(
            "git is not installed on this machine (apt-get install git)", code="repo_refused"
        )
    above = f"{home}/{folders.WORKSPACES}"
    path, part = f"{above}/{workspace}", f"{above}/.{workspace}.cloning"
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(above, 0o700)
        os.mkdir(part, 0o700)
    except OSError as error:
        raise LaunchError(
            f"the workspace {path} cannot be made: {error.strerror}", code="cwd_denied"
        ) from error
    try:
        _fetch(part, url, ref, unwanted)
        os.rename(part, path)
    except OSError as error:
        raise LaunchError(
            f"the workspace {path} cannot be made: {error.strerror}", code="cwd_denied"
        ) from error
    except git.Refused as error:
        raise LaunchError(
            f"the repository {git.shown(url)} was not cloned; git says: {error}",
            code="repo_refused",
        ) from error
    except git.GaveUp as error:
        raise LaunchError(
            f"the repository {git.shown(url)} was not cloned: {error}. Clone one that is large or "
            "slow yourself, and name its folder as cwd",
            code="repo_refused",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def _fetch(part: str, url: str, ref: str | None, unwanted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + CLONE_S
    plain, user, password = without_password(url)
    env = git.environment(os.environ)
    secret: tuple[str, ...] = ()
    if password is not None:
        env |= {"HOLDOVER_GIT_USER": user or "", "HOLDOVER_GIT_PASSWORD": password}
        secret = ("-c", f"credential.helper={_HELPER}")

    def run(*arguments: str) -> bytes:
        return git.run(
            part,
            (*secret, *arguments),
            env=env,
            deadline=deadline,
            max_output=MAX_LISTING_BYTES,
            max_file_bytes=MAX_PACK_BYTES,
            unwanted=unwanted,
        )

    run("clone", "-q", "--no-checkout", "--template=", "--no-recurse-submodules", "--", plain, ".")
    wanted = _wanted(run, ref)
    if wanted is None:
        return  # an empty repository: nothing to check out
    size = 0
    for line in run("ls-tree", "-r", "-l", "-z", "--full-tree", wanted).split(b"\0")[:-1]:
        told = line.partition(b"\t")[0].split()[-1]
        size += int(told) if told.isdigit() else 0  # a submodule has none
    if size > MAX_TREE_BYTES:
        raise git.GaveUp(f"its files have {size} bytes, more than {MAX_TREE_BYTES}")
    if ref is None:
        run("checkout", "-q", "--no-recurse-submodules", "HEAD", "--", ".")
        run("reset", "-q")
    elif wanted.startswith("refs/remotes/"):
        run("checkout", "-q", "--no-recurse-submodules", "-B", ref, "--track", wanted)
    else:
        run("checkout", "-q", "--no-recurse-submodules", "--detach", wanted)


def _wanted(run: Callable[..., bytes], ref: str | None) -> str | None:
    """What to check out: a full name or a commit's. Raises `Refused` where there is no such thing."""
    if ref is None:
        return "HEAD" if _is_there(run, "HEAD") else None
    for name in (f"refs/remotes/origin/{ref}", f"refs/tags/{ref}"):
        if _is_there(run, name):
            return name
    if re.fullmatch("[0-9a-f]{7,64}", ref) and not _is_there(run, ref):
        run("fetch", "-q", "--no-tags", "--no-recurse-submodules", "origin", ref)
    return run("rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}").decode().strip()


def _is_there(run: Callable[..., bytes], name: str) -> bool:
    try:
        run("rev-parse", "-q", "--verify", "--end-of-options", f"{name}^{{commit}}")
    except git.Refused:
        return False
    return True
