"""What each line and each act changes in a session; see script.py for the verbs."""

import json
from typing import Any

import pytest

from holdoverd.agents.stream_json import classify
from holdoverd.errors import Conflict, Gone, NotFound, TooLarge, Unprocessable
from holdoverd.sessions import acts
from holdoverd.sessions.acts import MAX_QUEUED_PROMPTS
from holdoverd.sessions.agent_lines import MAX_NOTICED_FAULTS, MAX_STATUSES, take_line
from holdoverd.sessions.bodies import context_of
from holdoverd.sessions.launches import launch_begun, launch_over, spool_cut, unsettled_prompts
from holdoverd.sessions.model import (
    MAX_LINE_BYTES,
    Delta,
    SessionModel,
    Status,
    Step,
)
from tests.sessions.script import (
    NONCE,
    Talk,
    asks,
    assistant,
    delta,
    echo,
    launch_row,
    opens,
    result,
    session_row,
    tool_result,
    tool_use,
    uid,
)


def test_a_turn_is_stored_once_in_order_and_the_echo_is_not_stored_again() -> None:
    talk = Talk()
    talk.begin()
    talk.prompt("p1")
    assert talk.model.state == "starting", "the agent has not said a word"
    talk.says(echo("p1"), *opens("a"), delta("ok"), assistant("a"), result("r"))
    assert talk.kinds == ["user", "assistant", "result"]
    assert [m.seq for m in talk.stored] == [1, 2, 3]
    assert [m.n for m in talk.stored] == [1, 2, 3]
    assert talk.stored[0].client_id == uid("p1")
    assert talk.model.state == "idle"


def test_the_agents_line_is_kept_byte_for_byte() -> None:
    talk = Talk()
    talk.begin()
    line = '{"type": "assistant",  "uuid":"x","message":{"content":"\\u2028\u2028 é"}, "n":1e3}'
    talk.says(line)
    assert talk.stored[-1].body == line


def test_prompts_are_numbered_for_the_keeper_after_the_handshake_in_their_order() -> None:
    talk = Talk()
    talk.prompt("p1", "one")
    talk.prompt("p2", "two")
    assert talk.sent == []
    talk.begin()
    assert [n for n, _ in talk.sent] == [1, 2, 3]
    assert [json.loads(body).get("uuid") for _, body in talk.sent] == [None, uid("p1"), uid("p2")]
    talk.prompt("p3")
    assert talk.sent[-1][0] == 4


def test_deltas_are_shown_and_never_stored() -> None:
    talk = Talk()
    talk.begin()
    talk.says(assistant("a0"))
    step = talk.says(*opens("a"), delta("x"), delta("y"))
    assert not step.must_commit
    assert [type(e) for e in step.events] == [Delta] * 4
    ((thread, line),) = talk.model.blocks.snapshot()
    assert thread == "main"
    assert json.loads(line)["event"]["content_block"]["text"] == "xy"


def test_a_new_owner_rereads_the_open_block_without_storing_anything_again() -> None:
    talk = Talk()
    talk.begin()
    talk.says(assistant("a"), *opens("b"), delta("half "))
    before = [(m.seq, m.body) for m in talk.stored]
    row = talk.model.row
    again = Talk(
        SessionModel(row, threads=list(talk.model.threads.values()), launch=talk.model.launch)
    )
    step = Step()
    lines = [json.dumps(line).encode() for line in (assistant("a"), *opens("b"), delta("half "))]
    for start, line in enumerate(lines):
        take_line(again.model, step, classify(line), start=start, at=9, stored=True)
    assert not step.events
    assert not step.must_commit
    again.says(delta("a sentence"))
    ((_, line),) = again.model.blocks.snapshot()
    assert json.loads(line)["event"]["content_block"]["text"] == "half a sentence"
    assert [(m.seq, m.body) for m in talk.stored] == before


