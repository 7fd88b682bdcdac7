"""A scripted Messages API on loopback, for running the real Claude Code without an account.

    python3 tests/claude/api.py --port 0 --port-file FILE

What it answers is written in the latest prompt of the conversation, one directive a line:

    SAY text        a text block, streamed word by word
    BASH command    a call of the Bash tool; consecutive tool lines become parallel calls
    AGENT prompt    a call of the sub-agent tool (``Agent`` or ``Task``, whichever is offered);
                    its prompt may be a script again, ``\\n`` in it standing for a line's end
    ASK             a call of AskUserQuestion with one question of two options
    READ [n]        a call of the Read tool on the path behind ``The file: `` in the prompt, of n
                    lines at most
    SLOW n          n words at twenty a second, to be interrupted
    FAIL status     the HTTP error `status`

Anything else is repeated as ``You said: …``. A reply ends after a group of tool calls; the next
request of that turn takes up the script behind it, and once it is used up after tool calls the
answer is ``done: `` and the first line of each result. No state is kept between requests: how far
a script has come is counted from the assistant messages behind its prompt.

Standard library only. ``GET /_requests`` lists the latest `MAX_RECORDED` requests as JSON.
"""

import argparse
import json
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

MAX_RECORDED = 500
MAX_BODY_BYTES = 64 * 1024 * 1024
SLOW_WORDS_PER_S = 20
TOOLS = ("BASH", "AGENT", "ASK", "READ")
REMINDER = "<system-reminder>"
SKILL_LINE = re.compile(r"^- ([\w.-]+(?::[\w.-]+)?)(?: \([^)]*\))?: (.*)$", re.MULTILINE)

_serial = count(1)


@dataclass(frozen=True)
class Step:
    verb: str
    text: str


# --- the script -----------------------------------------------------------------------------


def prompt_texts(message: dict[str, Any]) -> list[str]:
    """The texts of a user message that a person wrote; reminders and tool results are not."""
    if message.get("role") != "user":
        return []
    content = message.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    texts = [block.get("text", "") for block in blocks if block.get("type") == "text"]
    return [text for text in texts if text.strip() and not text.lstrip().startswith(REMINDER)]


def latest_prompt(messages: list[dict[str, Any]]) -> tuple[str, int]:
    """The latest prompt's text and its index; ("", -1) where there is none."""
    for index in range(len(messages) - 1, -1, -1):
        if texts := prompt_texts(messages[index]):
            return texts[-1], index
    return "", -1


def listed_skills(messages: list[dict[str, Any]]) -> dict[str, str]:
    """{name: what is said of it} of the skills that the conversation tells of so far."""
    found = {}
    for message in messages:
        content = message.get("content")
        blocks = [{"text": content}] if isinstance(content, str) else content or []
        for text in (block.get("text") or "" for block in blocks):
            if "available for use with the Skill tool" in text:
                found |= dict(SKILL_LINE.findall(text))
    return found


def steps(prompt: str) -> list[Step]:
    found = []
    for line in prompt.splitlines():
        verb, _, text = line.strip().partition(" ")
        if verb in {"SAY", "SLOW", "FAIL", *TOOLS}:
            found.append(Step(verb, text))
    return found or [Step("SAY", f"You said: {prompt.strip()[:2000]}")]


def replies(script: list[Step]) -> list[list[Step]]:
    """The script cut into replies: each ends where tool calls end."""
    groups: list[list[Step]] = [[]]
    for step in script:
        if groups[-1] and groups[-1][-1].verb in TOOLS and step.verb not in TOOLS:
            groups.append([])
        groups[-1].append(step)
    return groups


def results(messages: list[dict[str, Any]]) -> str:
    """The first line of each tool result since the assistant spoke last.

    In the last message, mostly; some versions put reminders into a message behind it.
    """
    found = []
    last = max((i for i, m in enumerate(messages) if m.get("role") == "assistant"), default=-1)
    contents = [message.get("content") for message in messages[last + 1 :]]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    for block in blocks:
        if block.get("type") == "tool_result":
            body = block.get("content")
            if isinstance(body, list):
                body = " ".join(part.get("text", "") for part in body)
            found.append((str(body).strip().splitlines() or [""])[0])
    return " | ".join(found)


def reply_steps(request: dict[str, Any]) -> list[Step]:
    """What the request is to be answered with."""
    messages = request.get("messages") or []
    if not request.get("tools"):
        return [Step("SAY", "ok")]  # a title or summary asked for behind the scenes
    prompt, index = latest_prompt(messages)
    if index < 0:
        return [Step("SAY", "ok")]
    groups = replies(steps(prompt))
    done = sum(1 for message in messages[index + 1 :] if message.get("role") == "assistant")
    if done < len(groups):
        return groups[done]
    return [Step("SAY", f"done: {results(messages)}")]


