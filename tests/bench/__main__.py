"""`python -m tests.bench [NAME…]`: run the measurements, print one table, keep the numbers.

The numbers go to .build/bench.json. Exit status 1 when a row does not keep its bound.
"""

import dataclasses
import importlib
import json
import math
import pkgutil
import sys
from pathlib import Path

import tests.bench
from tests.bench.rows import Row

RESULTS = Path(".build/bench.json")


def main(names: list[str]) -> int:
    rows: list[Row] = []
    for info in sorted(pkgutil.iter_modules(tests.bench.__path__), key=lambda one: one.name):
        if not _wanted(info.name, names):
            continue
        module = importlib.import_module(f"tests.bench.{info.name}")
        if hasattr(module, "measure"):
            print(f"{info.name} …", file=sys.stderr, flush=True)
            rows += module.measure()
    print(f"{'WHAT':<44} {'VALUE':>12} {'RATIO':>7} {'BOUND':>9}  AGAINST")
    for row in rows:
        print(_line(row))
    RESULTS.parent.mkdir(exist_ok=True)
    shown = [
        {
            **dataclasses.asdict(row),
            "ratio": row.ratio,
            "good": row.good,
            "at_most": _finite(row.at_most),
        }
        for row in rows
    ]
    RESULTS.write_text(json.dumps(shown, indent=2) + "\n")
    return 0 if all(row.good for row in rows) else 1


def _wanted(name: str, names: list[str]) -> bool:
    return not name.startswith("_") and (not names or name in names)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _line(row: Row) -> str:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}×"
    bound = ""
    if math.isfinite(row.at_most):
        bound = f"≤ {row.at_most:g}"
    elif row.at_least:
        bound = f"≥ {row.at_least:g}"
    kept = "" if row.good else "  NOT KEPT"
    return (
        f"{row.name:<44} {row.value:>9.2f} {row.unit:<3}{ratio:>7} {bound:>9}  {row.against}{kept}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