def test_the_same_uuid_is_stored_once() -> None:
    talk = Talk()
    talk.begin()
    talk.says(assistant("a"), assistant("a"), assistant("b"))
    assert talk.kinds == ["assistant", "assistant"]


def test_an_echo_of_a_prompt_that_is_not_ours_is_a_message() -> None:
    talk = Talk()
    talk.begin()
    talk.says(echo("typed elsewhere"))
    assert talk.kinds == ["user"]
    talk.says(echo("typed elsewhere"))
    assert talk.kinds == ["user"]


def test_sub_agents_get_threads_of_their_own_nested_and_gapless() -> None:
    talk = Talk()
    talk.begin()
    talk.says(
        assistant("a", content=[tool_use("T1", "Agent", description="look")]),
        assistant("b", parent="T1", content=[tool_use("T2", "Task", description="deeper")]),
        assistant("c", parent="T2"),
        tool_result("d", "T2", parent="T1"),
        assistant("e", parent="T1"),
        tool_result("f", "T1"),
    )
    threads = talk.model.threads
    assert {t: (r.parent_thread, r.n, r.state) for t, r in threads.items()} == {
        "main": (None, 2, "open"),
        "T1": ("main", 3, "done"),
        "T2": ("T1", 1, "done"),
    }
    assert threads["T1"].title == "look"
    assert [m.seq for m in talk.stored] == list(range(1, 7))


def test_a_frame_of_an_unknown_sub_agent_opens_its_thread() -> None:
    talk = Talk()
    talk.begin()
    talk.says(assistant("a", parent="T9"))
    assert talk.model.threads["T9"].parent_thread == "main"


def test_permissions_wait_in_a_list_and_are_answered_in_any_order() -> None:
    talk = Talk()
    talk.begin()
    talk.says(
        assistant("a", content=[tool_use("T1", "Agent")]),
        assistant("b", parent="T1", content=[tool_use("t2")]),
        asks("r1", "t1"),
        asks("r2", "t2"),
    )
    assert talk.model.state == "waiting"
    first, second = talk.model.permissions.values()
    assert (first.thread, second.thread) == ("main", "T1")
    talk.answers(second.request_id, "deny", message="no")
    assert talk.model.state == "waiting"
    talk.answers(first.request_id)
    assert talk.model.state == "working"
    denied, allowed = (json.loads(body)["response"] for _, body in talk.sent[-2:])
    assert (denied["request_id"], denied["response"]["behavior"]) == ("r2", "deny")
    assert allowed["response"]["updatedInput"] == {"command": "ls"}, "the input is always echoed"
    answer = talk.stored[-1]
    assert (answer.kind, answer.request_id) == ("answer", first.request_id)
    assert json.loads(answer.body) == {"outcome": "allow", "answered_by": "ann"}


def test_a_permission_is_answered_once() -> None:
    talk = Talk()
    talk.begin()
    talk.says(asks("r1"))
    (permission,) = talk.model.permissions.values()
    talk.answers(permission.request_id)
    sent = len(talk.sent)
    with pytest.raises(NotFound):
        talk.answers(permission.request_id, "deny")
    assert len(talk.sent) == sent


def test_the_same_request_told_twice_is_asked_once() -> None:
    talk = Talk()
    talk.begin()
    talk.says(asks("r1"), asks("r1"))
    assert talk.kinds == ["permission"]


def test_a_withdrawn_request_is_answered_by_nobody() -> None:
    talk = Talk()
    talk.begin()
    talk.says(asks("r1"), {"type": "control_cancel_request", "request_id": "r1"})
    assert talk.kinds == ["permission", "answer"]
    assert json.loads(talk.stored[-1].body)["outcome"] == "withdrawn"
    assert not talk.model.permissions


