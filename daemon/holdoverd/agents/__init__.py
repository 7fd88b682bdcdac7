"""What Holdover knows about agents: their protocol, and how to start each kind.

Owns: reading an agent's ``stream-json`` lines (`stream_json`), what is being said but not yet
finished (`open_blocks`), the lines a host writes to an agent (`host_frames`), and command lines,
environment and transcript places per kind of agent (`presets`). Beside them, for the command line
alone: bringing agents' programs onto a machine (`installing`).

Promises: no I/O, no clock, no task anywhere in here, `installing` apart: bytes in, records out. Nothing an agent
prints raises: every line is classified, whatever it holds, and a line that is handed on as JSON
is JSON by the strictest reader's standard, so that it may be embedded unchanged into what browsers
parse.

Does not: decide what a session's state is, store anything, or talk to a process.
"""
