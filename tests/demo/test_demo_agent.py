"""The demo agent as a process: what a host hears from it."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid5

import pytest

import holdoverd
from holdoverd.agents import host_frames
from holdoverd.agents.presets import AgentSettings, build_launch
from holdoverd.agents.stream_json import MAX_LINE_BYTES, Frame, OpenBlocks
from holdoverd.demo.agent import MAX_QUEUED, Recent
from tests.agents.driver import AgentProcess, of

SESSION = "0f0e0d0c-0b0a-4908-8706-050403020100"
DAEMON = str(Path(holdoverd.__file__).parent.parent)
AGENT = AgentSettings(name="demo", command=(sys.executable, "-m", "holdoverd.demo"), preset="demo")


class Demo(AgentProcess):
    """A demo process; prompts get foretold ids, so that whole runs can be compared."""

    def __init__(self, home: Path, *, resume: bool = False, launch_id: str | None = None) -> None:
        launch = build_launch(AGENT, agent_session=SESSION, resume=resume)
        # -I would hide a package that is not installed; the tests run from the tree.
        env = {"HOME": str(home), "PYTHONPATH": DAEMON, "PATH": os.environ["PATH"]}
        if launch_id is not None:
            env["HOLDOVER_LAUNCH_ID"] = launch_id
        super().__init__(launch.argv, env, home)
        self.sent = 0
        self.salt = "again" if resume else "first"

    def prompt(self, text: str) -> str:
        self.sent += 1
        prompt_id = str(uuid5(UUID(SESSION), f"{self.salt} {self.sent}"))
        self.send(host_frames.user_prompt(prompt_id, text, agent_session=SESSION))
        return prompt_id

    def result(self) -> Frame:
        """The result of the latest prompt."""
        return self.wait_for(of("result"), count=self.sent)

    def idle(self, count: int = 1) -> None:
        self.wait_for(of("status", state="idle"), count=count)

    def run(self, text: str) -> list[Frame]:
        """Prompt, wait for its result; returns the frames from the echo to the result."""
        prompt_id = self.prompt(text)
        end = self.index(self.result())
        return self.frames[self.index(self.wait_for(of("replay", uuid=prompt_id))) : end + 1]


Start = Callable[..., Demo]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    return lambda **options: Demo(tmp_path, **options)


def texts(frames: list[Frame], thread: str = "main") -> list[str]:
    """The text blocks of a thread's assistant frames."""
    return [
        block["text"]
        for frame in frames
        if frame.kind == "assistant" and frame.thread == thread
        for block in json.loads(frame.raw)["message"]["content"]
        if block["type"] == "text"
    ]


def body(frame: Frame) -> dict[str, object]:
    value = json.loads(frame.raw)
    assert isinstance(value, dict)
    return value


def transcript(home: Path) -> list[dict[str, object]]:
    path = home / ".local/state/holdover-demo" / f"{SESSION}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_turn_has_the_order_of_the_real_agents(start: Start) -> None:
    with start() as demo:
        demo.send(host_frames.initialize("i1"))
        answer = demo.wait_for(of("control_response", request_id="i1"))
        assert answer.response is not None
        assert (answer.response.ok, answer.response.pending) == (True, ())
        prompt_id = demo.prompt("say one two")
        demo.idle()
        heard = [
            frame.event.type if frame.event is not None else frame.state or frame.status_name or frame.kind
            for frame in demo.frames[1:]
        ]  # fmt: skip
        assert heard == [
            "running", "queued", "started", "init", "status", "replay",
            "message_start", "content_block_start", "content_block_delta", "content_block_delta",
            "assistant", "content_block_stop", "message_delta", "message_stop",
            "result", "completed", "idle",
        ]  # fmt: skip
        result = demo.result()
        assert (result.subtype, result.is_error, result.result_index) == ("success", False, 0)
        assert (result.queued_turn_count, result.terminal_reason) == (0, "completed")
        assert result.user_message_uuids == (prompt_id,)
        demo.close_stdin()
        assert demo.wait_end() == 0
        assert demo.stderr() == ""