def test_an_unsupported_request_gets_an_error_and_a_dialog_gets_none() -> None:
    talk = Talk()
    talk.begin()
    sent = len(talk.sent)
    talk.says(
        {"type": "control_request", "request_id": "x", "request": {"subtype": "telepathy"}},
        {"type": "control_request", "request_id": "y",
         "request": {"subtype": "request_user_dialog", "dialog_kind": "?"}},
    )  # fmt: skip
    ((_, body),) = talk.sent[sent:]
    assert json.loads(body)["response"]["subtype"] == "error"


def test_an_agent_that_dies_withdraws_its_questions_and_leaves_a_notice() -> None:
    talk = Talk()
    talk.begin()
    talk.says(assistant("a", content=[tool_use("T1", "Agent")]), asks("r1"))
    step = talk.says({"type": "holdover_end", "nonce": NONCE, "signal": 9, "status": None})
    assert step.launch_ended
    assert talk.kinds == ["assistant", "permission", "answer", "notice"]
    notice = json.loads(talk.stored[-1].body)
    assert notice["code"] == "agent_exited"
    assert notice["data"]["signal"] == 9
    assert notice["data"]["turn_cut"]
    assert talk.model.state == "dormant"
    assert talk.model.threads["T1"].state == "done"


def test_a_turn_that_was_cut_off_is_marked_until_an_agent_runs_again() -> None:
    talk = Talk()
    talk.begin()
    talk.says(assistant("a"))
    talk.says({"type": "holdover_end", "nonce": NONCE, "signal": 9, "status": None})
    assert talk.model.row.turn_cut == "agent"
    talk.begin()
    assert talk.model.row.turn_cut == "agent", "an agent that only runs has not gone on"
    talk.says(assistant("b"), result("r"))
    assert talk.model.row.turn_cut is None
    # Between turns there is nothing to go on with.
    talk.says({"type": "holdover_end", "nonce": NONCE, "signal": 9, "status": None})
    assert talk.model.row.turn_cut is None


def test_a_reboot_is_told_from_an_agents_death() -> None:
    talk = Talk()
    talk.begin()
    talk.says(assistant("a"))
    launch_over(talk.model, Step(), None, 1, rebooted=True)
    assert talk.model.row.turn_cut == "reboot"
    # Its end may have been written while the host went down, and is read in the next boot.
    talk = Talk()
    talk.begin()
    talk.model.boot_id = "the next"
    talk.says(assistant("a"), {"type": "holdover_end", "nonce": NONCE, "signal": 9})
    assert talk.model.row.turn_cut == "reboot"
    # In order, the keeper is told to stop, and that can be stored before the host goes down.
    talk = Talk()
    talk.begin()
    talk.says(assistant("a"))
    end = {"type": "holdover_end", "nonce": NONCE, "signal": None, "status": 143}
    talk.says({**end, "stopped": True})
    assert talk.model.row.turn_cut == "reboot"


def test_an_end_record_with_another_nonce_is_noise() -> None:
    talk = Talk()
    talk.begin()
    step = talk.says({"type": "holdover_end", "nonce": "f" * 32, "status": 0})
    assert not step.launch_ended
    assert talk.kinds == []


@pytest.mark.parametrize(
    ("found", "searchable", "states", "resent"),
    [
        ({"p1"}, True, {"p1": "echoed", "p2": "queued"}, ["p2"]),
        (set(), True, {"p1": "queued", "p2": "queued"}, ["p1", "p2"]),
        (set(), False, {"p1": "uncertain", "p2": "uncertain"}, []),
    ],
)
def test_prompts_of_a_dead_agent_are_looked_up_before_they_are_sent_again(
    found: set[str], searchable: bool, states: dict[str, str], resent: list[str]
) -> None:
    talk = Talk()
    talk.begin()
    talk.prompt("p1")
    talk.prompt("p2")
    talk.dies()
    step = Step()
    launch_begun(talk.model, step, launch_row("l_2"))
    talk._sealed(step)
    sent = len(talk.sent)
    step = talk.live(
        resumed=True, found=frozenset(uid(name) for name in found), searchable=searchable
    )
    last = {p.id: p.state for p in step.change.prompts}
    assert last == {uid(name): state for name, state in states.items()}
    assert [json.loads(b).get("uuid") for _, b in talk.sent[sent + 1 :]] == [
        uid(name) for name in resent
    ]
    notices = [json.loads(m.body)["code"] for m in talk.stored if m.kind == "notice"]
    assert notices.count("prompt_uncertain") == sum(s == "uncertain" for s in states.values())


