"""A deploy during which something happens at named steps.

``python -m tests.live.mortal_deploy WHEN:STEP:SIGNAL[:WHO]… -- ARGUMENTS…``: the real deploy with
ARGUMENTS, which sends each SIGNAL to WHO (the deploy itself, the ``successor`` or the ``predecessor``)
before or after (WHEN) it does STEP.
"""

import os
import signal
import sys
import time

from holdoverd.deploy import __main__ as program
from holdoverd.deploy.control import Control
from holdoverd.deploy.rules import Step
from holdoverd.deploy.run import Deploy


def arm(fates: list[str]) -> None:
    do = Deploy._do

    def strike(self: Deploy, when: str, step: Step) -> None:
        for fate in fates:
            wanted, name, number, *who = fate.split(":")
            if (wanted, name) == (when, step.name):
                pid = pid_of(self, who[0]) if who else os.getpid()
                print(f"struck {fate} at {time.monotonic()}", flush=True)
                os.kill(pid, signal.Signals[number])

    def doing(self: Deploy, step: Step) -> None:
        strike(self, "before", step)
        do(self, step)
        strike(self, "after", step)

    Deploy._do = doing  # type: ignore[method-assign]


def pid_of(deploy: Deploy, who: str) -> int:
    """The process of the generation that is deployed, or of the latest before it."""
    mine, host = deploy._generation, deploy._host
    generation = mine
    if who == "predecessor":
        generation = max(g for g in host.live_generations() if g < mine)
    with Control(host.control_path(generation)) as control:
        return control.pid


if __name__ == "__main__":
    end = sys.argv.index("--")
    arm(sys.argv[1:end])
    sys.argv[1 : end + 1] = []
    sys.exit(program.main())