def test_plain_text_is_repeated_and_the_demo_says_what_it_is(start: Start) -> None:
    with start() as demo:
        frames = demo.run("hi you")
        assert texts(frames)[0] == "You said: hi you"
        assert "demo agent" in texts(frames)[1]
        assert "say TEXT" in texts(demo.run("help"))[0]


def test_deltas_add_up_to_the_messages_that_follow(start: Start) -> None:
    with start() as demo:
        frames = demo.run('think well now\nsay a b\ntool Bash {"command":"ls"}\nsay after')
        whole = [body(frame)["message"] for frame in frames if frame.kind == "assistant"]
        blocks = [message["content"][0] for message in whole]  # type: ignore[index]
        assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use", "text"]
        # Thinking, text and call are one message; what follows the result is the next.
        ids = [frame.message_id for frame in frames if frame.kind == "assistant"]
        assert len(set(ids[:3])) == 1
        assert ids[3] != ids[0]
        open_blocks = OpenBlocks()
        seen = []
        for frame in frames:
            before = open_blocks.snapshot()
            open_blocks.apply(frame)
            if frame.kind == "assistant":
                seen.append(json.loads(before[0][1])["event"]["content_block"])
        assert open_blocks.snapshot() == []
        assert seen[0]["thinking"] == blocks[0]["thinking"] == "well now"
        assert seen[1]["text"] == blocks[1]["text"] == "a b"
        assert json.loads(seen[2]["partial_json"]) == blocks[2]["input"] == {"command": "ls"}
        [use] = [use for frame in frames for use in frame.tool_uses]
        assert [frame.tool_results for frame in frames if frame.tool_results] == [(use.id,)]


def test_numbered_lines_carry_the_digest_of_their_payload(start: Start) -> None:
    with start() as demo:
        for size in (0, 10, 1024):
            found = texts(demo.run(f"lines 20 size {size}"))
            for number, text in enumerate(found, 1):
                match = re.fullmatch(r"#(\d+) ([0-9a-f]{64}) ([0-9a-f]*)", text)
                assert match is not None
                assert int(match[1]) == number
                assert hashlib.sha256(match[3].encode()).hexdigest() == match[2]
                assert len(match[3]) == size
            assert len(found) == len(set(found)) == 20
        assert len(texts(demo.run("lines 3 rate 1000"))) == 3
        assert texts(demo.run("history 500"))[-1] == "history 500 of 500"


def test_everything_said_follows_from_session_and_prompts(tmp_path: Path) -> None:
    """Uuids, ids and texts are the same in every run, and none comes twice."""
    runs = []
    for name in ("a", "b"):
        home = tmp_path / name
        home.mkdir()
        with Demo(home) as demo:
            for count, text in enumerate(("say x", "lines 5", "agent 2", 'tool T {"a":1}'), 1):
                demo.run(text)
                demo.idle(count)
            lines = [re.sub(r'"duration_ms":\d+', "", f.raw) for f in demo.frames]
            runs.append([line.replace(str(home), "") for line in lines])
            uuids = [f.uuid for f in demo.frames if f.uuid is not None]
            assert len(uuids) == len(set(uuids))
            assert all(UUID(text).version == 5 for text in uuids)
    assert runs[0] == runs[1]


def test_a_launch_after_the_transcript_was_lost_repeats_no_uuid(tmp_path: Path) -> None:
    """Its frames would be taken for those that a host has stored already."""
    said: list[set[str]] = []
    for launch_id in ("l_1", "l_2"):
        home = tmp_path / launch_id
        home.mkdir()
        with Demo(home, launch_id=launch_id) as demo:
            frames = demo.run("say the same")
            said.append({frame.uuid for frame in frames if frame.uuid and frame.kind != "replay"})
    assert len(said[0]) == len(said[1]) > 0
    assert not said[0] & said[1]


def test_a_huge_message_comes_whole(start: Start) -> None:
    with start() as demo:
        text, told = texts(demo.run("huge 3000000"))
        assert len(text) == 3_000_000
        assert told == f"huge 3000000 {hashlib.sha256(text.encode()).hexdigest()}"