def test_prompts_wait_in_a_bounded_queue() -> None:
    talk = Talk()
    for i in range(MAX_QUEUED_PROMPTS):
        talk.prompt(f"p{i}")
    with pytest.raises(Conflict, match="wait"):
        talk.prompt("one more")


def test_an_ended_session_takes_no_prompt_and_cancels_those_that_wait() -> None:
    talk = Talk()
    talk.prompt("p1")
    step = Step()
    acts.end(talk.model, step, 5)
    talk._sealed(step)
    assert [p.state for p in step.change.prompts] == ["cancelled"]
    assert talk.model.state == "ended"
    with pytest.raises(Gone):
        talk.prompt("p2")


def test_a_step_that_could_not_be_stored_leaves_no_trace() -> None:
    talk = Talk()
    talk.begin()
    talk.says(asks("r1"))
    (permission,) = talk.model.permissions.values()
    launch, before = talk.model.launch, (talk.model.row.last_seq, talk.model.launch.last_n)  # type: ignore[union-attr]
    saved = talk.model.save_point()
    talk.answers(permission.request_id)
    talk.prompt("p1")
    saved.restore()
    assert talk.model.launch is launch, "others hold on to the same record"
    assert (talk.model.row.last_seq, launch.last_n) == before  # type: ignore[union-attr]
    assert list(talk.model.permissions) == [permission.request_id]
    assert permission.state == "open"
    assert not talk.model.prompts
    assert talk.model.threads["main"].n == 1


def test_statuses_keep_the_latest_of_each_name_and_are_bounded() -> None:
    talk = Talk()
    talk.begin()
    step = talk.says({"type": "system", "subtype": "status", "status": "compacting"})
    assert isinstance(step.events[0], Status)
    for i in range(MAX_STATUSES + 5):
        talk.says({"type": "system", "subtype": f"s{i}", "i": i})
    assert len(talk.model.statuses) == MAX_STATUSES
    talk.says({"type": "system", "subtype": "s69", "i": "new"})
    assert json.loads(talk.model.statuses["s69"])["i"] == "new"


def test_init_tells_what_the_agent_really_runs_with() -> None:
    talk = Talk(SessionModel(session_row(cwd=None)))
    talk.begin()
    init = {
        "type": "system", "subtype": "init", "model": "m-2", "permissionMode": "plan",
        "cwd": "/w", "session_id": uid("conversation"),
    }  # fmt: skip
    step = talk.says(init)
    assert (talk.model.row.model, talk.model.row.permission_mode) == ("m-2", "plan")
    assert talk.model.row.cwd == "/w"
    assert step.must_commit
    talk.says({**init, "session_id": uid("fork")})
    assert talk.model.row.agent_session == uid("fork")
    assert json.loads(talk.stored[-1].body)["code"] == "agent_session_changed"


def test_unreadable_lines_are_noticed_and_then_only_counted() -> None:
    talk = Talk()
    talk.begin()
    for _ in range(MAX_NOTICED_FAULTS + 30):
        talk.says('{"type":"assistant",NaN}')
    assert talk.kinds == ["notice"] * MAX_NOTICED_FAULTS
    talk.says("debug output", "")
    assert len(talk.stored) == MAX_NOTICED_FAULTS


def test_cost_is_the_latest_value() -> None:
    talk = Talk()
    talk.begin()
    talk.says(result("r1", total_cost_usd=0.5))
    talk.says(result("r2", total_cost_usd=0.75))
    assert talk.model.row.cost_usd == 0.75


