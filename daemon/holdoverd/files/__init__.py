"""Files: whose they are, what they are called, and who may send or read their bytes.

Owns: files (`service`) and how they come about (`uploads`), links and upload links (`links`), what is
carried between them and workspaces (`carrier`), the sweeper that makes storage and catalogue agree
(`sweeper`), and the rules of all of them (`rules`, without I/O).

Promises: no byte of a file passes through here; a row is there before the bytes it is for, and a
file is `ready` only once storage was seen to hold what was declared; completing is a compare-and-set,
so that however often it is asked, it happens once; storage keys are never used again; a token is
stored as its digest, a pre-signed URL not at all; every use of a link leaves an audit row, in the
transaction that counts it.

Does not: speak S3 (`storage` does), look into what is uploaded, or delete what was confirmed unless
its owner says so.
"""
