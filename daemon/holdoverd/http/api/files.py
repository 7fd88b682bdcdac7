"""Files and uploads over HTTP: check the request's shape, ask the file service, send what it says."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from holdoverd.callers import Caller
from holdoverd.errors import Conflict, NotFound, Unavailable, Unprocessable
from holdoverd.files import rules
from holdoverd.files.service import Files
from holdoverd.files.services import FileServices
from holdoverd.files.uploads import NewFile, Uploads
from holdoverd.files.who import AsCaller, Who
from holdoverd.http import shapes
from holdoverd.http.api.jobs import job_service
from holdoverd.http.context import Context
from holdoverd.http.shapes import Fields, Json
from holdoverd.http.wire import JOBS, Request, Response, check_scope, json_response, no_content


def services(context: Context) -> FileServices:
    if context.files is None:
        raise Unavailable("This instance has no files yet; try again.")
    return context.files


def _files(context: Context) -> Files:
    return services(context).files


def _uploads(context: Context) -> Uploads:
    return services(context).uploads


async def visible_owner(context: Context, request: Request) -> str | None:
    """Whose things a list shows: the caller's own; for an admin all (None) or the named owner's."""
    owner = shapes.owner(request.query)
    caller: Caller = request.caller
    if owner is not None:
        caller = replace(await context.acting_for(caller, owner), admin=False)
    return None if caller.admin else caller.owner


async def acting(context: Context, request: Request, data: Mapping[str, object]) -> Who:
    """Who makes something: an admin may do it for another owner."""
    owner = shapes.owner(data) or shapes.owner(request.query)
    return AsCaller(await context.acting_for(request.caller, owner))


# --- shapes -----------------------------------------------------------------------------------


def new_file(data: Mapping[str, object], path: str | None = None) -> NewFile:
    """``POST /v1/files``; with `path` the folder is given, and what the body says of it ignored."""
    fields = Fields(data)
    name = fields.text("name", required=True, one_line=False, empty=True)
    size = fields.integer("size", required=True)
    assert name is not None
    assert size is not None
    if path is None:
        path = _path(fields) or ""
    sha256 = fields.text("sha256", nullable=True, max_chars=64)
    content_type = fields.text("content_type", nullable=True) or rules.OCTETS
    return NewFile(
        name=rules.check_name(name),
        path=path,
        size=size,
        sha256=None if sha256 is None else rules.check_sha256(sha256),
        content_type=rules.check_type(content_type),
    )


def _path(fields: Fields) -> str | None:
    path = fields.text("path", max_chars=rules.MAX_PATH_BYTES, one_line=False, empty=True)
    return None if path is None else rules.check_path(path)


def wanted_parts(data: Mapping[str, object]) -> tuple[list[int], dict[int, str]]:
    """``POST …/parts``: (numbers, {number: digest})."""
    fields = Fields(data)
    numbers = fields.array("numbers", max_items=rules.MAX_NUMBERS, required=True) or []
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        raise Unprocessable("`numbers` has to be an array of integers.")
    digests: dict[int, str] = {}
    for number, digest in (fields.mapping("sha256") or {}).items():
        if not number.isascii() or not number.isdigit() or len(number) > 5:
            raise Unprocessable(f"`sha256` names a part {number[:20]!r}; name parts by number.")
        if not isinstance(digest, str):
            raise Unprocessable(f"`sha256.{number}` has to be a SHA-256 in hex, 64 digits.")
        digests[int(number)] = rules.check_sha256(digest, f"sha256.{number}")
    return [number for number in numbers if isinstance(number, int)], digests


def sent_parts(data: Mapping[str, object]) -> dict[int, str]:
    """``POST …/complete``: {number: etag}."""
    parts = Fields(data).array("parts", max_items=rules.MAX_PARTS, required=True) or []
    named: dict[int, str] = {}
    for part in parts:
        if not isinstance(part, dict):
            raise Unprocessable('Each of `parts` has to be like {"number": 1, "etag": …}.')
        fields = Fields(part, "parts.")
        number = fields.integer("number", low=1, required=True)
        etag = fields.text("etag", required=True, max_chars=200)
        assert number is not None
        assert etag is not None
        named[number] = etag
    return named


# --- handlers ---------------------------------------------------------------------------------


async def create(context: Context, request: Request) -> Response:
    data = request.json()
    new = new_file(data)
    who = await acting(context, request, data)
    return json_response(await _uploads(context).create(who, new), 201)


async def renew_created(context: Context, request: Request, fields: Json) -> Json:
    """Fresh URLs in a kept answer of `create`; none once the upload is over."""
    upload = fields["upload"]
    assert isinstance(upload, dict)
    who = AsCaller(request.caller)
    return {
        **fields,
        "upload": {**upload, **await _uploads(context).first_urls(who, upload["id"])},
    }


async def list_all(context: Context, request: Request) -> Response:
    query = request.query
    path = query.get("path") or None
    answer = await _files(context).list_files(
        await visible_owner(context, request),
        path=None if path is None else rules.check_path(path),
        below=shapes.query_flag(query, "recursive"),
        name=shapes.query_text(query, "name"),
        q=shapes.query_text(query, "q"),
        state=shapes.query_choice(query, "state", ("uploading", "ready")),
        limit=shapes.query_limit(query),
        cursor=shapes.query_text(query, "cursor", 4000),
    )
    return json_response(answer)


async def show(context: Context, request: Request) -> Response:
    who = AsCaller(request.caller)
    return json_response(await _files(context).file(who, request.params["id"]))


async def patch(context: Context, request: Request) -> Response:
    fields = Fields(request.json())
    name = fields.text("name", one_line=False, empty=True)
    answer = await _files(context).rename(
        AsCaller(request.caller),
        request.params["id"],
        None if name is None else rules.check_name(name),
        _path(fields),
    )
    return json_response(answer)


async def delete(context: Context, request: Request) -> Response:
    await _files(context).delete(AsCaller(request.caller), request.params["id"])
    return no_content()


async def download(context: Context, request: Request) -> Response:
    """302 to storage, or the URL itself with ``?redirect=false``."""
    inline = shapes.query_flag(request.query, "inline")
    redirect = request.query.get("redirect", "true")
    if redirect not in ("true", "false"):
        shapes.query_flag(request.query, "redirect")  # says what is wrong
    answer = await _files(context).download(
        AsCaller(request.caller), request.params["id"], inline=inline
    )
    if redirect == "false":
        return json_response(answer)
    return redirect_to(str(answer["url"]))


def redirect_to(url: str) -> Response:
    """302 to a pre-signed URL, which nobody may keep and which is told to nobody else."""
    headers = (("Location", url), ("Cache-Control", "no-store"), ("Referrer-Policy", "no-referrer"))
    return Response(302, b"", headers)


async def upload(context: Context, request: Request) -> Response:
    who = AsCaller(request.caller)
    return json_response(await _uploads(context).upload(who, request.params["id"]))


async def parts(context: Context, request: Request) -> Response:
    numbers, digests = wanted_parts(request.json())
    who = AsCaller(request.caller)
    answer = await _uploads(context).urls(who, request.params["id"], numbers, digests)
    return json_response(answer)


async def renew_parts(context: Context, request: Request, _fields: Json) -> Json:
    numbers, digests = wanted_parts(request.json())
    who = AsCaller(request.caller)
    return await _uploads(context).urls(who, request.params["id"], numbers, digests)


async def complete(context: Context, request: Request) -> Response:
    """The upload's file, ready; with ``job``, and in the same transaction, a job for it."""
    data = request.json()
    named = sent_parts(data)
    uploads, upload_id = _uploads(context), request.params["id"]
    who = AsCaller(request.caller)
    if (wanted := shapes.Fields(data).mapping("job")) is None:
        return json_response({"file": await uploads.complete(who, upload_id, named)})
    check_scope(request.caller, JOBS)
    jobs = job_service(context)
    file_id, owner = await uploads.file_of(who, upload_id)
    spec = {**shapes.new_job(wanted), "files": [file_id]}
    caller = replace(await context.acting_for(request.caller, owner), admin=False)
    # One upload, one job: asked again, the answer names the same.
    job_id = "j_" + hashlib.sha256(upload_id.encode()).hexdigest()[:16]
    store = jobs.prepare(caller, spec, job_id)
    file = await uploads.complete(who, upload_id, named, store)
    jobs.wake()
    try:
        job = await jobs.get(caller, job_id)
    except NotFound as error:
        raise Conflict(
            f"The upload was completed before, without a job; `POST /v1/jobs` with {file_id} makes one."
        ) from error
    return json_response({"file": file, "job": job})


async def abort(context: Context, request: Request) -> Response:
    await _uploads(context).abort(AsCaller(request.caller), request.params["id"])
    return no_content()


async def take_out(context: Context, request: Request) -> Response:
    """``POST /v1/sessions/{id}/files``: a file of the workspace, sent to storage by its own side."""
    path = Fields(request.json()).text("path", required=True, max_chars=4096, one_line=False)
    assert path is not None
    if context.carrier is None:
        raise Unavailable("This instance has no files yet; try again.")
    file = await context.carrier.take_out(request.caller, request.params["id"], path)
    return json_response({"file": file}, 202)
