"""Becomes storage, behind walls: ``python -I -S enclose.py PARENT FOLDERS PROGRAM ARG…``.

What systemd's PrivateNetwork= and PrivateTmp= do for the unit, done here without root for
`holdover up`: a user namespace, in it a network with nothing but loopback, and an empty ``/tmp``.
SeaweedFS's filer, master and volume server let everybody in over TCP. Beside each port they put a
socket into ``/tmp`` that is named after its number alone, so that two storages of one machine would
take each other's.

FOLDERS is a list joined by ``:`` of what has to be reachable although it may lie below ``/tmp``;
``-`` builds no walls. Run by path with ``-S`` and the standard library alone, as supervisor/shim.py
is. Exits 77 where the kernel refuses the walls; nothing has been started then.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path

REFUSED = 77
NICE = 10
"""As Nice= of the units."""

_CLONE_NEWNS, _CLONE_NEWIPC = 0x0002_0000, 0x0800_0000
_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 0x1000, 0x4000, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> None:
    parent, folders, *command = arguments
    if folders == "-":
        stay_with(int(parent))
        os.execv(command[0], command)  # noqa: S606  an argument vector of our own
    try:
        program = _wall_in([*folders.split(":"), command[0]])[-1]
    except OSError as error:
        print(f"no walls to be had: {error}", file=sys.stderr)
        sys.exit(REFUSED)
    # Last: changing what it may do makes a process forget its wish (prctl(2)).
    stay_with(int(parent))
    # By descriptor: the program's own path may be hidden by now.
    os.execv(f"/proc/self/fd/{program}", command)  # noqa: S606  an argument vector of our own


def stay_with(parent: int) -> None:
    """End when the parent does: storage without a supervisor would keep the disk, unseen.

    And stand back behind the daemon: a large download takes whatever processor there is, and those
    who ask the daemon something meanwhile are people who wait.
    """
    with contextlib.suppress(OSError):
        os.nice(NICE)
    # Among the processes of one login that is enough. Where the kernel shares a processor out by
    # login first (sched(7), autogroup), ours stands back as a whole.
    stand_back(Path("/proc/self/autogroup"))
    # What computes when the daemon wakes is made to give way at the next tick of the kernel's clock only,
    # 4 ms later perhaps, however nice it is.
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, half_of(os.sched_getaffinity(0)))
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("The supervisor is gone already.")


def half_of(processors: set[int]) -> set[int]:
    """The later half of them, at least one: what storage keeps to."""
    return set(sorted(processors)[len(processors) // 2 :])


def stand_back(autogroup: Path) -> None:
    """Give our login as a whole the niceness NICE, where the kernel knows of such a thing.

    It takes one such change in a tenth of a second from all of the machine, and has whoever is not
    root in its first user namespace try again; a second of that is enough.
    """
    for _ in range(20):
        try:
            autogroup.write_text(str(NICE))
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:
            return
        else:
            return


def _wall_in(paths: list[str]) -> list[int]:
    """Enter the namespaces; `paths` stay where they are. Returns a descriptor of each.

    Raises OSError where the kernel or an administrator's policy does not allow it.
    """
    uid, gid = os.geteuid(), os.getegid()
    _call(_libc.unshare, _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWNS | _CLONE_NEWIPC)
    # Opened in here: what is of another mount namespace cannot be bound (EINVAL, mount(2)).
    kept = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in paths]
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"0 {uid} 1")
    _write("/proc/self/gid_map", f"0 {gid} 1")
    _raise_loopback()
    # Ours only: nothing mounted here may appear outside.
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV)  # noqa: S108  the very folder
    for path, fd in zip(paths, kept, strict=True):
        if path.startswith("/tmp/") and os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: S108
            os.makedirs(path, mode=0o700)
            _mount(f"/proc/self/fd/{fd}", path, None, _MS_BIND)
    _call(_libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return kept


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(one, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(one, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    _call(_libc.mount, *encoded, ctypes.c_ulong(flags), None)


def _call(function: object, *arguments: object) -> None:
    if function(*arguments) != 0:  # type: ignore[operator]  # ctypes' functions have no type
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
