"""Files between this machine and storage: bytes go straight there, the daemon only signs.

Owns: how a transfer is cut, resumed and checked (`rules`), how what a person types names files
(`names`); what survives a broken transfer (`journal`), one connection to storage (`lane`), the two
directions (`sending`, `fetching`), and what is shown meanwhile (`bar`).

Promises: a transfer that breaks off is gone on with by the same command, and sends or fetches at
most the parts that were under way once more; a file appears whole under its name or not at all; what
arrives has the SHA-256 that was declared, or the command ends with exit code 6. No signed URL is
printed or kept.

Does not: hold more than a part a thread in memory, or anything open between two commands.
"""
