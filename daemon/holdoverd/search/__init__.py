"""Search over everything that was said (contract.md, ``GET /v1/search``).

`words` are the rules: which words of a message are searched, how what somebody typed is understood,
what is shown of a hit. `catalogue/searched.py` keeps the index, in the transaction that stores the
messages; `fill` indexes what a burst left, and what an earlier release stored.

Promises: a message that is stored is found; one that is purged, or not to be seen, is not. What
somebody types is words, never an engine's language. Does not rank: the latest stands first, so that
a page and its cursor mean the same however much has been said. Does not know of stems or synonyms,
and takes a run of Chinese or Japanese characters as one word.
"""