def test_a_restarted_owner_knows_what_is_live() -> None:
    talk = Talk()
    talk.begin()
    talk.says(
        assistant("a", content=[tool_use("T1", "Agent")]),
        assistant("b", parent="T1", content=[tool_use("t2")]),
        {"type": "system", "subtype": "session_state_changed", "state": "running"},
        {"type": "rate_limit_event", "rate_limit_info": {"status": "allowed"}},
        assistant("c"),
    )
    again = Talk(
        SessionModel(
            talk.model.row,
            threads=list(talk.model.threads.values()),
            launch=talk.model.launch,
        )
    )
    assert again.model.state == "working"
    assert list(again.model.statuses) == ["session_state_changed", "rate_limit_event"]
    again.says(asks("r", "t2"))
    (permission,) = again.model.permissions.values()
    assert permission.thread == "T1"


def test_a_spool_cut_by_a_power_loss_is_told_and_read_from_its_new_end() -> None:
    talk = Talk()
    talk.begin()
    step = Step()
    spool_cut(talk.model, step, offset=900, size=100, at=5)
    talk._sealed(step)
    assert talk.model.launch is not None
    assert (talk.model.launch.offset, talk.model.launch.replay_from) == (100, 100)
    assert json.loads(talk.stored[-1].body)["code"] == "spool_cut"


def test_a_prompt_that_the_agent_cancels_is_not_kept_for_the_next_one() -> None:
    talk = Talk()
    talk.begin()
    talk.prompt("p1")
    talk.prompt("p2")
    talk.says(
        {
            "type": "control_response",
            "response": {
                "subtype": "success",
                "request_id": "i2",
                "response": {"still_queued": [], "cancelled": [uid("p1")]},
            },
        },
        {
            "type": "system",
            "subtype": "command_lifecycle",
            "command_uuid": uid("p2"),
            "state": "cancelled",
        },
    )
    assert talk.model.queued_ids() == []
    codes = [json.loads(m.body)["code"] for m in talk.stored if m.kind == "notice"]
    assert codes == ["prompt_cancelled", "prompt_cancelled"]
    talk.dies()
    assert not unsettled_prompts(talk.model)


def test_a_late_echo_of_a_prompt_that_waits_no_more_is_not_stored_again() -> None:
    talk = Talk()
    talk.begin()
    talk.prompt("p1")
    step = Step()
    acts.end(talk.model, step, 5)
    talk._sealed(step)
    talk.says(echo("p1"))
    assert talk.kinds == ["user"]


def test_a_failed_act_leaves_the_live_state_to_be_stored_by_the_next() -> None:
    talk = Talk()
    talk.begin()
    talk.says({"type": "rate_limit_event", "rate_limit_info": {"status": "allowed"}})
    saved = talk.model.save_point()
    talk.prompt("p1")
    assert "live" in talk.step.change.session
    saved.restore()
    talk.prompt("p2")
    assert "rate_limit_event" in json.loads(talk.step.change.session["live"])["statuses"]  # type: ignore[call-overload]


def test_an_agent_in_the_background_goes_on_after_its_tool_use_was_answered() -> None:
    talk = Talk()
    talk.begin()
    talk.says(
        assistant("a", content=[tool_use("T1", "Agent")]),
        tool_result("b", "T1"),
        assistant("c", parent="T1"),
    )
    assert talk.model.threads["T1"].state == "open"
    talk.says(
        {
            "type": "system",
            "subtype": "task_notification",
            "task_id": "x",
            "tool_use_id": "T1",
            "status": "completed",
        }
    )
    assert talk.model.threads["T1"].state == "done"


def test_a_sub_agent_that_was_cut_off_does_not_pin_the_spool() -> None:
    talk = Talk()
    talk.begin()
    talk.says(assistant("a", content=[tool_use("T1", "Agent")]), *opens("b", parent="T1"))
    assert talk.model.blocks.replay_from() is not None
    talk.says(tool_result("c", "T1"))
    assert talk.model.blocks.replay_from() is None


