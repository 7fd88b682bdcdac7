"""Owners as processes, an account's agent socket that starts real keepers, and what they left."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.live.up import wait_until
from tests.sessions.owner_process import ACCOUNT

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 90.0
"""A timeout, not a figure."""


class Refused(Exception):
    """The owner refused a command."""


class OwnerProcess:
    """A running ``owner_process``; commands by name, answers as they come."""

    def __init__(self, folder: Path, generation: int, live: set[int]) -> None:
        self.generation = generation
        self.errors = folder / f"owner-{generation}-{uuid4().hex[:6]}.err"
        self._changed = threading.Condition()
        self._answers: dict[int, dict[str, Any]] = {}
        self._asked = 0
        self.steps: list[str] = []
        self._stopping: str | None = None
        with self.errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.sessions.owner_process", str(folder)),
                    *(str(generation), ",".join(map(str, sorted(live)))),
                ],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self._changed:
                if "id" in told:
                    self._answers[told["id"]] = told
                elif "step" in told:
                    self.steps.append(told["step"])
                else:
                    self._stopping = told["stopping"]
                self._changed.notify_all()

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        with self._changed:
            if not self._changed.wait_for(lambda: condition(), WAIT_S):
                raise TimeoutError(f"{what}; steps: {self.steps[-12:]}; {self.errors.read_text()}")

    def begin(self, do: str, **fields: Any) -> int:
        """Give a command; its answer comes with `answer`."""
        self._asked += 1
        assert self._process.stdin is not None
        command = {"id": self._asked, "do": do, **fields}
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        return self._asked

    def answer(self, number: int) -> Any:
        """Raises Refused where the owner did."""
        self.wait(lambda: number in self._answers, f"no answer to command {number}")
        answer = self._answers[number]
        assert "defect" not in answer, answer["defect"]
        if "refused" in answer:
            raise Refused(f"{answer['refused']}: {answer['message']}")
        return answer["ok"]

    def answered(self, number: int) -> bool:
        return number in self._answers

    def call(self, do: str, **fields: Any) -> Any:
        return self.answer(self.begin(do, **fields))

    def refusal(self, number: int) -> str | None:
        """The refusal of a command, None where it was obeyed."""
        try:
            self.answer(number)
        except Refused as refused:
            return str(refused)
        return None

    def stop_at(self, step: str, nth: int = 1) -> None:
        self.call("stop_at", step=step, nth=nth)

    def wait_stopped(self, step: str) -> None:
        """Until the process has stopped itself there."""
        self.wait(lambda: self._stopping is not None, f"{step} never came")
        assert self._stopping == step
        wait_until(lambda: _state(self._process.pid) == "T", "the owner stopped itself")

    def stop(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)
        wait_until(lambda: _state(self._process.pid) == "T", "the owner stopped")

    def go_on(self) -> None:
        self._stopping = None
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def complaints(self) -> str:
        """What it wrote on stderr that points at a defect."""
        text = self.errors.read_text()
        return text if "Traceback" in text or "adopting it anew" in text else ""


class Stage:
    """A state folder, the agent socket of an account, and owners by generation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        (self.home / "heard").mkdir(parents=True)
        for name in ("state", "run/agents"):
            (folder / name).mkdir(parents=True)
        self._owners: dict[int, OwnerProcess] = {}
        self._complaints: list[str] = []
        self.keepers: list[subprocess.Popen[bytes]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "run/agents" / f"{ACCOUNT}.sock"))
        self._listener.listen(16)
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def _accept(self) -> None:
        """A keeper for each connection, as the agent units' socket does it."""
        environment = {**os.environ, "HOME": str(self.home)}
        with (self.folder / "keepers.err").open("ab") as errors:
            while True:
                try:
                    connection, _ = self._listener.accept()
                except OSError:
                    return
                with connection:
                    self.keepers.append(
                        subprocess.Popen(
                            [sys.executable, "-I", "-m", "holdoverd.keeper"],
                            stdin=connection.fileno(),
                            stdout=subprocess.DEVNULL,
                            stderr=errors,
                            env=environment,
                            start_new_session=True,
                        )
                    )

    def owner(self, generation: int, live: set[int]) -> OwnerProcess:
        """The owner of that generation, started unless it lives."""
        found = self._owners.get(generation)
        if found is None:
            found = self._owners[generation] = OwnerProcess(self.folder, generation, live)
            found.answer(0)
        return found

    def kill(self, owner: OwnerProcess) -> None:
        owner.kill()
        self._complaints.append(owner.complaints())
        del self._owners[owner.generation]

    def complaints(self) -> str:
        return "".join([*self._complaints, *(o.complaints() for o in self._owners.values())])

    def close(self) -> None:
        for owner in self._owners.values():
            owner.kill()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        for keeper in self.keepers:
            keeper.terminate()
        for keeper in self.keepers:
            try:
                keeper.wait(30)
            except subprocess.TimeoutExpired:
                keeper.kill()
                keeper.wait()

    # -- what is there --------------------------------------------------------------------------

    @contextlib.contextmanager
    def catalogue(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(
            sqlite3.connect(f"file:{self.folder}/state/catalogue.db?mode=ro", uri=True)
        ) as connection:
            connection.row_factory = sqlite3.Row
            yield connection

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        with self.catalogue() as connection:
            return connection.execute(query, values).fetchall()

    def sessions(self) -> set[str]:
        return {row["id"] for row in self.rows("SELECT id FROM sessions")}

    def heard(self, session: str) -> list[tuple[str, str]]:
        """(what, which) in order, as the session's agents noted it."""
        path = self.home / "heard" / session
        if not path.exists():
            return []
        pairs = (line.split(" ") for line in path.read_text().splitlines())
        return [(what, which) for what, which in pairs]

    def agents(self, session: str) -> list[int]:
        """Pids of the session's living agents, by the environment that the keeper gave them."""
        mark = f"HOLDOVER_SESSION_ID={session}".encode()
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if b"counting_agent.py" not in (entry / "cmdline").read_bytes():
                    continue
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def kill_keeper(self, agent: int) -> None:
        """KILL the keeper of an agent, and with it everything below it, the agent included."""
        ours = {keeper.pid: keeper for keeper in self.keepers}
        pid = agent
        while pid not in ours:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        ours[pid].kill()

    def check(self, session: str, *, acknowledged: set[str], refused: set[str]) -> None:
        """The session is whole: every stored prompt was acted on once, by one agent at a time.

        `acknowledged` prompts are stored, `refused` ones are not; one whose owner was killed
        before it could answer may be either.
        """
        accepted = [
            row["client_id"]
            for row in self.rows(
                "SELECT client_id FROM messages WHERE session=? AND client_id<>'' ORDER BY seq",
                session,
            )
        ]
        assert acknowledged <= set(accepted)
        assert not refused & set(accepted)
        heard = self.heard(session)
        assert "twin" not in {what for what, _ in heard}, "two agents at one time"
        assert Counter(which for what, which in heard if what == "prompt") == Counter(accepted)
        assert len(self.agents(session)) == 1
        with self.catalogue() as db:
            assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []
            (row,) = db.execute("SELECT * FROM sessions WHERE id=?", (session,))
            messages = db.execute(
                "SELECT * FROM messages WHERE session=? ORDER BY seq", (session,)
            ).fetchall()
            prompts = db.execute("SELECT * FROM prompts WHERE session=?", (session,)).fetchall()
            launches = db.execute(
                "SELECT * FROM launches WHERE session=? AND state<>'ended'", (session,)
            ).fetchall()
            threads = db.execute("SELECT * FROM threads WHERE session=?", (session,)).fetchall()
        last = len(messages)
        assert (
            [m["seq"] for m in messages] == list(range(1, last + 1)) == [m["n"] for m in messages]
        )
        assert (row["last_seq"], [(t["thread"], t["n"]) for t in threads]) == (
            last,
            [("main", last)],
        )
        assert {p["id"]: p["state"] for p in prompts} == dict.fromkeys(accepted, "echoed")
        assert sum(m["kind"] == "result" for m in messages) == len(accepted)
        said = Counter(
            block["text"]
            for m in messages
            if m["kind"] == "assistant"
            for block in json.loads(m["body"])["message"]["content"]
        )
        assert said == Counter(f"heard {prompt}" for prompt in accepted)
        transcript = self.home / ".local/state/holdover-demo" / f"{row['agent_session']}.jsonl"
        taken = [json.loads(line)["uuid"] for line in transcript.read_text().splitlines()]
        assert taken == accepted
        (launch,) = launches
        assert (launch["state"], row["state"]) == ("live", "idle")
        # Nothing lies about that belongs to no living launch.
        every = {row["id"] for row in self.rows("SELECT id FROM launches WHERE session=?", session)}
        left = {p.stem for p in (self.folder / "state/spool").iterdir()} & every
        assert left == {launch["id"]}
        left = {p.stem for p in (self.folder / "run/sessions").glob("*.sock")} & every
        assert left == {launch["id"]}


def new_prompt() -> dict[str, Any]:
    prompt_id = str(uuid4())
    return {"id": prompt_id, "text": f"say heard {prompt_id}"}


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
