"""The doors: HTTP/1.1 and WebSocket on one port, for the public socket and the admin socket.

Owns: connections, from accept to close; who may ask what from where (`wire`); the shape of every
request (`shapes`, `frames`); the table of routes (`app`); logging in (`login`); one viewer's
WebSocket (`stream`), from its `upgrade` over the `frame_queue` to the `answering` of what it asks.

Promises: every error leaves as the contract's JSON, never as a traceback; Host, Origin, token and
scope are checked before a body is read and before it is told whether a thing exists; every wait
and every buffer has a bound; a listening socket is only ever polled or not polled, never shut
down, because other instances share it.

Does not: know what a session means (`sessions` does), speak TLS (a front proxy's task), or write
anything but tokens and login codes to the catalogue.
"""