def test_a_message_beyond_the_hosts_longest_line_ends_nothing(start: Start) -> None:
    with start() as demo:
        frames = demo.run(f"huge {MAX_LINE_BYTES}")
        assert texts(frames)[0].startswith(f"huge {MAX_LINE_BYTES} ")
        [line] = demo.oversize
        assert line.size > MAX_LINE_BYTES
        assert texts(demo.run("say still here")) == ["still here"]


def test_a_prompt_of_10_mib_arrives_whole_and_is_noted_once(start: Start, tmp_path: Path) -> None:
    payload = "".join(f"{i:x} é😀\n" for i in range(900_000))[: 10 * 1024 * 1024]
    data = payload.encode()
    with start() as demo:
        frames = demo.run("sha\n" + payload)
        digest = hashlib.sha256(data).hexdigest()
        assert texts(frames) == [f"sha256 {digest} {len(data)}"]
    [noted] = transcript(tmp_path)
    assert (noted["uuid"], noted["turn"]) == (frames[0].uuid, 1)
    assert noted["sha256"] == hashlib.sha256(b"sha\n" + data).hexdigest()


def test_a_prompt_is_in_the_transcript_before_its_echo(start: Start, tmp_path: Path) -> None:
    with start() as demo:
        demo.prompt("wait 1000")
        later = demo.prompt("say later")
        echo = demo.wait_for(of("replay"))
        assert [line["uuid"] for line in transcript(tmp_path)] == [echo.uuid]
        demo.send(host_frames.interrupt("stop"))
        demo.wait_for(of("replay", uuid=later))
        assert [line["uuid"] for line in transcript(tmp_path)] == [echo.uuid, later]


def test_prompts_sent_while_a_turn_runs_run_after_it_in_order(start: Start) -> None:
    with start() as demo:
        ids = [demo.prompt("wait 1000"), demo.prompt("say two"), demo.prompt("say three")]
        demo.wait_for(of("replay", uuid=ids[0]))
        demo.wait_for(of("status", state="queued", command_uuid=ids[2]))
        demo.send(host_frames.interrupt("stop"))
        demo.idle()
        results = demo.matching(of("result"))
        assert [r.queued_turn_count for r in results] == [2, 1, 0]
        assert [r.user_message_uuids[0] for r in results] == ids
        assert [frame.uuid for frame in demo.matching(of("replay"))] == ids
        assert len(demo.matching(of("status", state="idle"))) == 1


def test_the_level_is_idle_whenever_nothing_is_left_to_do(start: Start) -> None:
    """A prompt may be withdrawn before its turn has begun, or just after: idle follows anyhow."""
    with start() as demo:
        for count in range(1, 51):
            prompt_id = demo.prompt("wait 1000")
            demo.send(
                host_frames.cancel_async_message(f"c{count}", prompt_id),
                host_frames.interrupt(f"i{count}"),
            )
            demo.idle(count)
        assert len(demo.matching(of("status", state="running"))) == 50


def test_the_same_prompt_again_is_echoed_and_not_acted_upon(start: Start, tmp_path: Path) -> None:
    with start() as demo:
        prompt_id = demo.prompt("say once")
        demo.idle()
        demo.send(host_frames.user_prompt(prompt_id, "say once", agent_session=SESSION))
        demo.wait_for(of("replay", uuid=prompt_id), count=2)
        assert texts(demo.run("say next")) == ["next"]
        assert len(demo.matching(of("result"))) == 2
    assert len(transcript(tmp_path)) == 2


def test_more_prompts_than_it_queues_are_taken_later_and_none_is_lost(start: Start) -> None:
    """At the bound it stops reading until a turn has ended; the writer waits meanwhile."""
    with start() as demo:
        ids = [demo.prompt("wait 0.3")]  # long enough to fill the queue; the outcome is the same
        ids += [demo.prompt("sha") for _ in range(MAX_QUEUED + 200)]
        demo.result()
        assert [frame.uuid for frame in demo.matching(of("replay"))] == ids
        assert all((r.queued_turn_count or 0) <= MAX_QUEUED for r in demo.matching(of("result")))


