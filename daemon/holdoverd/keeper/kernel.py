"""The kernel calls that Python does not have: prctl and openat2."""

from __future__ import annotations

import ctypes
import errno
import os
import signal

_PR_SET_PDEATHSIG = 1
_SYS_OPENAT2 = 437  # the same number on every architecture but alpha
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_ATTEMPTS = 16

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; for use between fork and exec.

    `parent` is the forking process: one that died before the call took effect shows as another
    parent, and then this process ends at once.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(127)


def open_folder_beneath(root_fd: int, relative: bytes) -> int:
    """An O_PATH descriptor of the folder `relative` beneath `root_fd`; as `open_beneath`."""
    return open_beneath(root_fd, relative, os.O_DIRECTORY | os.O_PATH)


def open_beneath(root_fd: int, relative: bytes, flags: int) -> int:
    """`relative` beneath `root_fd`, opened with `flags` and close-on-exec; makes no files.

    No ``..`` and no symbolic link leads out of the root: the kernel resolves the whole path at
    once (openat2(2), RESOLVE_BENEATH), so that renames in between change nothing. Raises
    `OSError`: EXDEV for a path that leads out, EAGAIN if renames went on and on.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    error = 0
    for _ in range(_ATTEMPTS):
        fd = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(root_fd),
            ctypes.c_char_p(relative),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if fd >= 0:
            return int(fd)
        error = ctypes.get_errno()
        # A rename beneath the root during `..`: the kernel asks to be asked again.
        if error not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(error, os.strerror(error), os.fsdecode(relative))
