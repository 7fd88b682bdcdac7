"""The agent's working folder: found beneath the roots it may be in, or made new."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable

from holdoverd.errors import LaunchError
from holdoverd.keeper.account import expand_home
from holdoverd.keeper.kernel import open_folder_beneath

WORKSPACES = "workspaces"
"""Beneath the account's home; always a root."""


def split_beneath(path: str, root: str) -> str | None:
    """`path` relative to `root` ("." for the root itself), or None if it does not start with it.

    Purely by spelling: ``..`` stays in the remainder, because only the kernel knows where it
    leads once symbolic links are involved.
    """
    path, root = _plain(path), _plain(root)
    if path == root:
        return "."
    prefix = root if root == "/" else root + "/"
    return path.removeprefix(prefix) if path.startswith(prefix) else None


def _plain(path: str) -> str:
    return re.sub(r"/+", "/", path).rstrip("/") or "/"


def open_cwd(cwd: str, roots: Iterable[str], home: str) -> tuple[int, str]:
    """(an O_PATH descriptor, the real path) of `cwd`, which lies beneath one of the roots.

    The account's rights decide. Raises `LaunchError` ``cwd_missing``, ``cwd_outside`` or
    ``cwd_denied``. The caller closes the descriptor.
    """
    allowed = [expand_home(root, home) for root in roots] + [f"{home}/{WORKSPACES}"]
    refusal: LaunchError | None = None
    # The longest root first: the most specific refusal is the most useful one.
    for root in sorted(allowed, key=len, reverse=True):
        relative = split_beneath(cwd, root)
        if relative is None:
            continue
        try:
            return _enter(_open_beneath(root, relative))
        except OSError as error:
            refusal = refusal or _refusal(cwd, root, error)
    raise refusal or LaunchError(
        f"the folder {cwd} lies outside the folders where agents may work "
        f"({', '.join(allowed)}); add one to the session roots, or choose another folder",
        code="cwd_outside",
    )


def make_workspace(name: str, home: str) -> tuple[int, str]:
    """Like `open_cwd` for ``HOME/workspaces/NAME``, made (0700) where it is missing."""
    path = f"{home}/{WORKSPACES}/{name}"
    try:
        for folder in (f"{home}/{WORKSPACES}", path):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder.encode(), 0o700)
        return _enter(_open_beneath(f"{home}/{WORKSPACES}", name))
    except OSError as error:
        raise _refusal(path, f"{home}/{WORKSPACES}", error) from error


def _open_beneath(root: str, relative: str) -> int:
    root_fd = os.open(root.encode(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_folder_beneath(root_fd, relative.encode())
    finally:
        os.close(root_fd)


def _enter(fd: int) -> tuple[int, str]:
    """Try the folder as the working folder: O_PATH asks for no rights, fchdir does."""
    try:
        os.fchdir(fd)
        os.chdir("/")
        return fd, os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        os.close(fd)
        raise


def _refusal(cwd: str, root: str, error: OSError) -> LaunchError:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return LaunchError(
                f"the folder {cwd} does not exist or is no folder; make it, or choose another",
                code="cwd_missing",
            )
        case errno.EXDEV | errno.ELOOP:
            return LaunchError(
                f"the folder {cwd} leads out of {root} (by '..' or a symbolic link); "
                "choose a folder that lies in it",
                code="cwd_outside",
            )
        case errno.EACCES | errno.EPERM:
            return LaunchError(
                f"the agent's account may not enter the folder {cwd}; "
                "change its mode or owner, or choose another",
                code="cwd_denied",
            )
        case _:
            return LaunchError(
                f"the folder {cwd} cannot be opened: {error.strerror}; "
                "mend that, or choose another",
                code="cwd_denied",
            )