def test_names_are_remembered_up_to_a_bound() -> None:
    recent = Recent(2)
    assert [recent.add(name) for name in "aabbcabc"] == [
        True, False, True, False, True, True, True, True,
    ]  # fmt: skip


def test_an_interrupt_answers_first_and_leaves_what_was_said(start: Start) -> None:
    with start() as demo:
        first = demo.prompt("stream 100000 rate 100")
        second = demo.prompt("say two")
        demo.wait_for(of("status", state="queued", command_uuid=second))
        demo.wait_for(of("delta"), count=5)
        demo.send(host_frames.interrupt("int1"))
        demo.idle()
        receipt = demo.wait_for(of("control_response", request_id="int1"))
        assert receipt.response is not None
        assert receipt.response.still_queued == (second,)
        aborted, _ = demo.matching(of("assistant"))
        assert body(aborted)["aborted"] is True
        deltas = [
            frame.event.delta.text
            for frame in demo.matching(of("delta"))
            if frame.event is not None and frame.event.delta is not None
        ]
        said = "".join(text for text in deltas if text is not None)
        assert said.startswith(texts([aborted])[0])
        result, _ = demo.matching(of("result"))
        assert (result.subtype, result.is_error) == ("error_during_execution", True)
        assert result.terminal_reason == "aborted_streaming"
        assert result.user_message_uuids == (first,)
        assert demo.index(receipt) < demo.index(aborted) < demo.index(result)
        demo.send(host_frames.interrupt("int2"))  # nothing runs: nothing to stop
        demo.wait_for(of("control_response", request_id="int2"))
        assert texts(demo.run("say three")) == ["three"]


def test_queued_prompts_can_be_withdrawn_one_or_all(start: Start) -> None:
    with start() as demo:
        ids = [demo.prompt("wait 1000"), *(demo.prompt(f"say {i}") for i in range(3))]
        demo.wait_for(of("replay", uuid=ids[0]))
        demo.wait_for(of("status", state="queued", command_uuid=ids[-1]))
        demo.send(
            host_frames.cancel_async_message("c1", ids[2]),
            host_frames.cancel_async_message("c2", ids[0]),
            host_frames.interrupt("i1", cancel_queued=True),
        )
        demo.idle()
        taken, late, receipt = (
            demo.wait_for(of("control_response", request_id=name)) for name in ("c1", "c2", "i1")
        )
        assert taken.response is not None
        assert late.response is not None
        assert receipt.response is not None
        assert json.loads(taken.response.response or "")["cancelled"] is True
        assert json.loads(late.response.response or "")["cancelled"] is False
        assert receipt.response.still_queued == ()
        assert receipt.response.cancelled == (ids[1], ids[3])
        assert len(demo.matching(of("result"))) == 1


def test_permissions_stand_open_together_and_may_be_answered_in_any_order(start: Start) -> None:
    with start() as demo:
        demo.prompt("ask 3")
        asked = [demo.wait_for(of("control_request"), count=i) for i in (1, 2, 3)]
        demo.wait_for(of("status", state="requires_action"))
        # Whoever attaches again learns of them all.
        demo.send(host_frames.initialize("i2"))
        answer = demo.wait_for(of("control_response", request_id="i2")).response
        assert answer is not None
        assert answer.pending is not None
        assert [one.request_id for one in answer.pending] == [one.request_id for one in asked]
        first, second, third = ((one.request_id or "", one.request) for one in asked)
        assert first[1] is not None
        assert second[1] is not None
        assert first[1].input is not None
        assert first[1].suggestions is not None
        suggestion = json.dumps(json.loads(first[1].suggestions)[0])
        demo.send(
            host_frames.deny(third[0], "not that"),
            host_frames.allow(second[0], updated_input='{"command":"other"}'),
            host_frames.allow(
                first[0], updated_input=first[1].input, updated_permissions=[suggestion]
            ),
            host_frames.allow(first[0], updated_input="{}"),  # too late: it is answered
        )
        end = demo.index(demo.result())
        assert texts(demo.frames[:end])[-1] == (
            "answered: #1 allow (remembered addRules), #2 allow (input changed), #3 deny (not that)"
        )
        uses = [use.id for frame in demo.frames for use in frame.tool_uses]
        results = [use for frame in demo.frames for use in frame.tool_results]
        assert results == uses
        assert [one.request.tool_use_id for one in asked if one.request] == uses
        # Each accepted answer is repeated, once, as the real agent does.
        repeated = [f.request_id for f in demo.matching(of("control_response"))]
        assert repeated[1:] == [third[0], second[0], first[0]]
        states = [f.state for f in demo.frames if f.status_name == "session_state_changed"]
        assert states[:3] == ["running", "requires_action", "running"]


