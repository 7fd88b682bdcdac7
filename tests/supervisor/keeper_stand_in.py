"""A stand-in for a keeper: says over the launch connection who it is, then waits.

Its name on the command line is ``holdoverd.keeper``, by which `holdover up` finds keepers. With
``stubborn`` as the request it ignores TERM.
"""

import json
import os
import signal
import socket
import threading

launch = socket.socket(fileno=os.dup(0))
request = launch.recv(100)
if request == b"stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
told = {"pid": os.getpid(), "session": os.getsid(0), "blocking": os.get_blocking(0)}
launch.sendall(json.dumps(told).encode() + b"\n")
launch.close()
threading.Event().wait()
