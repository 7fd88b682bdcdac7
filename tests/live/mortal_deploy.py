"""A deploy to which something happens at named steps.

``python -m tests.live.mortal_deploy WHEN:STEP:SIGNAL… -- ARGUMENTS…``: the real deploy with
ARGUMENTS, which sends itself each SIGNAL before or after (WHEN) it does STEP.
"""

import os
import signal
import sys

from holdoverd.deploy import __main__ as program
from holdoverd.deploy.rules import Step
from holdoverd.deploy.run import Deploy


def arm(fates: list[str]) -> None:
    do = Deploy._do

    def strike(when: str, step: Step) -> None:
        for fate in fates:
            wanted, name, number = fate.split(":")
            if (wanted, name) == (when, step.name):
                os.kill(os.getpid(), signal.Signals[number])

    def doing(self: Deploy, step: Step) -> None:
        strike("before", step)
        do(self, step)
        strike("after", step)

    Deploy._do = doing  # type: ignore[method-assign]


if __name__ == "__main__":
    end = sys.argv.index("--")
    arm(sys.argv[1:end])
    sys.argv[1 : end + 1] = []
    sys.exit(program.main())