def test_withdrawn_permissions_are_cancelled_one_by_one(start: Start) -> None:
    with start() as demo:
        frames = demo.run("withdraw 2")
        asked = [frame.request_id for frame in frames if frame.kind == "control_request"]
        assert [f.request_id for f in frames if f.kind == "control_cancel"] == asked
        assert texts(frames) == ["withdrawn: 2 of 2"]
        demo.prompt("withdraw 2 after 1000")
        first = demo.wait_for(of("control_request"), count=3)
        demo.wait_for(of("control_request"), count=4)
        demo.send(host_frames.deny(first.request_id or "", "no"))
        demo.wait_for(of("control_response", request_id=first.request_id))
        demo.send(host_frames.interrupt("stop"))
        assert demo.result().terminal_reason == "aborted_tools"
        assert len(demo.matching(of("control_cancel"))) == 3


def test_an_interrupt_withdraws_open_permissions_before_its_receipt(start: Start) -> None:
    with start() as demo:
        demo.prompt("ask 2")
        demo.wait_for(of("control_request"), count=2)
        demo.send(host_frames.interrupt("stop"))
        receipt = demo.wait_for(of("control_response", request_id="stop"))
        cancels = demo.matching(of("control_cancel"))
        assert len(cancels) == 2
        assert all(demo.index(cancel) < demo.index(receipt) for cancel in cancels)
        assert demo.result().terminal_reason == "aborted_tools"
        demo.idle()


def test_questions_and_plans_come_as_permissions(start: Start) -> None:
    with start() as demo:
        demo.prompt("ask-question")
        asked = demo.wait_for(of("control_request"))
        assert asked.request is not None
        assert asked.request.tool_name == "AskUserQuestion"
        given = json.loads(asked.request.input or "")
        given["answers"] = {given["questions"][0]["question"]: "Tea"}
        demo.send(host_frames.allow(asked.request_id or "", updated_input=json.dumps(given)))
        demo.result()
        assert texts(demo.frames)[-1] == 'answers: {"What would you like to drink?": "Tea"}'
        demo.prompt("plan")
        asked = demo.wait_for(of("control_request"), count=2)
        assert asked.request is not None
        assert asked.request.tool_name == "ExitPlanMode"
        mode = '{"type":"setMode","mode":"acceptEdits","destination":"session"}'
        demo.send(
            host_frames.allow(
                asked.request_id or "",
                updated_input=asked.request.input or "",
                updated_permissions=[mode],
            )
        )
        demo.result()
        assert texts(demo.frames)[-1] == "plan: allow (remembered setMode)"
        demo.wait_for(of("status", permission_mode="acceptEdits"))


def test_sub_agents_speak_in_threads_of_their_own(start: Start) -> None:
    with start() as demo:
        frames = demo.run("agent 3 lines 2")
        uses = [(frame.thread, use.id, use.title) for frame in frames for use in frame.tool_uses]
        assert [title for _, _, title in uses] == [f"Demo agent at depth {i}" for i in (1, 2, 3)]
        # Each was started by the one above it.
        assert [thread for thread, _, _ in uses] == ["main", uses[0][1], uses[1][1]]
        for depth, (_, use_id, _) in enumerate(uses, 1):
            assert texts(frames, use_id)[0] == f"This is depth {depth}."
            assert len(texts(frames, use_id)) == 3
            assert any(frame.kind == "delta" and frame.thread == use_id for frame in frames)
        over = [use for frame in frames for use in frame.tool_results]
        assert over == [use_id for _, use_id, _ in reversed(uses)]
        assert texts(frames)[-1] == "agents done, 3 deep"


