"""Jobs: what is done with a file by a program that may take its time, outside the daemon.

Owns: the queue's rules (`rules`), its table (`catalogue/jobs.py`), the daemon's side (`service`: what
the doors ask, and `upkeep`: noticing dead workers, asking for new ones), the worker process (`worker`,
one job at a time), and the processors that come with Holdover (`processors`).

Promises: a job that was accepted ends as ``done``, ``dead`` or ``cancelled``, whatever is killed
meanwhile, and publishes one result at most. It may *run* more than once: a worker can die after its
processor has acted and before it could say so. Each run is an **attempt**, numbered when it is
claimed; the number is the fence on every later write, so that a worker that was stopped and comes
back changes nothing.

Does not: order jobs beyond oldest first, run a processor in the daemon, or keep a file on the
worker's disk (``input = "stream"``). Time on the wall decides only when a delayed job is due again;
whether a worker lives is told by its lock, and on other hosts by heartbeats counted against the
observer's own clock.
"""
