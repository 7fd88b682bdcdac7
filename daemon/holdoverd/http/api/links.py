"""Links and upload links over HTTP: made and revoked under ``/v1``, used at ``/l/`` and ``/u/``.

What is at ``/l/`` and ``/u/`` is open to everyone who has the token in its path. People get pages
there, and errors in words on a page; programs get JSON.
"""

from holdoverd.errors import Forbidden, RequestError
from holdoverd.files import rules
from holdoverd.files.who import AsCaller, ByUploadLink
from holdoverd.http import shapes
from holdoverd.http.api import link_pages as pages
from holdoverd.http.api.files import (
    acting,
    new_file,
    redirect_to,
    sent_parts,
    services,
    visible_owner,
    wanted_parts,
)
from holdoverd.http.context import Context
from holdoverd.http.shapes import Fields, Json
from holdoverd.http.wire import (
    Request,
    Response,
    client_address,
    json_response,
    no_content,
    parse_query,
)

FORM = "application/x-www-form-urlencoded"


# --- links ------------------------------------------------------------------------------------


async def create(context: Context, request: Request) -> Response:
    fields = Fields(request.json_or_empty())
    link, token = await services(context).links.create(
        AsCaller(request.caller),
        request.params["id"],
        expires_in_s=fields.lifetime_s("expires_in_s"),
        max_downloads=fields.integer("max_downloads", low=1),
        password=fields.text("password", max_chars=200, one_line=False),
    )
    return json_response({**link, "url": f"{_base(context, request)}/l/{token}"}, 201)


async def list_all(context: Context, request: Request) -> Response:
    query = request.query
    answer = await services(context).links.list_links(
        await visible_owner(context, request),
        file=shapes.query_text(query, "file"),
        limit=shapes.query_limit(query),
        cursor=shapes.query_text(query, "cursor"),
    )
    return json_response(answer)


async def revoke(context: Context, request: Request) -> Response:
    caller = request.caller
    owner = None if caller.admin else caller.owner
    actor = AsCaller(caller).actor
    await services(context).links.revoke(owner, request.params["id"], actor)
    return no_content()


async def follow(context: Context, request: Request) -> Response:
    """``GET /l/{token}``. A HEAD is answered without a URL, and so does not count."""
    links = services(context).links
    token = request.params["token"]
    try:
        if request.head.method == "HEAD":
            await links.peek(token)
            return no_content()
        found = await links.follow(token, None, _address(context, request))
    except RequestError as error:
        return _sorry(request, error)
    if found.url is not None:
        return redirect_to(found.url)
    return pages.password_page(found.name, _storage(context))


async def follow_with_password(context: Context, request: Request) -> Response:
    form = (request.head.header(b"content-type") or "").partition(";")[0].strip().lower() == FORM
    data = parse_query(request.body.decode("utf-8", "replace")) if form else request.json()
    token = request.params["token"]
    password = Fields(data).text("password", required=True, max_chars=200, one_line=False)
    links = services(context).links
    try:
        found = await links.follow(token, password, _address(context, request))
    except Forbidden as error:
        if not _wants_page(request):
            raise
        name = (await links.peek(token)).name
        return pages.password_page(name, _storage(context), wrong=error.message)
    except RequestError as error:
        return _sorry(request, error)
    assert found.url is not None, "a password was given"
    return redirect_to(found.url)


# --- upload links -----------------------------------------------------------------------------


async def create_upload_link(context: Context, request: Request) -> Response:
    data = request.json()
    fields = Fields(data)
    path = fields.text("path", max_chars=rules.MAX_PATH_BYTES, one_line=False, empty=True)
    expires_in_s = fields.lifetime_s("expires_in_s", required=True)
    max_bytes = fields.integer("max_bytes", low=1, required=True)
    assert expires_in_s is not None
    assert max_bytes is not None
    link, token = await services(context).links.create_upload_link(
        await acting(context, request, data),
        path=rules.check_path(path or ""),
        expires_in_s=expires_in_s,
        max_bytes=max_bytes,
    )
    return json_response({**link, "url": f"{_base(context, request)}/u/{token}"}, 201)


async def list_upload_links(context: Context, request: Request) -> Response:
    answer = await services(context).links.list_upload_links(
        await visible_owner(context, request),
        limit=shapes.query_limit(request.query),
        cursor=shapes.query_text(request.query, "cursor"),
    )
    return json_response(answer)


async def revoke_upload_link(context: Context, request: Request) -> Response:
    caller = request.caller
    owner = None if caller.admin else caller.owner
    actor = AsCaller(caller).actor
    await services(context).links.revoke_upload_link(owner, request.params["id"], actor)
    return no_content()


async def upload_page(context: Context, request: Request) -> Response:
    try:
        link = await services(context).links.upload_link(request.params["token"])
    except RequestError as error:
        return _sorry(request, error)
    return pages.upload_page(link.max_bytes - link.used_bytes, _storage(context))


async def send_file(context: Context, request: Request) -> Response:
    """``POST /u/{token}``: as ``POST /v1/files``, into the link's folder."""
    found = services(context)
    link = await found.links.upload_link(request.params["token"])
    new = new_file(request.json(), link.path)
    answer = await found.uploads.create(ByUploadLink(link), new)
    file = answer["file"]
    assert isinstance(file, dict)
    await found.links.used_upload_link(link, file["id"], _address(context, request))
    return json_response(answer, 201)


async def renew_sent(context: Context, request: Request, fields: Json) -> Json:
    """Fresh URLs in a kept answer of `send_file`; none once the upload is over."""
    upload = fields["upload"]
    assert isinstance(upload, dict)
    who = await _sender(context, request)
    urls = await services(context).uploads.first_urls(who, upload["id"])
    return {**fields, "upload": {**upload, **urls}}


async def renew_sent_parts(context: Context, request: Request, _fields: Json) -> Json:
    who = await _sender(context, request)
    numbers, digests = wanted_parts(request.json())
    return await services(context).uploads.urls(who, request.params["id"], numbers, digests)


async def _sender(context: Context, request: Request) -> ByUploadLink:
    links = services(context).links
    return ByUploadLink(await links.upload_link(request.params["token"], begun=True))


async def sent(context: Context, request: Request) -> Response:
    who = await _sender(context, request)
    return json_response(await services(context).uploads.upload(who, request.params["id"]))


async def send_parts(context: Context, request: Request) -> Response:
    who = await _sender(context, request)
    numbers, digests = wanted_parts(request.json())
    uploads = services(context).uploads
    return json_response(await uploads.urls(who, request.params["id"], numbers, digests))


async def send_complete(context: Context, request: Request) -> Response:
    who = await _sender(context, request)
    named = sent_parts(request.json())
    file = await services(context).uploads.complete(who, request.params["id"], named)
    return json_response({"file": file})


async def send_abort(context: Context, request: Request) -> Response:
    who = await _sender(context, request)
    await services(context).uploads.abort(who, request.params["id"])
    return no_content()


# --- where, who, how ----------------------------------------------------------------------------


def _base(context: Context, request: Request) -> str:
    return context.base_url(request.head)


def _address(context: Context, request: Request) -> str:
    return client_address(
        request.head.peer, request.head.tokens(b"x-forwarded-for"), context.trusted_proxies
    )


def _storage(context: Context) -> str:
    return services(context).files.store.public_origin


def _wants_page(request: Request) -> bool:
    return any(item.startswith("text/html") for item in request.head.tokens(b"accept"))


def _sorry(request: Request, error: RequestError) -> Response:
    """The error on a page for people; raised for programs."""
    if not _wants_page(request):
        raise error
    return pages.sorry_page(error)
