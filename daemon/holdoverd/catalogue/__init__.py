"""The catalogue: sessions, messages, tokens and instances, in a database that survives power cuts.

Owns the schema and its migrations, the only connections to the database, and the rule that a
session is written by its owner alone. Promises: a write that returned is on the disk; a change is
stored whole or not at all; the messages of a session are numbered without gap; the text of a
message comes back byte for byte. Does not decide anything: what to store is computed by the rules
of the other folders, which hand over records. Holds no state that a process could lose.

`records` are the rows; `sessions`, `messages`, `tokens` and `instances` are plain functions on a
Connection; `store.Catalogue` runs them, writes in one thread with group commit, reads in a few.
"""
