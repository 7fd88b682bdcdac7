"""How long `holdover --help` takes beside the smallest click program there can be."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.rows import Row

RUNS = 25

ONE_COMMAND = """
import click

@click.command()
@click.option("--name", help="Who.")
def hello(name):
    "Say hello."

if __name__ == "__main__":
    hello()
"""
# As an installed console script calls it.
HOLDOVER = "from holdover.main import main\nmain()\n"


def measure() -> Iterator[Row]:
    """The medians of interleaved runs, so that both see the same machine."""
    with tempfile.TemporaryDirectory() as folder:
        programs = {}
        for name, text in (("click", ONE_COMMAND), ("holdover", HOLDOVER)):
            programs[name] = Path(folder, f"{name}_program.py")
            programs[name].write_text(text)
        times: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(RUNS + 1):
            for name, program in programs.items():
                times[name].append(_help_ms(program))
    # The first run of each wrote the bytecode.
    median = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    yield Row(
        "holdover --help",
        median["holdover"],
        "ms",
        baseline=median["click"],
        against="--help of a one-command click program",
        at_most=1.5,
    )


def _help_ms(program: Path) -> float:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, str(program), "--help"], env=env, stdout=subprocess.DEVNULL, check=True
    )
    return (time.perf_counter() - started) * 1000
