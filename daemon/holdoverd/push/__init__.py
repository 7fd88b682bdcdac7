"""Web push: a phone hears that an agent waits for an answer, or has finished.

Owns: what is worth a message and how it is sealed (`rules`), the key that this host is known by at
push services (`keys`), and the sending (`service`). Subscriptions stand in the catalogue
(`catalogue/subscriptions.py`).

Promises: a push service, which is somebody else's machine, learns no word of what is sent (RFC 8291);
a subscription lives no longer than the token that made it; one that its service has forgotten is
removed; and nothing that waits here ever holds up a session: what does not fit into the queue is
dropped, for the session's page tells the same.

Does not: send twice, or keep what could not be sent over a restart. A message is a hint to look.
"""
