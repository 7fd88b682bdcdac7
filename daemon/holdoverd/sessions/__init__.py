"""Sessions: agent conversations that outlive every process around them.

Owns: what a session is (`model`) and what changes it (`agent_lines`, `launches`, `acts`), reading
spools (`spool`), starting agents (`launcher`), speaking to their keepers (`link`), who watches
(`viewer`), and the one task that ties these together for a session this instance owns (`owner`).
Which sessions those are is `holding`; `making` makes new ones; `service` is what the doors call.

Promises: a message is in the catalogue before anybody hears of it; a prompt, an answer and every
other command is in the catalogue before it leaves for the agent; nothing is stored twice, sent
twice or left out over any crash; a stale owner changes nothing (every write carries its epoch).

Does not: keep the agent alive (its unit and keeper do), parse agents' lines (`agents` does), know
HTTP (`http` does).
"""
