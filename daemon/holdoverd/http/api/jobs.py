"""Jobs over HTTP: check the request's shape, ask the job service, send what it says."""

from dataclasses import replace

from holdoverd.errors import Unavailable
from holdoverd.http import shapes
from holdoverd.http.context import Context, JobService
from holdoverd.http.wire import Request, Response, json_response, no_content


def job_service(context: Context) -> JobService:
    if context.jobs is None:
        raise Unavailable("This instance has no job queue; configure [storage] and restart it.")
    return context.jobs


async def submit(context: Context, request: Request) -> Response:
    data = request.json()
    spec = shapes.new_job(data)
    owner = shapes.owner(data) or shapes.owner(request.query)
    caller = await context.acting_for(request.caller, owner)
    return json_response(await job_service(context).submit(caller, spec), 201)


async def list_all(context: Context, request: Request) -> Response:
    query = request.query
    caller = request.caller
    if (owner := shapes.owner(query)) is not None:
        # An admin who names an owner sees what that owner sees.
        caller = replace(await context.acting_for(caller, owner), admin=False)
    found = await job_service(context).list_jobs(
        caller,
        state=shapes.query_choice(query, "state", shapes.JOB_STATES),
        processor=shapes.query_text(query, "processor"),
        limit=shapes.query_limit(query),
        cursor=shapes.query_text(query, "cursor"),
    )
    return json_response(found)


async def show(context: Context, request: Request) -> Response:
    return json_response(await job_service(context).get(request.caller, request.params["id"]))


async def log(context: Context, request: Request) -> Response:
    """``?attempt=N`` for an earlier one than the last."""
    attempt = shapes.query_integer(request.query, "attempt")
    return json_response(
        await job_service(context).log(request.caller, request.params["id"], attempt)
    )


async def cancel(context: Context, request: Request) -> Response:
    await job_service(context).cancel(request.caller, request.params["id"])
    return no_content()


async def retry(context: Context, request: Request) -> Response:
    request.json_or_empty()
    return json_response(
        await job_service(context).retry(request.caller, request.params["id"]), 202
    )
