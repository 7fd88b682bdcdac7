"""What the real Claude Code does, as far as sessions rely on it.

When a new version fails here, it is not necessarily wrong: the rules of sessions were written for
what these tests say, so read both together.
"""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from holdoverd.agents import host_frames
from holdoverd.agents.stream_json import Frame, OpenBlocks
from tests.agents.driver import AgentProcess, of
from tests.live.up import wait_until

pytestmark = [pytest.mark.claude, pytest.mark.slow]

Start = Callable[..., AgentProcess]


def prompt(process: AgentProcess, session: str, text: str) -> str:
    prompt_id = str(uuid4())
    process.send(host_frames.user_prompt(prompt_id, text, agent_session=session))
    return prompt_id


def allow(process: AgentProcess, asked: Frame) -> None:
    assert asked.request is not None
    assert asked.request.input is not None
    process.send(
        host_frames.allow(
            asked.request_id or "",
            updated_input=asked.request.input,
            tool_use_id=asked.request.tool_use_id,
        )
    )


def lifecycle(prompt_id: str, state: str) -> Callable[[Frame], object]:
    return of("status", type="command_lifecycle", command_uuid=prompt_id, state=state)


def idle(process: AgentProcess, after: Frame) -> Frame:
    """The first `idle` behind `after`: the turn-over signal."""
    return process.wait_for(of("status", state="idle"), after=process.index(after))


def transcript(home: Path, session: str) -> str:
    """What the agent has written so far; it writes behind its own back, so maybe nothing yet."""
    paths = list(home.glob(f"home/.claude/projects/*/{session}.jsonl"))
    assert len(paths) <= 1
    return "".join(path.read_text() for path in paths)


