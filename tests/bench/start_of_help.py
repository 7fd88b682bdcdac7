"""From exec to exit of `holdover --help` and of `one_command.py --help`, a click program of one
command, with the same interpreter, by turns. Each is a small script, as pip writes them, whose
modules have been compiled before.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.rows import Row

RUNS = 25
ONE_COMMAND = Path(__file__).with_name("one_command.py")
# As an installed console script calls it.
HOLDOVER = "import sys\nfrom holdover.main import main\nsys.exit(main())\n"


def measure() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "holdover_script.py")
        script.write_text(HOLDOVER)
        times: dict[Path, list[float]] = {script: [], ONE_COMMAND: []}
        for _ in range(RUNS + 1):
            for program, taken in times.items():
                taken.append(_help_ms(program))
    # The first run of each wrote the bytecode.
    yield Row(
        "`holdover --help`",
        "ms",
        times[script][1:],
        "a one-command click program",
        times[ONE_COMMAND][1:],
        at_most=1.5,
    )


def _help_ms(program: Path) -> float:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, str(program), "--help"], env=env, stdout=subprocess.DEVNULL, check=True
    )
    return (time.perf_counter() - started) * 1000