def test_what_cannot_be_sent_to_the_agent_in_one_line_is_refused_and_can_be_denied() -> None:
    talk = Talk()
    talk.begin()
    talk.says(asks("r1", payload="x" * (MAX_LINE_BYTES + 1)))
    (permission,) = talk.model.permissions.values()
    saved = talk.model.save_point()
    with pytest.raises(TooLarge, match="Deny"):
        talk.answers(permission.request_id)
    saved.restore()
    talk.answers(permission.request_id, "deny")
    assert json.loads(talk.sent[-1][1])["response"]["response"]["behavior"] == "deny"


def test_the_input_goes_back_as_the_agent_wrote_it() -> None:
    talk = Talk()
    talk.begin()
    given = '{"n": 1e400, "s":"\\ud83d", "k":1.50}'
    plain = '{"n": 1E5,  "s":"\\u00fc"}'
    for number, text in enumerate((given.replace("1e400", "1"), plain)):
        talk.says(
            f'{{"type":"control_request","request_id":"r{number}","request":'
            f'{{"subtype":"can_use_tool","tool_name":"T","tool_use_id":"t{number}","input":{text}}}}}'
        )
    surrogate, exact = talk.model.permissions.values()
    talk.answers(exact.request_id)
    assert plain in talk.sent[-1][1]
    talk.answers(surrogate.request_id)
    assert json.loads(talk.sent[-1][1])["response"]["response"]["updatedInput"]["s"] == "\ud83d"


def test_an_agent_that_is_being_ended_gets_no_answers_any_more() -> None:
    talk = Talk()
    talk.begin()
    talk.says(asks("r1"))
    (permission,) = talk.model.permissions.values()
    step = Step()
    acts.end(talk.model, step, 5)
    talk._sealed(step)
    sent = len(talk.sent)
    talk.says({"type": "control_request", "request_id": "x", "request": {"subtype": "telepathy"}})
    assert len(talk.sent) == sent
    with pytest.raises(Gone):
        talk.answers(permission.request_id)


def test_nothing_waits_for_the_keeper_of_a_launch_that_is_over() -> None:
    talk = Talk()
    talk.begin()
    talk.prompt("p1")
    step = talk.dies()
    assert step.change.outbox_acked == ("l_1", talk.sent[-1][0])


def test_a_prompt_that_an_agent_holds_is_asked_back_and_its_word_decides() -> None:
    talk = Talk()
    talk.begin()
    for name in ("p1", "p2", "p3"):
        talk.prompt(name)
    withdrawn = {}
    for name in ("p1", "p2", "p3"):
        step = Step()
        assert acts.cancel_prompt(talk.model, step, uid(name), 5).state == "queued"
        talk._sealed(step)
        asked = json.loads(talk.sent[-1][1])
        assert asked["request"] == {"subtype": "cancel_async_message", "message_uuid": uid(name)}
        withdrawn[name] = asked["request_id"]
    assert len(set(withdrawn.values())) == 3

    def answered(name: str, **response: Any) -> Step:
        said = {"request_id": withdrawn[name], **response}
        return talk.says({"type": "control_response", "response": said})

    assert answered("p1", subtype="success", response={"cancelled": True}).kept_prompts == []
    assert answered("p2", subtype="success", response={"cancelled": False}).kept_prompts == [
        uid("p2")
    ]
    assert answered("p3", subtype="error", error="unsupported").kept_prompts == [uid("p3")]
    assert talk.model.queued_ids() == [uid("p2"), uid("p3")]
    (notice,) = [m for m in talk.stored if m.kind == "notice"]
    assert json.loads(notice.body)["data"]["prompt_id"] == uid("p1")


