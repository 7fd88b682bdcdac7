"""`python -m tests.bench [NAME…]`: run the measurements, print one table, keep the numbers.

A run of all of them renews results.md and results.json beside this file. Exit status 1 when a row
does not keep its bound.
"""

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from statistics import median

from tests.bench import (
    downloads,
    file_transfer,
    files,
    job_queue,
    job_stream,
    latency,
    memory,
    million,
    spool_to_viewer,
    start_of_daemon,
    start_of_help,
)
from tests.bench.rows import Row

MEASUREMENTS = {
    "file_transfer": file_transfer,
    "spool_to_viewer": spool_to_viewer,
    "latency": latency,
    "memory": memory,
    "start_of_daemon": start_of_daemon,
    "start_of_help": start_of_help,
    "files": files,
    "downloads": downloads,
    "job_queue": job_queue,
    "job_stream": job_stream,
    "million": million,
}
HERE = Path(__file__).parent
LIBRARIES = ("trio", "trio-websocket", "wsproto", "msgspec", "SQLAlchemy", "click")


def main(names: list[str]) -> int:
    # What is started finds its modules compiled, as what is installed does.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if unknown := set(names) - MEASUREMENTS.keys():
        print(f"No measurement {', '.join(unknown)}; there are {', '.join(MEASUREMENTS)}.")
        return 2
    load = os.getloadavg()[0]
    rows: list[Row] = []
    texts: list[str] = []
    for name in names or MEASUREMENTS:
        module = MEASUREMENTS[name]
        print(f"{name} …", file=sys.stderr, flush=True)
        rows += module.measure()
        texts.append((module.__doc__ or "").strip())
    lines = "\n".join(table(rows))
    print(lines)
    if not names:
        machine = _machine(load)
        what = "\n\n".join(
            f"**{name}.** {text}" for name, text in zip(MEASUREMENTS, texts, strict=True)
        )
        (HERE / "results.md").write_text(
            "# Measurements\n\nWritten by `make bench`; every single run is in results.json. "
            "Medians, and the ratio of each pair of runs as lowest / median / highest.\n\n"
            f"{lines}\n\nMeasured on {machine['summary']}.\n\n## What is compared\n\n{what}\n"
        )
        shown = {"machine": machine, "rows": [row.as_json() for row in rows]}
        (HERE / "results.json").write_text(json.dumps(shown, indent=1, ensure_ascii=False) + "\n")
    return 0 if all(row.good for row in rows) else 1


def table(rows: list[Row]) -> list[str]:
    lines = [
        "| what | Holdover | beside | its figure | ratio | bound | kept |",
        "|---|---:|---|---:|---:|---:|---|",
    ]
    for row in rows:
        low, high = row.ratios[0], row.ratios[-1]
        kept = ("yes" if row.good else "**no**") if row.bound else ""
        lines.append(
            f"| {row.name} | {_figure(median(row.ours))} {row.unit} | {row.against} "
            f"| {_figure(median(row.theirs))} {row.unit} "
            f"| {low:.2f} / {median(row.ratios):.2f} / {high:.2f} | {row.bound} | {kept} |"
        )
    return lines


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def _machine(load: float) -> dict[str, str]:
    """What the figures depend on, and nothing that names the machine.

    `load`: the load average of the minute before, which others caused.
    """
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    summary = (
        f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python "
        f"{platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; load average of the minute before, by others: {load:.1f}"
    )
    return {"cores": str(os.cpu_count()), "python": platform.python_version(), **versions,
            "summary": summary}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
