"""A session model driven like a conversation, without a catalogue, spool or agent."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid5

from holdoverd.agents.stream_json import classify
from holdoverd.catalogue.records import Change, LaunchRow, MessageRow, SessionRow
from holdoverd.sessions import acts
from holdoverd.sessions.agent_lines import take_line
from holdoverd.sessions.launches import launch_begun, launch_live, launch_over, settle_prompts
from holdoverd.sessions.model import SessionModel, Step

NONCE = "0123456789abcdef0123456789abcdef"
SPACE = UUID(int=7)


def uid(name: str) -> str:
    """The same uuid for the same name, always."""
    return str(uuid5(SPACE, name))


def session_row(**values: Any) -> SessionRow:
    row = SessionRow(
        id="s_1", epoch="e_1", owner="default", account="agent", agent="demo",
        agent_session=uid("conversation"), cwd="/srv", title=None, model=None,
        permission_mode="default", share=None, state="starting", last_seq=0, cost_usd=0.0,
        context=None, host="h", generation=1, release="0", owner_epoch=1, error=None, live="",
        created_at=1, updated_at=1, ended_at=None,
    )  # fmt: skip
    return replace(row, **values)


def launch_row(launch: str = "l_1", **values: Any) -> LaunchRow:
    row = LaunchRow(
        id=launch, session="s_1", nonce=NONCE, owner_epoch=1, state="starting", offset=0,
        replay_from=0, last_n=0, created_at=1, boot_id="b",
    )  # fmt: skip
    return replace(row, **values)


class Talk:
    """What happens to a session, in verbs; everything stored so far is in `stored`."""

    def __init__(self, model: SessionModel | None = None) -> None:
        self.model = model or SessionModel(session_row())
        self.stored: list[MessageRow] = []
        self.sent: list[tuple[int, str]] = []
        self.position = 0
        self.step = Step()

    def _sealed(self, step: Step) -> Step:
        self.model.seal(step, 5)
        self.stored += step.change.messages
        for row in step.change.outbox:
            body = row.line
            if body is None:
                body = next(m.body for m in self.stored if m.seq == row.seq)
            self.sent.append((row.n, body))
        self.step = step
        return step

    def begin(self, launch: str = "l_1", *, resumed: bool = False) -> Step:
        step = Step()
        launch_begun(self.model, step, launch_row(launch))
        self._sealed(step)
        return self.live(resumed=resumed)

    def live(self, *, resumed: bool = False, **settle: Any) -> Step:
        step = Step()
        if settle:
            settle_prompts(self.model, step, at=5, **settle)
        launch_live(
            self.model, step, keeper_pid=1, agent_pid=2, cwd=None, first_lines=['{"hello":1}'],
            initialize_id="i", at=5, resumed=resumed,
        )  # fmt: skip
        return self._sealed(step)

    def says(self, *lines: dict[str, Any] | str) -> Step:
        step = Step()
        for line in lines:
            raw = (line if isinstance(line, str) else json.dumps(line)).encode()
            take_line(self.model, step, classify(raw), start=self.position, at=5)
            self.position += len(raw) + 1
        return self._sealed(step)

    def prompt(self, name: str, text: str = "hi") -> Step:
        step = Step()
        body = json.dumps({"type": "user", "uuid": uid(name), "message": {"content": text}})
        acts.prompt(self.model, step, uid(name), body, "digest", 5)
        return self._sealed(step)

    def answers(self, request_id: str, behavior: str = "allow", **values: Any) -> Step:
        step = Step()
        given = {"updated_input": None, "message": None, "remember": None, **values}
        acts.answer(
            self.model, step, request_id, behavior=behavior, answered_by="ann", at=5, **given
        )
        return self._sealed(step)

    def dies(self, outcome: dict[str, Any] | None = None) -> Step:
        step = Step()
        launch_over(self.model, step, None if outcome is None else json.dumps(outcome), 5)
        return self._sealed(step)

    @property
    def kinds(self) -> list[str]:
        return [m.kind for m in self.stored]


def assistant(name: str, text: str = "ok", *, parent: str | None = None, **more: Any) -> Any:
    content = more.pop("content", [{"type": "text", "text": text}])
    return {
        "type": "assistant", "uuid": uid(name), "parent_tool_use_id": parent,
        "message": {"id": f"m-{name}", "role": "assistant", "content": content}, **more,
    }  # fmt: skip


def tool_use(tool: str, name: str = "Bash", **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": tool, "name": name, "input": given}


def tool_result(name: str, tool: str, *, parent: str | None = None) -> dict[str, Any]:
    return {
        "type": "user", "uuid": uid(name), "parent_tool_use_id": parent,
        "message": {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": tool, "content": "done"}
        ]},
    }  # fmt: skip


def result(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "result", "subtype": "success", "uuid": uid(name), **more}


def echo(name: str) -> dict[str, Any]:
    return {"type": "user", "uuid": uid(name), "isReplay": True, "message": {"content": "hi"}}


def asks(request: str, tool: str = "t1", **given: Any) -> dict[str, Any]:
    return {
        "type": "control_request", "request_id": request,
        "request": {"subtype": "can_use_tool", "tool_name": "Bash", "tool_use_id": tool,
                    "input": given or {"command": "ls"}},
    }  # fmt: skip


def delta(text: str, index: int = 0, *, parent: str | None = None) -> dict[str, Any]:
    return {
        "type": "stream_event", "parent_tool_use_id": parent,
        "event": {"type": "content_block_delta", "index": index,
                  "delta": {"type": "text_delta", "text": text}},
    }  # fmt: skip


def opens(name: str, *, parent: str | None = None) -> list[dict[str, Any]]:
    return [
        {"type": "stream_event", "parent_tool_use_id": parent,
         "event": {"type": "message_start", "message": {"id": f"m-{name}"}}},
        {"type": "stream_event", "parent_tool_use_id": parent,
         "event": {"type": "content_block_start", "index": 0,
                   "content_block": {"type": "text", "text": ""}}},
    ]  # fmt: skip


def changed(change: Change) -> set[str]:
    """Names of the parts of a change that are not empty."""
    return {name for name in Change.__dataclass_fields__ if getattr(change, name)}
