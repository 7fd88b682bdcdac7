"""Storage: the S3 server that holds the bytes of files, as the daemon and workers speak to it.

Owns: signing (`signing`, rules without I/O), the calls that the daemon makes (`client`), where the
keys come from (`credentials`); and the SeaweedFS of this host: what it is to run as (`plan`, rules),
its keys (`keys`), its start as a unit (`serve`), and for `holdover up` its walls (`enclose`) and the
one way through them (`door`). `doctor` proves of any store what the others lean on.

Promises: no byte of a file passes through here on its way between a client and storage; a URL is
signed for the name that clients see; a call ends within its timeouts and never blocks the event
loop; what goes wrong becomes a StorageUnavailable in words; no key or signature is ever logged.

Does not: know whose a key is or what a file is called (`files` does).
"""
