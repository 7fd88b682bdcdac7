"""`holdover up` with stand-ins: ``drive.py PORT [NAME=SECONDS…]`` shortens its times."""

import os
import sys
from pathlib import Path

from holdoverd.errors import HoldoverError
from holdoverd.supervisor import UpOptions, agents, daemon, health, run_up

FOLDER = Path(__file__).parent


def main(port: str, *times: str) -> int:
    for setting in times:
        name, _, value = setting.partition("=")
        for module in (agents, daemon, health):
            if hasattr(module, name):
                setattr(module, name, float(value))
    options = UpOptions(
        port=int(port),
        daemon_command=(sys.executable, str(FOLDER / "stand_in.py")),
        keeper_command=(sys.executable, str(FOLDER / "keeper_stand_in.py"), "holdoverd.keeper"),
    )
    try:
        return run_up(options, os.environ)
    except HoldoverError as error:
        print(f"holdover: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