def test_a_prompt_that_no_agent_has_is_withdrawn_at_once() -> None:
    talk = Talk()
    talk.prompt("p1")
    step = Step()
    assert acts.cancel_prompt(talk.model, step, uid("p1"), 5).state == "cancelled"
    talk._sealed(step)
    assert talk.kinds == ["user", "notice"]
    assert talk.model.queued_ids() == []
    with pytest.raises(NotFound):
        acts.cancel_prompt(talk.model, Step(), uid("p1"), 5)


def test_a_prompt_of_an_agent_that_died_is_not_withdrawn_before_it_is_known_whether_it_ran() -> (
    None
):
    talk = Talk()
    talk.begin()
    talk.prompt("p1")
    talk.dies()
    with pytest.raises(Conflict):
        acts.cancel_prompt(talk.model, Step(), uid("p1"), 5)


def test_only_one_of_its_own_suggestions_is_remembered_with_an_answer() -> None:
    talk = Talk()
    talk.begin()
    rule = {"type": "addRules", "behavior": "allow", "rules": [{"toolName": "Bash"}]}
    asked = asks("r1")
    asked["request"]["permission_suggestions"] = [rule, {"type": "setMode", "mode": "plan"}]
    talk.says(asked)
    (request_id,) = talk.model.permissions
    with pytest.raises(Unprocessable):
        talk.answers(request_id, remember={**rule, "behavior": "deny"})
    assert list(talk.model.permissions) == [request_id], "it is still open"
    talk.answers(request_id, remember=rule)
    assert json.loads(talk.sent[-1][1])["response"]["response"]["updatedPermissions"] == [rule]


def test_how_full_the_context_is_follows_from_the_last_reply_of_a_turn() -> None:
    talk = Talk()
    talk.begin()
    usage = {"input_tokens": 3, "cache_read_input_tokens": 1000, "output_tokens": 7}
    reply = assistant("a1")
    reply["message"] |= {"model": "m", "usage": usage}
    talk.says(reply, assistant("a2", parent="t9"))
    window = {"m": {"contextWindow": 200_000}, "small": {"contextWindow": 8_000}}
    step = talk.says(result("r1", modelUsage=window))
    assert json.loads(step.change.session["context"]) == {"used": 1010, "limit": 200_000}
    assert "context" not in talk.says(result("r2")).change.session, "and nothing says otherwise"


@pytest.mark.parametrize(
    "models",
    [None, {}, {"other": {"contextWindow": 1}, "more": {"contextWindow": 2}}, {"m": {}}, {"m": 3},
     {"m": {"contextWindow": "x"}}, {"m": {"contextWindow": True}}],
)  # fmt: skip
def test_a_context_of_which_the_agent_does_not_say_enough_stays_unknown(models: Any) -> None:
    reply = {"message": {"model": "m", "usage": {"input_tokens": 3}}}
    assert context_of(json.dumps(reply), json.dumps({"modelUsage": models})) is None
    assert context_of(None, json.dumps({"modelUsage": {"m": {"contextWindow": 5}}})) is None


def test_a_reply_that_names_its_prompts_is_a_receipt_for_them() -> None:
    talk = Talk()
    talk.begin()
    for name in ("p1", "p2", "p3"):
        talk.prompt(name)
    talk.says({**assistant("a1"), "user_message_uuids": [uid("p1"), uid("p2")]})
    assert talk.model.queued_ids() == [uid("p3")]
    talk.says(echo("p1"))
    talk.says({**result("r1"), "user_message_uuid": uid("p3")})
    assert talk.model.queued_ids() == []
    assert talk.kinds.count("user") == 3, "a late echo is not stored again"
    assert talk.model.state == "idle"


