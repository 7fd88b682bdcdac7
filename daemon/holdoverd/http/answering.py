"""A viewer's frames, each carried out and answered (contract.md, The stream)."""

import logging

import msgspec

from holdoverd.callers import Caller
from holdoverd.errors import Internal, RequestError, TooLarge, Unprocessable
from holdoverd.http import shapes
from holdoverd.http.context import Context, Viewer
from holdoverd.http.frames import (
    FRAME_SCOPES,
    ClientFrame,
    FrameError,
    error_reply,
    is_too_large,
    parse_frame,
    reply,
)
from holdoverd.http.wire import check_scope, internal_error
from holdoverd.ids import new_id

log = logging.getLogger(__name__)


def logged(session: str, what: str) -> Internal:
    """Log the exception being handled; what a client may hear of it."""
    error_id = new_id("e")
    log.exception(what, extra={"session": session, "error_id": error_id})
    return internal_error(error_id)


async def answer_frame(
    context: Context, caller: Caller, session: str, viewer: Viewer, message: str | bytes
) -> str:
    """The answer to one frame, whatever it holds: a defect of ours is an answer, too."""
    ref: str | None = None
    try:
        frame = parse_frame(message)
        ref = frame.ref
        check_scope(caller, FRAME_SCOPES[frame.type])
        answer = await _carry_out(context, caller, session, viewer, frame)
        if is_too_large(answer):
            raise TooLarge(
                "The page is over 16 MiB, which no frame may be; get it by HTTP from"
                " …/messages?page=N."
            )
        return answer
    except FrameError as unreadable:
        return error_reply(unreadable.error, unreadable.ref)
    except RequestError as error:
        return error_reply(error, ref)
    except Exception:
        return error_reply(logged(session, "a frame failed, answering with an error"), ref)


async def _carry_out(
    context: Context, caller: Caller, session: str, viewer: Viewer, frame: ClientFrame
) -> str:

    service, data, ref = context.sessions, frame.data, frame.ref
    match frame.type:
        case "ping":
            return reply("pong", ref)
        case "page":
            fields = shapes.Fields(data)
            thread = fields.text("thread", max_chars=200) or "main"
            number = fields.integer("page", required=True) or 0
            epoch = fields.text("epoch", max_chars=200)
            page = await service.page(caller, session, thread, number, epoch)
            return reply("page", ref, page.json_text)
        case "subscribe":
            fields = shapes.Fields(data)
            thread = fields.text("thread", required=True, max_chars=200) or "main"
            # No checkpoint between this and the sending of `ok`: it has to go first.
            viewer.subscribe(thread, fields.integer("after_n"))
            return reply("ok", ref)
        case "prompt":
            spec = shapes.prompt(data, shapes.MAX_STREAM_PROMPT_BYTES)
            _, body = await service.prompt(caller, session, spec)
        case "answer":
            body = await service.answer(caller, session, shapes.answer(data))
        case "interrupt":
            body = await service.interrupt(
                caller, session, cancel_queued=shapes.cancel_queued(data)
            )
        case "set":
            changes = shapes.session_changes(data)
            if not changes or not changes.keys() <= {"model", "permission_mode"}:
                raise Unprocessable("`set` changes `model` or `permission_mode`; send either.")
            return reply("ok", ref, await service.patch(caller, session, changes))
        case other:
            raise AssertionError(f"frames.FRAME_SCOPES knows {other!r} and this does not")
    return reply("ok", ref, msgspec.json.encode(body).decode())
