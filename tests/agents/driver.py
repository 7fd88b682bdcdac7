"""A real agent process on pipes, spoken to as the daemon speaks to it: for tests.

Lines are written with the daemon's own `host_frames` and read with its own `LineSplitter` and
`classify`. Waiting is for frames, never for time; the timeouts only stop a test that has failed.
"""

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from holdoverd.agents.stream_json import Frame, LineSplitter, OversizeLine, classify

# Generous: two busy cores may well take ten times what an idle machine takes.
DEADLINE_S = 90.0

Matcher = Callable[[Frame], object]


def of(kind: str, **fields: object) -> Matcher:
    """A matcher for frames of `kind` whose fields have these values."""

    def match(frame: Frame) -> bool:
        return frame.kind == kind and all(
            getattr(frame, name) == value for name, value in fields.items()
        )

    return match


class AgentProcess:
    """`argv` running with stdin, stdout and stderr on pipes; a context manager that ends it."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> None:
        self.process = subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.frames: list[Frame] = []
        self.oversize: list[OversizeLine] = []
        self.unfinished = 0
        self._stderr: list[bytes] = []
        self._ended = False
        self._cond = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            with suppress(BrokenPipeError):  # what was still buffered for a process that is gone
                stream.close()

    def send(self, *lines: str) -> None:
        """Write `lines` in one piece, newlines added."""
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        self.process.stdin.flush()

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait_for(self, match: Matcher, *, count: int = 1, after: int = 0) -> Frame:
        """The `count`-th matching frame of those from index `after` on, as soon as it is there."""

        def found() -> Frame | None:
            hits = [frame for frame in self.frames[after:] if match(frame)]
            return hits[count - 1] if len(hits) >= count else None

        with self._cond:
            self._cond.wait_for(lambda: found() or self._ended, DEADLINE_S)
            hit = found()
        if hit is None:
            tail = "\n".join(frame.raw[:300] for frame in self.frames[-20:])
            raise AssertionError(
                f"no such frame; the process {'ended' if self._ended else 'goes on'}; "
                f"last frames:\n{tail}\nstderr:\n{self.stderr()[-2000:]}"
            )
        return hit

    def wait_end(self) -> int:
        """The exit status, once both outputs have ended; negative for a signal."""
        for reader in self._readers:
            reader.join(DEADLINE_S)
        return self.process.wait(DEADLINE_S)

    def matching(self, match: Matcher) -> list[Frame]:
        with self._cond:
            return [frame for frame in self.frames if match(frame)]

    def index(self, frame: Frame) -> int:
        """Where `frame` stands in the order of arrival."""
        with self._cond:
            return next(i for i, other in enumerate(self.frames) if other is frame)

    def stderr(self) -> str:
        with self._cond:
            return b"".join(self._stderr).decode("utf-8", "replace")

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        splitter = LineSplitter()
        descriptor = self.process.stdout.fileno()
        while chunk := os.read(descriptor, 262_144):
            lines = splitter.feed(chunk)
            frames = [classify(line) for line in lines if isinstance(line, bytes)]
            with self._cond:
                self.oversize += [line for line in lines if isinstance(line, OversizeLine)]
                self.frames += frames
                self._cond.notify_all()
        with self._cond:
            self.unfinished = splitter.discard()
            self._ended = True
            self._cond.notify_all()

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        descriptor = self.process.stderr.fileno()
        while chunk := os.read(descriptor, 65_536):
            with self._cond:
                self._stderr.append(chunk)