def test_an_agent_that_echoes_nothing_takes_the_oldest_prompt_with_each_reply() -> None:
    talk = Talk()
    talk.model.bare = True
    talk.begin()
    talk.prompt("p1")
    talk.prompt("p2")
    talk.says(assistant("a1"), assistant("a2"), assistant("a3", parent="t1"))
    assert talk.model.queued_ids() == [uid("p2")]
    talk.says(result("r1"))
    assert talk.model.queued_ids() == [uid("p2")]
    assert talk.model.state == "working"
    talk.says(result("r2"))  # of a turn in which nothing was said
    assert talk.model.queued_ids() == []
    assert talk.model.state == "idle"
    talk.prompt("p3")
    talk.dies()
    assert talk.model.queued_ids() == [uid("p3")], "what was not answered may not have been taken"


def test_what_another_agent_says_takes_no_prompt_that_it_has_not_echoed() -> None:
    for bare in (False, True):
        talk = Talk()
        talk.model.bare = bare
        talk.begin()
        talk.prompt("p1")
        talk.says(echo("p1"), assistant("a1"), result("r1"))
        talk.prompt("p2")
        talk.says(assistant("a2"), result("r2"))  # a turn of its own, in the background
        assert talk.model.queued_ids() == [uid("p2")]


def test_whether_an_agent_echoes_is_known_to_its_next_owner() -> None:
    talk = Talk()
    talk.model.bare = True
    talk.begin()
    talk.prompt("p1")
    talk.prompt("p2")
    step = talk.says(assistant("a1"))
    heir = SessionModel(
        session_row(live=step.change.session["live"]),
        prompts=list(talk.model.prompts.values()),
        launch=talk.model.launch,
    )
    heir.bare = True
    after = Talk(heir)
    after.says(assistant("a2"), result("r1"))
    assert heir.queued_ids() == [uid("p2")]


def test_a_reload_that_is_owed_is_known_to_the_next_owner_and_told_once() -> None:
    talk = Talk()
    talk.begin()
    talk.prompt("p1")
    talk.says(echo("p1"))
    before = len(talk.sent)
    step = Step()
    talk.model.reload_skills(step, '{"reload":1}')
    assert talk.model.seal(step, 5).must_commit
    assert step.change.outbox == []
    again = Talk(SessionModel(talk.model.row, launch=talk.model.launch))
    assert again.model.reload_due
    again.says(assistant("a"), result("r"))
    step = Step()
    again.model.reload_skills(step, '{"reload":1}')
    again._sealed(step)
    assert again.sent == [(before + 1, '{"reload":1}')]
    assert not again.model.reload_due
    third = SessionModel(again.model.row, launch=again.model.launch)
    assert not third.reload_due


@pytest.mark.parametrize("clock_ms", [0, 3_600_000, -3_600_000], ids=["right", "on", "back"])
def test_an_idle_session_is_at_rest_in_time_however_the_clock_was_set(clock_ms: int) -> None:
    talk = Talk()
    talk.begin()
    talk.prompt("p1")
    changed = talk.model.row.updated_at
    assert not talk.model.has_rested(300_000, changed + 400_000 + clock_ms), "in mid-turn"
    talk.says(echo("p1"), result("r"))
    assert talk.model.has_rested(300_000, changed + 400_000 + clock_ms)
    assert not talk.model.has_rested(300_000, changed + 299_999)


def test_an_agent_that_is_started_anew_is_owed_no_reload() -> None:
    talk = Talk()
    talk.begin()
    talk.prompt("p1")
    talk.says(echo("p1"))
    talk.model.reload_skills(Step(), "{}")
    talk.dies({"status": 0})
    talk.begin("l_2")
    assert not talk.model.reload_due


def test_what_a_person_sets_is_stored_where_it_is_new() -> None:
    talk = Talk()
    step = Step()
    given = {"title": "a", "model": "m", "permission_mode": "default", "share": None}
    acts.set_columns(talk.model, step, given)
    assert talk._sealed(step).change.session == {
        "title": "a",
        "model": "m",
        "state": "dormant",
        "live": talk.model.row.live,
        "updated_at": 5,
    }