def test_a_deep_sub_agents_permission_names_its_agent(start: Start) -> None:
    with start() as demo:
        demo.prompt("agent-ask 2 2")
        asked = [demo.wait_for(of("control_request"), count=i) for i in (1, 2)]
        for one in asked:
            assert one.request is not None
            assert one.request.agent_id is not None
            holders = [
                f for f in demo.frames for u in f.tool_uses if u.id == one.request.tool_use_id
            ]
            assert [f.thread != "main" for f in holders] == [True]
            demo.send(host_frames.deny(one.request_id or "", "no"))
        deep = demo.frames[: demo.index(demo.result())]
        thread = holders[0].thread
        assert texts(deep, thread)[-1] == "answered: #1 deny (no), #2 deny (no)"


def test_model_and_mode_change_for_the_next_turn(start: Start) -> None:
    with start() as demo:
        demo.send(
            host_frames.set_model("m", "other"),
            host_frames.set_permission_mode("p", "plan"),
            '{"type":"control_request","request_id":"p2","request":{"subtype":"set_permission_mode","mode":"yolo"}}',
            '{"type":"control_request","request_id":"z","request":{"subtype":"dance"}}',
            '{"type":"control_request","request_id":"y","request":5}',
        )
        demo.run("say x")
        init = demo.wait_for(of("status", subtype="init"))
        assert (init.model, init.permission_mode) == ("other", "plan")
        for name, ok in (("m", True), ("p", True), ("p2", False), ("z", False), ("y", False)):
            answer = demo.wait_for(of("control_response", request_id=name)).response
            assert answer is not None
            assert answer.ok is ok
        demo.send(host_frames.set_model("m2", None))
        demo.run("say y")
        assert demo.wait_for(of("status", subtype="init"), count=2).model == "demo"


def test_lines_beside_the_protocol_come_as_they_are(start: Start) -> None:
    with start() as demo:
        frames = demo.run('noise hm\nstderr oops\nraw {"type":"later","x":NaN}\nraw {"type":"new"}')
        assert [f.raw for f in frames if f.kind == "noise"] == ["demo noise: hm"]
        assert [f.raw for f in frames if f.kind == "invalid"] == ['{"type":"later","x":NaN}']
        assert [f.status_name for f in frames if f.kind == "status"] == ["new"]
        demo.close_stdin()
        demo.wait_end()
        assert demo.stderr() == "oops\n"


def test_half_characters_in_a_prompt_come_back_as_they_were(start: Start) -> None:
    with start() as demo:
        line = host_frames.user_prompt("p1", "say X", agent_session=SESSION)
        demo.send(line.replace("X", r"\ud83d!"))
        demo.sent += 1
        assert r"\ud83d!" in demo.wait_for(of("replay")).raw
        assert demo.result().kind == "result"


def test_the_process_tells_its_ids(start: Start) -> None:
    with start() as demo:
        [text] = texts(demo.run("pid"))
        assert text == f"pid {demo.process.pid} ppid {os.getpid()}"


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("crash exit 0", 0),
        ("crash exit 3", 3),
        ("crash signal KILL", -signal.SIGKILL),
        ("crash signal SEGV", -signal.SIGSEGV),
        ("crash signal TERM", 143),  # it has a handler, as the real agent has
    ],
)
def test_it_dies_as_told_without_a_result(start: Start, script: str, status: int) -> None:
    with start() as demo:
        demo.prompt(f"say before\n{script}\nsay after")
        assert demo.wait_end() == status
        assert texts(demo.frames) == ["before"]
        assert not demo.matching(of("result"))


