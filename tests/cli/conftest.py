"""A fake daemon, and `holdover` run in this process against it."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.fake_daemon import FakeDaemon


@dataclass(frozen=True)
class Ran:
    """What one command line did."""

    code: int
    out: str
    err: str


Holdover = Callable[..., Ran]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in which nothing of this machine is found."""
    for name in [name for name in os.environ if name.startswith("HOLDOVER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOLDOVER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("HOLDOVER_CONFIG_DIR", str(tmp_path / "etc"))
    return tmp_path


@pytest.fixture
def daemon(home: Path) -> Iterator[FakeDaemon]:
    """A fake daemon whose admin socket `holdover` finds."""
    fake = FakeDaemon()
    with fake.serve(home) as (_, url):
        fake.url = url
        yield fake


@pytest.fixture
def holdover(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Holdover:
    """Run `holdover ARGS`, with `stdin` as its piped input."""
    from holdover.main import run

    def call(*args: str, stdin: str | bytes = "") -> Ran:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        capfd.readouterr()
        code = run(list(args))
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    return call
