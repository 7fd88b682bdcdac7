"""A session that is let go of and adopted again while it is watched, with a real keeper and spool."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from holdoverd.sessions.following import Following
from holdoverd.sessions.viewer import Viewer, ViewerCursor
from tests.sessions import house as house_module
from tests.sessions.house import ADMIN, House, a_house, a_prompt

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_either_database(migrated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house_module, "catalogue_url", lambda _folder: migrated)


# A sub-agent has begun a sentence, and is still at it when the main thread has said a whole one.
SPEAKS = r"""
import json, re, sys, time
def say(**line): print(json.dumps({"session_id": "s", **line}), flush=True)
def event(parent, type, **fields):
    say(type="stream_event", event={"type": type, **fields}, parent_tool_use_id=parent)
def text(parent, words):
    event(parent, "content_block_delta", index=0, delta={"type": "text_delta", "text": words})
def begin(parent, name):
    event(parent, "message_start", message={"id": name})
    event(parent, "content_block_start", index=0, content_block={"type": "text", "text": ""})
begin("T1", "m1")
text("T1", "one ")
begin(None, "m2")
text(None, "main")
say(type="assistant", uuid="u2", parent_tool_use_id=None,
    message={"id": "m2", "content": [{"type": "text", "text": "main"}]})
event(None, "content_block_stop", index=0)
event(None, "message_stop")
for line in sys.stdin:
    if found := re.search("say (two|three|four)", line):
        text("T1", found[1] + " ")
    if "finish" in line:
        say(type="assistant", uuid="u1", parent_tool_use_id="T1",
            message={"id": "m1", "content": [{"type": "text", "text": "all"}]})
time.sleep(600)
"""


class Watcher:
    """What a client was given, over all its viewers."""

    def __init__(self, house: House, session: str) -> None:
        self.house, self.session = house, session
        self.frames: list[dict[str, Any]] = []
        self.viewer: Viewer

    async def open(self) -> None:
        self.viewer = await self.house.sessions.open_viewer(
            ADMIN, self.session, after=0, epoch=None, threads="all"
        )

    async def until(self, kind: str, *parts: str) -> None:
        with trio.fail_after(60):
            while True:
                text = await self.viewer.next_frame()
                self.frames.append(json.loads(text))
                if self.frames[-1]["type"] == kind and all(part in text for part in parts):
                    return

    async def say(self, text: str) -> None:
        await self.house.sessions.prompt(ADMIN, self.session, a_prompt(text))

    async def move(self) -> None:
        """To the next owner, which is the same instance here, but knows nothing of before."""
        cursor = self.viewer.detach()
        assert cursor is not None
        with self.house.sessions.handing_over(self.session) as possible:
            assert possible
            assert await self.house.sessions.let_go_of(self.session) is not None
        self.viewer = await self.house.sessions.attach_viewer(ADMIN, self.session, cursor)

    def shown(self) -> list[str]:
        """The client's picture: texts of deltas by thread, as it is told to keep and drop them."""
        told = []
        for frame in self.frames:
            if frame["type"] == "delta_reset":
                told.append(f"drop {frame['thread']}")
            elif frame["type"] == "delta":
                event = frame["body"]["event"]
                words = event.get("delta", {}).get("text") or event.get("content_block", {}).get(
                    "text"
                )
                if words:
                    told.append(f"{frame['thread']}: {words}")
        return told


async def test_words_that_were_said_and_over_are_not_shown_again_to_those_who_come_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence under way is, behind a reset: the next owner reads it anew from its beginning.

    It begins to read when its viewers are there already, which is the hard case.
    """
    gate = trio.Event()
    ingest = Following._ingest

    async def late(following: Following) -> None:
        await gate.wait()
        await ingest(following)

    gate.set()
    monkeypatch.setattr(Following, "_ingest", late)
    async with a_house(tmp_path, SPEAKS) as house:
        watcher = Watcher(house, (await house.new())["id"])
        await watcher.open()
        await watcher.until("messages", '"u2"')
        if not any(frame["type"] == "live" for frame in watcher.frames):
            await watcher.until("live")
        words = "one "
        for word in ("two ", "three ", "four "):
            watcher.frames.clear()
            gate = trio.Event()
            await watcher.move()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watcher.until, "session")
                await trio.sleep(0.05)  # long enough to become live, were there nothing to wait for
                gate.set()
            await watcher.say(f"say {word}")
            await watcher.until("delta", word)
            words += word
            told = watcher.shown()
            assert "main: main" not in " ".join(told)
            dropped = [line for line in told if line.startswith("drop")]
            assert told[: len(dropped)] == dropped
            assert "drop T1" in dropped
            said = [line.removeprefix("T1: ") for line in told[len(dropped) :]]
            assert "".join(said) == words
            assert [f["type"] for f in watcher.frames].count("live") == 0
        await watcher.say("finish")
        await watcher.until("messages", '"u1"')
        seqs = [m["seq"] for f in watcher.frames if f["type"] == "messages" for m in f["messages"]]
        assert seqs == sorted(set(seqs))


async def test_a_viewer_that_comes_while_its_session_is_on_its_way_waits_for_the_next_owner(
    tmp_path: Path,
) -> None:
    """The others were detached already: in the old owner's hub nobody would feed this one."""
    async with a_house(tmp_path, SPEAKS) as house:
        watcher = Watcher(house, (await house.new())["id"])
        cursor = ViewerCursor("live", 0, None)
        found: list[Viewer] = []

        async def attach() -> None:
            found.append(await house.sessions.attach_viewer(ADMIN, watcher.session, cursor))

        async with trio.open_nursery() as nursery:
            with house.sessions.handing_over(watcher.session) as possible:
                assert possible
                nursery.start_soon(attach)
                await trio.sleep(0.1)  # long enough for the catalogue; without the wait it is there
                assert not found
                assert await house.sessions.let_go_of(watcher.session) is not None
        (watcher.viewer,) = found
        await watcher.say("are you there?")
        await watcher.until("messages", "are you there?")