def test_a_cut_line_is_left_unfinished(start: Start) -> None:
    with start() as demo:
        demo.prompt('cut {"type":"assis')
        assert demo.wait_end() == 1
        assert demo.unfinished == len('{"type":"assis')


def test_it_ends_with_its_input_after_the_turns_are_done(start: Start) -> None:
    with start() as demo:
        demo.prompt("stream 5 rate 100")
        demo.prompt("ask 1\nsay last")
        demo.close_stdin()
        assert demo.wait_end() == 0
        assert texts(demo.frames)[-2:] == ["answered: #1 deny (stdin closed)", "last"]
        assert len(demo.matching(of("result"))) == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_it_in_mid_turn(start: Start, number: signal.Signals, status: int) -> None:
    with start() as demo:
        demo.prompt("wait 1000")
        demo.wait_for(of("replay"))
        demo.process.send_signal(number)
        assert demo.wait_end() == status


def test_a_line_that_is_no_json_ends_it_as_it_ends_the_real_agent(start: Start) -> None:
    with start() as demo:
        demo.prompt("wait 1000")
        demo.wait_for(of("replay"))
        demo.send("this is not json")
        assert demo.wait_end() == 1
        assert "Error parsing streaming input line" in demo.stderr()


def test_a_prompt_cut_off_by_its_writers_end_is_not_taken(start: Start) -> None:
    with start() as demo:
        line = host_frames.user_prompt("p1", "say x", agent_session=SESSION)
        assert demo.process.stdin is not None
        demo.process.stdin.write(line.encode())  # whole, but for its newline
        demo.close_stdin()
        assert demo.wait_end() == 0
        assert demo.frames == []


def test_a_session_goes_on_where_it_was(start: Start, tmp_path: Path) -> None:
    with start() as demo:
        demo.run("say one")
        demo.run("say two")
        demo.process.kill()
        demo.wait_end()
        before = {frame.uuid for frame in demo.frames}
    with start(resume=True) as demo:
        demo.run("say three")
        result = demo.result()
        assert (result.result_index, result.total_cost_usd) == (0, 0.003)
        assert not before & {frame.uuid for frame in demo.frames if frame.uuid}
    assert [line["turn"] for line in transcript(tmp_path)] == [1, 2, 3]


def test_only_what_was_begun_can_be_resumed_and_only_once_begun(start: Start) -> None:
    with start(resume=True) as demo:
        assert demo.wait_end() == 1
        assert demo.stderr() == f"No conversation found with session ID: {SESSION}\n"
    with start() as demo:
        demo.close_stdin()
        assert demo.wait_end() == 0
    with start() as demo:  # no prompt was taken, so nothing was begun
        demo.run("say one")
    with start() as demo:
        assert demo.wait_end() == 1
        assert demo.stderr() == f"Error: Session ID {SESSION} is already in use.\n"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--help"], 0, "one directive a line"),
        (["--resume"], 2, "'--resume' is not understood"),
        (["--resume=x"], 2, "'x' is not a UUID"),
        (["--resume=../../x"], 2, "is not a UUID"),
        (["--model="], 2, "is not understood"),
        (["--fast"], 2, "'--fast' is not understood"),
        ([f"--session-id={SESSION}", f"--resume={SESSION}"], 2, "exclude each other"),
    ],
)
def test_arguments_are_checked(
    tmp_path: Path, arguments: list[str], status: int, text: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "holdoverd.demo", *arguments],
        env={"HOME": str(tmp_path), "PYTHONPATH": DAEMON},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status
    assert text in done.stdout + done.stderr


def test_it_loads_little_so_that_it_starts_at_once() -> None:
    """Start-up is kept small by what is not imported; a stopwatch would only test the machine."""
    code = "import sys, holdoverd.demo.__main__; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": DAEMON},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    heavy = {"asyncio", "trio", "msgspec", "hashlib", "uuid", "dataclasses", "inspect", "argparse",
             "subprocess", "socket", "logging"}  # fmt: skip
    assert not heavy & set(done.stdout.split())
