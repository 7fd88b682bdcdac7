"""How instances of one host pass connections and sessions to one another; PROTOCOL.md has the bytes.

Rules without I/O: `roles` (who serves, drains, may go), `transfer` (who may touch what is passed),
`packed` (a connection as a record). `wire` moves packets and descriptors, `siblings` keeps the links,
`transfers` gives and takes, `routing` sends what people ask to the owner.
"""
