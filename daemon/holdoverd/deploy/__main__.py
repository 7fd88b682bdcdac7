"""`python -m holdoverd.deploy --generation N`: what holdover-deploy@N.service runs, and, with
``--up``, the supervisor of `holdover up`.

Exit status: 0 permanent, 3 taken back (the reason is printed and kept), 4 another deploy is under
way, 1 it could not be done. Killed, it is started again and goes on from what it finds; stopped by
SIGTERM, it takes itself back.
"""

import argparse
import os
import signal
import sys
from functools import partial
from pathlib import Path

from holdoverd.deploy.hosts import SystemdHost
from holdoverd.deploy.layout import InstallError
from holdoverd.deploy.run import Deploy, DeployBusyError
from holdoverd.deploy.uphost import UpHost
from holdoverd.errors import SettingsError
from holdoverd.settings import load_default

ROLLED_BACK = 3
BUSY = 4


def tell(progress: Path, text: str) -> None:
    """To the journal, and to whoever follows the deploy."""
    print(text, flush=True)
    with progress.open("a") as file:
        file.write(text + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="holdoverd.deploy")
    parser.add_argument("--generation", type=int, required=True)
    parser.add_argument("--up", action="store_true", help="on the host of a `holdover up`")
    arguments = parser.parse_args()
    generation: int = arguments.generation
    try:
        settings = load_default(os.environ)
        host: SystemdHost | UpHost = SystemdHost()
        if arguments.up:
            host = UpHost(Path(os.environ["HOLDOVER_RUNTIME_DIR"]))
        deploy = Deploy(
            host,
            generation,
            ready_s=settings.deploy.ready_s,
            bake_s=settings.deploy.bake_s,
            say=partial(tell, host.progress_path(generation)),
        )
        signal.signal(signal.SIGTERM, lambda *_: deploy.stop())
        outcome = deploy.run()
    except DeployBusyError as error:
        print(error, file=sys.stderr)
        return BUSY
    except (InstallError, SettingsError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if outcome.state == "committed":
        return 0
    print(f"taken back: {outcome.reason}", file=sys.stderr)
    return ROLLED_BACK


if __name__ == "__main__":
    sys.exit(main())
