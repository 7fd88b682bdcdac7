"""`holdover up`: plays systemd's part in the foreground, for a laptop, a container, a first look.

Owns: the listening sockets, the daemon's process (started again whenever it dies), the launch
socket of the one account there is, and a keeper process for each launch. `plan` decides what to run
where, `restart` when to start again, `health` what a silent daemon is; they do no I/O of their own.

Promises: the daemon may die at any moment and agents do not notice; Ctrl-C reaches neither the
daemon nor the agents by itself, but stops both in order. Should the supervisor itself be killed, the
daemon stops too, agents run on, and the next `holdover up` finds them.

Does not: protect. There is no unit around an agent here, so no memory limit, no sandbox beyond the
keeper's namespaces, and nobody starts the supervisor again. It says so when it starts.
"""

from holdoverd.supervisor.plan import UpOptions
from holdoverd.supervisor.run import run_up

__all__ = ["UpOptions", "run_up"]
