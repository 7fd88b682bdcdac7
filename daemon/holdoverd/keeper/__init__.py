"""The keeper: holds one agent process while daemons come and go.

It owns, for one launch: the agent's stdin and stdout pipes, the listening socket its owner
reaches it through, the session's lock, and the spool file that the agent's stdout goes into.

It promises:

* every line it has acknowledged reaches the agent's stdin once, whole, in order, as long as the
  agent lives and reads;
* every byte of the agent's stdout reaches the spool once, in order, through short writes and a
  full disk, followed by one end record that the agent cannot forge;
* an owner with a lower epoch than the highest it has heard changes nothing;
* no owner, rival or agent can block it or make it grow: one line (16 MiB) and a few chunks of
  64 KiB are all it ever holds;
* the lock is held until the agent is gone, however the keeper ends.

It does not look into what the agent says or is told (lines are bytes here), keeps no history,
restarts nothing and knows no catalogue. `PROTOCOL.md` beside this file is its wire.

The rules are plain modules: `protocol` (owners), `spool` (the spool), `launch` (the request).
The shell: `keeper` (the loop), `chain` (unshare, init, agent), `init` (PID 1 of the agent's
namespace), `account`, `folders` and `transcripts` (what the launch asks of the account).
Standard library only, and this file imports nothing: every session pays for the keeper's memory.
"""
