"""The units that jobs run in, and which release's workers are wanted.

Workers outlive daemons. When a release is made permanent, its units are written, and a word of it is
left beside the workers' locks: one of another release finishes its job, sees the word, and goes.
Shared by `packaging/install`, hence the standard library alone.
"""

from __future__ import annotations

from pathlib import Path

from holdoverd.deploy import layout
from holdoverd.deploy.layout import render, write_if_changed
from holdoverd.jobs import roll

SOCKET = "holdover-worker.socket"
SERVICE = "holdover-worker@.service"


def worker_units(templates: Path, *, release_dir: str) -> dict[str, str]:
    """{unit file name: its text}; none from releases that know no jobs."""
    if not (templates / SOCKET).exists():
        return {}
    service = (templates / f"{SERVICE}.in").read_text()
    return {
        SOCKET: (templates / SOCKET).read_text(),
        SERVICE: render(service, {"RELEASE_DIR": release_dir}),
    }


def renew(release_dir: Path) -> bool:
    """Bring the workers' units to this release; tells whether any changed (then reload)."""
    units = worker_units(layout.templates_of(release_dir), release_dir=str(release_dir))
    changed = [write_if_changed(layout.UNITS / name, text) for name, text in units.items()]
    return any(changed)


def want(release_dir: Path) -> None:
    """Have workers of other releases go once they have finished. After `renew` and its reload."""
    folder = layout.RUNTIME / "workers"
    # Where none lives and nothing was said, there is nobody to tell.
    if any(folder.glob(f"*{roll.SUFFIX}")) or (folder / roll.RELEASE).exists():
        roll.want(folder, release_dir)