def tool_call(step: Step, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    offered = [tool.get("name") for tool in request.get("tools") or []]
    if step.verb == "BASH":
        return "Bash", {"command": step.text, "description": "Run a scripted command"}
    if step.verb == "READ":
        prompt, _ = latest_prompt(request.get("messages") or [])
        given: dict[str, Any] = {"file_path": prompt.rpartition("The file: ")[2].strip()}
        return "Read", given | ({"limit": int(step.text)} if step.text else {})
    if step.verb == "AGENT":
        name = "Agent" if "Agent" in offered else "Task"
        prompt = step.text.replace("\\n", "\n")
        agent = {"description": "Scripted agent", "subagent_type": "general-purpose"}
        return name, {**agent, "prompt": prompt}
    options = [{"label": "Tea", "description": "Hot"}, {"label": "Water", "description": "Cold"}]
    question = {"question": "What to drink?", "header": "Drink", "options": options}
    return "AskUserQuestion", {"questions": [{**question, "multiSelect": False}]}


def blocks(script: list[Step], request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for step in script:
        if step.verb == "SAY":
            yield {"type": "text", "text": step.text}
        elif step.verb == "SLOW":
            words = int(step.text or "100")
            yield {"type": "text", "text": " ".join(f"word{i}" for i in range(1, words + 1))}
        elif step.verb in TOOLS:
            name, given = tool_call(step, request)
            use_id = f"toolu_{os.getpid():06d}{next(_serial):010d}"
            yield {"type": "tool_use", "id": use_id, "name": name, "input": given}


# --- the wire -------------------------------------------------------------------------------


class Api(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.recorded: deque[dict[str, Any]] = deque(maxlen=MAX_RECORDED)
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away in mid-answer whenever a turn is interrupted; that is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Api

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        if self.path == "/_requests":
            with self.server.lock:
                self._json(200, list(self.server.recorded))
        else:
            self._json(200, {"data": [], "has_more": False})

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        if size > MAX_BODY_BYTES:
            self.close_connection = True
            return self._json(413, {"type": "error", "error": {"type": "request_too_large"}})
        body = self.rfile.read(size)
        try:
            request = json.loads(body) if body else {}
        except ValueError:
            request = {}
        path = self.path.partition("?")[0]
        self._record(path, request)
        if path == "/v1/messages":
            return self._messages(request)
        if path == "/v1/messages/count_tokens":
            return self._json(200, {"input_tokens": 10})
        return self._json(200, {})

    def _record(self, path: str, request: dict[str, Any]) -> None:
        messages = request.get("messages") or []
        with self.server.lock:
            self.server.recorded.append(
                {
                    "path": path,
                    "model": request.get("model"),
                    "stream": bool(request.get("stream")),
                    "messages": len(messages),
                    "prompt": latest_prompt(messages)[0][:4000],
                    "prompt_chars": len(latest_prompt(messages)[0]),
                    "tools": [tool.get("name") for tool in request.get("tools") or []],
                    "skills": listed_skills(messages),
                }
            )

    def _json(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _messages(self, request: dict[str, Any]) -> None:
        script = reply_steps(request)
        for step in script:
            if step.verb == "FAIL":
                error = {"type": "api_error", "message": f"scripted failure {step.text}"}
                return self._json(int(step.text or "500"), {"type": "error", "error": error})
        content = list(blocks(script, request))
        calls = any(block["type"] == "tool_use" for block in content)
        message = {
            "id": f"msg_{os.getpid():06d}{next(_serial):010d}",
            "type": "message",
            "role": "assistant",
            "model": request.get("model") or "scripted",
            "content": content,
            "stop_reason": "tool_use" if calls else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": 10},
        }
        if not request.get("stream"):
            return self._json(200, message)
        slow = any(step.verb == "SLOW" for step in script)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event, pause in events(message, slow):
            if pause:
                time.sleep(pause)
            data = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")
        return None


def events(message: dict[str, Any], slow: bool) -> Iterator[tuple[dict[str, Any], float]]:
    """The server-sent events of `message`, each with the seconds to wait before it."""
    start = {**message, "content": [], "stop_reason": None}
    yield {"type": "message_start", "message": start}, 0
    for index, block in enumerate(message["content"]):
        if block["type"] == "text":
            opening: dict[str, Any] = {"type": "text", "text": ""}
            words = block["text"].split(" ")
            deltas = [
                {"type": "text_delta", "text": word if i == 0 else f" {word}"}
                for i, word in enumerate(words)
            ]
        else:
            opening = {**block, "input": {}}
            partial = json.dumps(block["input"])
            deltas = [{"type": "input_json_delta", "partial_json": partial}]
        yield {"type": "content_block_start", "index": index, "content_block": opening}, 0
        for delta in deltas:
            pause = 1 / SLOW_WORDS_PER_S if slow else 0
            yield {"type": "content_block_delta", "index": index, "delta": delta}, pause
        yield {"type": "content_block_stop", "index": index}, 0
    ending = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": ending, "usage": {"output_tokens": 10}}, 0
    yield {"type": "message_stop"}, 0


def main() -> None:
    parser = argparse.ArgumentParser(description="A scripted Messages API on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0 chooses a free one")
    parser.add_argument("--port-file", type=Path, help="where to write the port once listening")
    options = parser.parse_args()
    server = Api(options.port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    port = server.server_address[1]
    if options.port_file is not None:
        # A reader sees the whole number or no file at all.
        beside = options.port_file.with_name(options.port_file.name + ".new")
        beside.write_text(f"{port}\n")
        beside.replace(options.port_file)
    print(f"scripted Messages API on http://127.0.0.1:{port}", flush=True)
    server.serve_forever(poll_interval=60)


if __name__ == "__main__":
    main()
