"""The web client's front page and files, open to everyone: they hold nothing of anybody's."""

import base64
import hashlib

import trio

from holdoverd.errors import NotFound
from holdoverd.http.context import Context
from holdoverd.http.wire import Request, Response, accepts_gzip, entity_tags
from holdoverd.web.assets import Asset

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:1.1rem/1.6 system-ui,sans-serif;max-width:38rem;margin:4rem auto;padding:0 1rem}"
    "code{font-size:1rem}"
)

# What there is instead where the client was not built.
_PLAIN_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Holdover</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>Holdover</h1>
<p>Holdover keeps agent sessions running while everything around them is replaced. This server
is up, but its web client is missing: it was not built here, for want of Node or of packages from
npm. <code>python packaging/webclient.py build</code> in the checkout builds it, or says what it
needs; then start Holdover again.</p>
<h2>Talk to an agent</h2>
<p>Make a token on the server with <code>holdover token new</code>. Then, on your own machine, run
<code>holdover login</code> with this page’s address, and <code>holdover session new</code>.</p>
<p>Programs use the interface under <code>/v1/</code>; <a href="/healthz">/healthz</a> tells
whether the server can serve.</p>
</main>
</body>
</html>
""".encode()

_STYLE_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

_COMMON_HEADERS = (("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"))

_PLAIN_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)


def client_policy(storage: str) -> str:
    """What the client may do. `storage`: the origin of clients' URLs, "" where there is none.

    Agents write what strangers told them. Whatever slips through the client's own cleaning may load
    nothing, run nothing and send nothing anywhere but here and to storage, which takes nothing
    unsigned; images come as data, which the agent's lines hold.
    """
    where = f"'self' {storage}".rstrip()
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
        f" connect-src {where}; manifest-src 'self'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'; trusted-types dompurify worker"
    )


_FOREVER = "public, max-age=31536000, immutable"


def _page_headers(policy: str) -> tuple[tuple[str, str], ...]:
    return (
        ("Content-Type", "text/html; charset=utf-8"),
        *_COMMON_HEADERS,
        ("Cache-Control", "no-cache"),
        ("Content-Security-Policy", policy),
    )


async def front_page(context: Context, request: Request) -> Response:
    """The client, or where it was not built a page that says so."""
    index = context.client.index
    if index is None:
        return Response(200, _PLAIN_PAGE, _page_headers(_PLAIN_POLICY))
    files = context.files.files if context.files is not None else None
    storage = files.store.public_origin if files is not None and files.has_store else ""
    return _answer(request, index, _page_headers(client_policy(storage)))


async def worker(context: Context, request: Request) -> Response:
    """What shows pushed messages. Its address is bound to the subscriptions: no digest in it."""
    if context.client.worker is None:
        raise NotFound("The web client was not built here.")
    headers = (
        ("Content-Type", context.client.worker.media_type),
        *_COMMON_HEADERS,
        ("Cache-Control", "no-cache"),
        ("Content-Security-Policy", "default-src 'none'"),
    )
    return _answer(request, context.client.worker, headers)


async def asset(context: Context, request: Request) -> Response:
    """A file of the client: of this release, or of another one whose page is still open."""
    name = request.params["name"]
    found = context.client.asset(name)
    if found is None:
        found = await trio.to_thread.run_sync(context.client.asset_of_others, name)
    if found is None:
        raise NotFound("No release on this host has such a file; load the page again.")
    headers = (
        ("Content-Type", found.media_type),
        *_COMMON_HEADERS,
        ("Cache-Control", _FOREVER),
        # An SVG can be opened as a page of its own.
        ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    )
    return _answer(request, found, headers)


def _answer(request: Request, asset: Asset, headers: tuple[tuple[str, str], ...]) -> Response:
    headers = (*headers, ("ETag", asset.etag), ("Vary", "Accept-Encoding"))
    if asset.etag in entity_tags(request.head):
        return Response(304, b"", headers)
    if asset.compressed is not None and accepts_gzip(request.head):
        return Response(200, asset.compressed, (*headers, ("Content-Encoding", "gzip")))
    return Response(200, asset.content, headers)
