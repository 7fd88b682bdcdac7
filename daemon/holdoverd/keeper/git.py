"""git, run on repositories that nobody has looked at: which URLs, with which settings, how long.

Nothing of a repository is run by it: no hooks, no submodules, no file monitor; and a URL is one of
another machine's, never a path of this one or another program's to handle.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

SCHEMES = ("https", "http", "ssh", "git")
MAX_FILE_BYTES = 512 * 1024**2
"""Any one file that git writes: a pack, mostly."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SCP = re.compile(r"(?:[A-Za-z0-9_.-]+@)?[A-Za-z0-9.-]+:(?!//|:)[^\\]+")
_REF = re.compile(r"[\w./+@-]{1,200}")

OPTIONS = (
    "-c", "core.hooksPath=/dev/null",
    "-c", "protocol.file.allow=never",
    "-c", "http.lowSpeedLimit=100",
    "-c", "http.lowSpeedTime=20",
    "-c", "core.fsmonitor=false",
    "-c", "credential.helper=",
    "-c", "fetch.fsckObjects=false",
)  # fmt: skip
"""Before every command: what the account's configuration or the repository says counts for nothing."""

_KEPT = (
    "PATH", "HOME", "SSH_AUTH_SOCK", "https_proxy", "http_proxy", "no_proxy", "HTTPS_PROXY",
    "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO",
)  # fmt: skip


def scheme_of(text: str) -> str | None:
    """The scheme of a URL, or of ``user@host:path`` (ssh); None for what is no address at all."""
    if _SCHEME.match(text):
        return urlsplit(text).scheme
    return "ssh" if _SCP.fullmatch(text) else None


def is_ref(text: str) -> bool:
    """Whether `text` may name a branch, tag or commit; git decides whether it does."""
    return not text.startswith("-") and ".." not in text and _REF.fullmatch(text) is not None


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Nobody is asked for a password, and no other protocol is spoken than `SCHEMES`."""
    return {name: inherited[name] for name in _KEPT if name in inherited} | {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
        "GIT_ALLOW_PROTOCOL": ":".join(SCHEMES),
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_CONFIG_NOSYSTEM": "1",
        "LC_ALL": "C",
    }


def shown(text: str) -> str:
    """Without the password that a URL may carry."""
    return re.sub(r"(://)[^/@\s]+@", r"\1", text)


class Refused(Exception):
    """git failed; the text is the end of what it said."""


class GaveUp(Exception):
    """It took too long, said too much, or nobody wants it any more."""


def run(
    folder: str,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    deadline: float,
    given: bytes = b"",
    max_output: int = 64 * 1024**2,
    max_file_bytes: int = MAX_FILE_BYTES,
    unwanted: Callable[[], bool] = lambda: False,
) -> bytes:
    """The stdout of one git command in `folder`; `deadline` by `time.monotonic`.

    `unwanted` is asked several times a second. Raises `Refused`, `GaveUp`; nothing of it is left
    running either way.
    """
    process = subprocess.Popen(
        ["git", "-C", folder, *OPTIONS, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(env),
        start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(  # noqa: PLW1509  one thread runs here
            resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes)
        ),
    )
    try:
        out, err = _communicate(process, given, deadline, max_output, unwanted)
    finally:
        # Its children (git-remote-https, ssh) too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
    if process.returncode != 0:
        said = err.decode("utf-8", "replace").strip().splitlines()
        raise Refused(
            "; ".join(shown(line) for line in said[-3:])[:400] or f"exit {process.returncode}"
        )
    return out


def _communicate(
    process: subprocess.Popen[bytes],
    given: bytes,
    deadline: float,
    max_output: int,
    unwanted: Callable[[], bool],
) -> tuple[bytes, bytes]:
    """As `Popen.communicate`, bounded by time, size and interest."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    said = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    out, err = said.values()
    left = memoryview(given)
    if not left:
        process.stdin.close()
    readers = set(said)
    while readers:
        if time.monotonic() > deadline or unwanted():
            raise GaveUp("it did not answer in time")
        writers = [process.stdin.fileno()] if left else []
        readable, writable, _ = select.select(list(readers), writers, [], 0.2)
        for fd in readable:
            data = os.read(fd, 65536)
            if not data:
                readers.discard(fd)
            said[fd] += data
            if len(said[fd]) > max_output:
                raise GaveUp(f"git said more than {max_output} bytes")
        if writable:
            try:
                left = left[os.write(writable[0], left[:65536]) :]
            except BrokenPipeError:
                left = left[:0]
            if not left:
                process.stdin.close()
    process.wait(max(0.1, deadline - time.monotonic()))
    return bytes(out), bytes(err)