def texts(frame: Frame) -> list[str]:
    content = json.loads(frame.raw)["message"]["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [block["text"] for block in blocks if block["type"] == "text"]


def test_a_turn_that_was_cut_off_goes_on_without_a_prompt(
    start: Start, session: str, tmp_path: Path
) -> None:
    with start(session) as claude:
        claude.send(host_frames.initialize("i1"))
        cut = prompt(claude, session, "SLOW 100")
        claude.wait_for(of("delta"))
        # The transcript is written behind the echo, not before it.
        wait_until(lambda: cut in transcript(tmp_path, session), "the prompt is on record")
        claude.process.kill()
    with start(session, resume=True, go_on="reboot") as claude:
        claude.send(host_frames.initialize("i2"))
        result = claude.wait_for(of("result"))
        assert json.loads(result.raw)["resume_reason"] == "host_restarted"
        assert texts(claude.matching(of("assistant"))[0])[0].startswith("You said: Continue")


@pytest.fixture
def session() -> str:
    return str(uuid4())


def test_the_handshake_needs_no_prompt_and_lists_open_permissions(
    start: Start, session: str
) -> None:
    with start(session) as claude:
        claude.send(host_frames.initialize("i1", title="A title"))
        answer = claude.wait_for(of("control_response", request_id="i1"))
        assert answer.response is not None
        assert (answer.response.ok, answer.response.pending) == (True, ())
        claude.close_stdin()
        assert claude.wait_end() == 0
        assert not claude.matching(of("status", subtype="init"))  # that comes with each turn


def test_a_turn_and_its_deltas(start: Start, session: str, tmp_path: Path) -> None:
    with start(session) as claude:
        claude.send(host_frames.initialize("i1"))
        prompt_id = prompt(claude, session, "SAY one two three")
        result = claude.wait_for(of("result"))
        idle(claude, result)
        marks = [
            claude.wait_for(of("status", state="running")),
            claude.wait_for(lifecycle(prompt_id, "queued")),
            claude.wait_for(lifecycle(prompt_id, "started")),
            claude.wait_for(of("status", subtype="init")),
            claude.wait_for(of("replay")),
            claude.wait_for(of("delta")),
            claude.wait_for(of("assistant")),
            result,
            claude.wait_for(lifecycle(prompt_id, "completed")),
            claude.wait_for(of("status", state="idle")),
        ]
        order = [claude.index(frame) for frame in marks]
        assert order == sorted(order)
        assert marks[4].uuid == prompt_id
        assert texts(marks[6]) == ["one two three"]
        assert (result.subtype, result.is_error, result.result_index) == ("success", False, 0)
        assert result.queued_turn_count == 0
        assert result.user_message_uuids == (prompt_id,)
        assert marks[3].session_id == session
        # One whole block for the open one; nothing stays open behind it.
        blocks = OpenBlocks()
        for frame in claude.frames[: order[6]]:
            blocks.apply(frame, 1)
        [(thread, body)] = blocks.snapshot()
        assert thread == "main"
        assert json.loads(body)["event"]["content_block"]["text"] == "one two three"
        blocks.apply(marks[6])
        assert blocks.snapshot() == []
        claude.close_stdin()
        assert claude.wait_end() == 0  # what is still to be written is written by now
        assert f'"uuid":"{prompt_id}"' in transcript(tmp_path, session)
        assert not [f for f in claude.frames if f.kind in {"invalid", "noise"}]


def test_a_tool_call_asks_and_the_answer_is_repeated(
    start: Start, session: str, tmp_path: Path
) -> None:
    with start(session) as claude:
        claude.send(host_frames.initialize("i1"))
        prompt(claude, session, "SAY first\nBASH touch made; echo A\nBASH touch too; echo B")
        first = claude.wait_for(of("control_request"))
        assert first.request is not None
        assert (first.request.subtype, first.request.tool_name) == ("can_use_tool", "Bash")
        assert first.request.suggestions is not None
        claude.wait_for(of("status", state="requires_action"))
        # A host that attaches again learns of it.
        claude.send(host_frames.initialize("i2"))
        answer = claude.wait_for(of("control_response", request_id="i2"))
        assert answer.response is not None
        assert answer.response.pending is not None
        assert [one.request_id for one in answer.response.pending] == [first.request_id]
        assert answer.response.pending[0].request.input == first.request.input
        allow(claude, first)
        repeated = claude.wait_for(of("control_response", request_id=first.request_id))
        assert repeated.response is not None
        assert repeated.response.ok
        # Two commands of one message are asked for one after the other.
        second = claude.wait_for(of("control_request"), count=2)
        claude.send(host_frames.deny(second.request_id or "", "not that one"))
        result = claude.wait_for(of("result"))
        idle(claude, result)
        uses = [use.id for frame in claude.frames for use in frame.tool_uses]
        assert [one for frame in claude.frames for one in frame.tool_results] == uses
        assert texts(claude.matching(of("assistant"))[-1]) == ["done: A | not that one"]
    assert (tmp_path / "work/made").exists()
    assert not (tmp_path / "work/too").exists()


def test_questions_are_answered_by_their_text(start: Start, session: str) -> None:
    with start(session) as claude:
        claude.send(host_frames.initialize("i1"))
        prompt(claude, session, "ASK")
        asked = claude.wait_for(of("control_request"))
        assert asked.request is not None
        assert asked.request.tool_name == "AskUserQuestion"
        given = json.loads(asked.request.input or "")
        given["answers"] = {given["questions"][0]["question"]: "Tea"}
        claude.send(host_frames.allow(asked.request_id or "", updated_input=json.dumps(given)))
        claude.wait_for(of("result"))
        assert '"What to drink?"="Tea"' in texts(claude.matching(of("assistant"))[-1])[0]


def test_prompts_that_wait_are_merged_and_each_is_echoed(start: Start, session: str) -> None:
    with start(session) as claude:
        claude.send(host_frames.initialize("i1"))
        first = prompt(claude, session, "SLOW 30")
        claude.wait_for(of("delta"))
        second, third = prompt(claude, session, "SAY two"), prompt(claude, session, "SAY three")
        merged = claude.wait_for(of("result"), count=2)
        idle(claude, merged)
        result = claude.matching(of("result"))[0]
        assert result.queued_turn_count == 2
        assert merged.user_message_uuids == (second, third)
        # Echoes name the prompt by its uuid only: the last one's text is that of all.
        assert [echo.uuid for echo in claude.matching(of("replay"))] == [first, second, third]
        assert len(texts(claude.matching(of("replay"))[2])) == 2
        assert len(claude.matching(of("status", state="idle"))) == 1


def test_a_prompt_sent_during_a_tool_call_is_folded_into_the_turn(
    start: Start, session: str, tmp_path: Path
) -> None:
    with start(session) as claude:
        claude.send(host_frames.initialize("i1"))
        first = prompt(claude, session, "BASH touch ask; while [ ! -e go ]; do sleep 0.05; done")
        allow(claude, claude.wait_for(of("control_request")))
        second = prompt(claude, session, "SAY folded")
        claude.wait_for(lifecycle(second, "queued"))
        assert second not in transcript(tmp_path, session)
        (tmp_path / "work/go").touch()
        result = claude.wait_for(of("result"))
        assert result.user_message_uuids == (first, second)
        assert [echo.uuid for echo in claude.matching(of("replay"))] == [first, second]
        claude.close_stdin()
        assert claude.wait_end() == 0  # what is still to be written is written by now
    assert second in transcript(tmp_path, session)


def test_an_interrupt_gives_its_receipt_first_and_lets_the_queue_run(
    start: Start, session: str
) -> None:
    with start(session) as claude:
        claude.send(host_frames.initialize("i1"))
        prompt(claude, session, "SLOW 2000")
        claude.wait_for(of("delta"), count=5)
        second = prompt(claude, session, "SAY two")
        claude.wait_for(lifecycle(second, "queued"))
        claude.send(host_frames.interrupt("int1"))
        receipt = claude.wait_for(of("control_response", request_id="int1"))
        result = claude.wait_for(of("result"))
        last = claude.wait_for(of("result"), count=2)
        assert receipt.response is not None
        assert receipt.response.still_queued == (second,)
        assert result.is_error
        assert result.terminal_reason == "aborted_streaming"
        assert claude.index(receipt) < claude.index(result)
        assert json.loads(claude.matching(of("assistant"))[0].raw)["aborted"] is True
        assert last.user_message_uuids == (second,)
        idle(claude, last)


def test_an_interrupt_can_take_the_queue_with_it(start: Start, session: str) -> None:
    with start(session) as claude:
        claude.send(host_frames.initialize("i1"))
        prompt(claude, session, "SLOW 2000")
        claude.wait_for(of("delta"), count=5)
        second, third = prompt(claude, session, "SAY two"), prompt(claude, session, "SAY three")
        claude.wait_for(lifecycle(third, "queued"))
        claude.send(host_frames.cancel_async_message("c1", second))
        taken = claude.wait_for(of("control_response", request_id="c1"))
        claude.send(host_frames.interrupt("int1", cancel_queued=True))
        receipt = claude.wait_for(of("control_response", request_id="int1"))
        assert taken.response is not None
        assert json.loads(taken.response.response or "")["cancelled"] is True
        assert receipt.response is not None
        assert receipt.response.still_queued == ()
        assert receipt.response.cancelled == (third,)
        idle(claude, claude.wait_for(of("result")))
        claude.close_stdin()
        assert claude.wait_end() == 1  # the last result was an error: reported, not a crash


def test_an_interrupt_withdraws_the_open_permission(start: Start, session: str) -> None:
    with start(session) as claude:
        claude.send(host_frames.initialize("i1"))
        prompt(claude, session, "BASH touch never")
        asked = claude.wait_for(of("control_request"))
        claude.send(host_frames.interrupt("int1"))
        receipt = claude.wait_for(of("control_response", request_id="int1"))
        cancel = claude.wait_for(of("control_cancel", request_id=asked.request_id))
        assert claude.index(cancel) < claude.index(receipt)
        assert claude.wait_for(of("result")).terminal_reason == "aborted_tools"


def test_a_sub_agent_speaks_and_asks_in_its_own_thread(start: Start, session: str) -> None:
    with start(session) as claude:
        claude.send(host_frames.initialize("i1"))
        script = "AGENT SAY from below\\nBASH touch deep\\nSAY bye"
        prompt(claude, session, script)
        asked = claude.wait_for(of("control_request"))
        assert asked.request is not None
        assert asked.request.agent_id is not None
        allow(claude, asked)
        over = claude.wait_for(of("status", subtype="task_notification"))
        idle(claude, over)
        [agent] = [u for f in claude.frames for u in f.tool_uses if u.name in {"Agent", "Task"}]
        assert agent.title == "Scripted agent"
        assert (over.tool_use_id, over.task_status) == (agent.id, "completed")
        said = [t for f in claude.frames if f.kind == "assistant" and f.thread == agent.id
                for t in texts(f)]  # fmt: skip
        assert said == ["from below", "bye"]
        holder = [f.thread for f in claude.frames for u in f.tool_uses
                  if u.id == asked.request.tool_use_id]  # fmt: skip
        assert holder == [agent.id]
        tasks = [f.background_tasks for f in claude.frames if f.background_tasks is not None]
        assert [len(running) for running in tasks][-2:] == [1, 0]


def test_the_same_prompt_again_is_echoed_by_the_same_process_only(
    start: Start, session: str, tmp_path: Path
) -> None:
    """Why a prompt is looked up in the transcript before another process is sent it again."""
    with start(session) as claude:
        claude.send(host_frames.initialize("i1"))
        first = prompt(claude, session, "SAY one")
        idle(claude, claude.wait_for(of("result")))
        line = host_frames.user_prompt(first, "SAY one", agent_session=session)
        claude.send(line)
        claude.wait_for(of("replay", uuid=first), count=2)
        prompt(claude, session, "SAY two")
        claude.wait_for(of("result"), count=2)
        assert [texts(f) for f in claude.matching(of("assistant"))] == [["one"], ["two"]]
        third = prompt(claude, session, "SLOW 2000")
        echo = claude.index(claude.wait_for(of("replay", uuid=third)))
        # The transcript is written behind the echo, not before it: allow it some deltas' time.
        for count in range(1, 2000):
            claude.wait_for(of("delta"), after=echo, count=count)
            if third in transcript(tmp_path, session):
                break
        claude.process.kill()
        claude.wait_end()
    assert third in transcript(tmp_path, session)
    with start(session, resume=True) as claude:
        claude.send(host_frames.initialize("i1"))
        claude.send(host_frames.user_prompt(third, "SAY three", agent_session=session))
        result = claude.wait_for(of("result"))
        assert result.user_message_uuids == (third,)  # it ran a second time
        assert result.result_index == 0


def test_what_was_never_prompted_cannot_be_resumed(
    start: Start, session: str, tmp_path: Path
) -> None:
    with start(session, resume=True) as claude:
        assert claude.wait_end() == 1
        assert f"No conversation found with session ID: {session}" in claude.stderr()
    with start(session) as claude:
        claude.send(host_frames.initialize("i1"))
        prompt(claude, session, "SAY one")
        claude.wait_for(of("result"))
    with start(session) as claude:
        assert claude.wait_end() == 1
        assert "already in use" in claude.stderr()


def test_model_and_mode_apply_to_the_next_turn(start: Start, session: str) -> None:
    with start(session) as claude:
        claude.send(
            host_frames.initialize("i1"),
            host_frames.set_permission_mode("p", "plan"),
            host_frames.set_model("m", "claude-haiku-4-5"),
            '{"type":"control_request","request_id":"z","request":{"subtype":"nonsense"}}',
        )
        refused = claude.wait_for(of("control_response", request_id="z"))
        assert refused.response is not None
        assert not refused.response.ok
        prompt(claude, session, "SAY x")
        claude.wait_for(of("result"))
        init = claude.wait_for(of("status", subtype="init"))
        assert (init.permission_mode, init.model) == ("plan", "claude-haiku-4-5")


def test_an_api_error_is_a_result_not_a_crash(start: Start, session: str) -> None:
    with start(session) as claude:
        claude.send(host_frames.initialize("i1"))
        prompt(claude, session, "FAIL 400")
        result = claude.wait_for(of("result"))
        assert (result.subtype, result.is_error) == ("success", True)
        assert result.terminal_reason == "api_error"
        prompt(claude, session, "SAY better")
        claude.wait_for(of("result"), count=2)


def test_it_ends_with_its_input_after_all_turns_and_at_once_on_term(
    start: Start, session: str
) -> None:
    with start(session) as claude:
        claude.send(host_frames.initialize("i1"))
        prompt(claude, session, "SLOW 10")
        claude.wait_for(of("delta"))
        prompt(claude, session, "SAY last")
        claude.close_stdin()
        assert claude.wait_end() == 0
        assert texts(claude.matching(of("assistant"))[-1]) == ["last"]
    with start(session, resume=True) as claude:
        claude.send(host_frames.initialize("i1"))
        prompt(claude, session, "SLOW 2000")
        claude.wait_for(of("delta"), count=5)
        claude.process.terminate()
        assert claude.wait_end() == 143
        assert not claude.matching(of("result"))


def test_a_prompt_of_10_mib_is_taken_once_and_whole(
    start: Start, session: str, tmp_path: Path
) -> None:
    with start(session) as claude:
        claude.send(host_frames.initialize("i1"))
        text = "SAY x\n" + "y" * (10 * 1024 * 1024)
        prompt_id = prompt(claude, session, text)
        echo = claude.wait_for(of("replay", uuid=prompt_id))
        assert texts(echo) == [text]
        claude.wait_for(of("result"))
        assert len(claude.matching(of("replay"))) == 1


def test_the_scripted_api_tells_what_it_was_asked(
    start: Start, session: str, scripted_api: str
) -> None:
    with start(session) as claude:
        claude.send(host_frames.initialize("i1"))
        prompt(claude, session, f"SAY {session}")
        claude.wait_for(of("result"))
    with urllib.request.urlopen(f"{scripted_api}/_requests") as answer:
        recorded = json.load(answer)
    [request] = [one for one in recorded if one["prompt"] == f"SAY {session}"]
    assert request["path"] == "/v1/messages"
    assert request["stream"] is True
    assert "Bash" in request["tools"]
