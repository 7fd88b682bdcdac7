"""Handing a prompt to a session, whatever its size, and waiting for the turn it begins."""

import json
from typing import Any

from holdover.client import Client, path_of
from holdover.cursor import Cursor
from holdover.exits import Exit
from holdover.follow import Follower, exit_of
from holdover.turn import SentWatch, TurnWatch

# A request body may have 1 MiB; the stream takes prompts of up to 10 MiB.
MAX_BODY_BYTES = 1_000_000


def fits_request(text: str) -> bool:
    """Whether a prompt of `text` may go as an HTTP request."""
    return len(json.dumps(text)) <= MAX_BODY_BYTES


def submit(client: Client, session: str, prompt_id: str, text: str) -> dict[str, Any]:
    """Hand over the prompt; the daemon's answer {"id", "seq"}.

    Repeated by itself until it is answered: the id makes sure that the agent gets it once.
    """
    if fits_request(text):
        path = path_of("sessions", session, "prompts")
        return dict(client.post(path, {"id": prompt_id, "text": text}, again=True))
    watch = SentWatch()
    state = client.get(path_of("sessions", session))
    here = Cursor(state["last_seq"], state["epoch"])
    follower = Follower(client, session, here, watch=watch, quiet=True)
    follower.send({"type": "prompt", "id": prompt_id, "text": text})
    if follower.run() != Exit.OK:
        raise exit_of(watch.answer)
    return dict(watch.answer or {})


def wait_for_turn(
    client: Client, session: str, prompt_id: str, seq: int, *, as_json: bool, typing: bool
) -> Exit:
    """Show what the prompt `prompt_id`, stored as `seq`, leads to, until its turn is over."""
    epoch = client.get(path_of("sessions", session))["epoch"]
    follower = Follower(
        client,
        session,
        Cursor(seq - 1, epoch),
        watch=TurnWatch(prompt_id, seq),
        as_json=as_json,
        typing=typing,
        own_prompts=(prompt_id,),
    )
    return follower.run()
