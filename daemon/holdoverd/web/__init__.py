"""The web client: Holdover in a browser, and the serving of its files.

`client/` is its source in TypeScript, which a wheel leaves out; `static/` is what
`packaging/webclient.py` builds from it, which git leaves out. It talks to the daemon as any client
does, by the contract alone: nothing here knows of sessions.

Promises: a file's address names its contents, so it is cached for ever; a page that another
release has sent still finds its files here. Where the client was not built, the front page says so.

Does not: render pages. What a browser shows is made in the browser.
"""
