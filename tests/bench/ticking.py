"""An agent that says lines of 1 KiB at a steady rate, each with the moment it was said.

Its prompt is "BEGIN_NS RATE SECONDS": from that moment of the monotonic clock, which all processes
of a machine share, RATE lines a second. ``python -I -S ticking.py``: standard library alone.
"""

import json
import os
import sys
import time

HEAD = (
    '{"type":"assistant","message":{"id":"m","role":"assistant","content":[{"type":"text","text":"'
)
TAIL = '"}]},"parent_tool_use_id":null,"session_id":"s","uuid":"%s"}\n'
PADDING = "x" * (1024 - len(HEAD) - len(TAIL) - 60)


def say(frame: dict[str, object]) -> None:
    os.write(1, json.dumps(frame).encode() + b"\n")


def tick(begin_ns: int, rate: int, seconds: int) -> None:
    every_ns = 1_000_000_000 // rate
    # Agents do not speak in chorus.
    due_ns = begin_ns + os.getpid() % 97 * every_ns // 97
    for _ in range(rate * seconds):
        time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
        due_ns += every_ns
        uuid = f"{os.getpid():08x}-0000-4000-8000-{due_ns % 2**48:012x}"
        said = f"said={time.monotonic_ns():020d} "
        os.write(1, (HEAD + said + PADDING + TAIL % uuid).encode())
    say({"type": "result", "subtype": "success", "is_error": False, "result": ""})


def main() -> None:
    for line in sys.stdin:
        frame = json.loads(line)
        if frame["type"] == "control_request":
            answer = {"subtype": "success", "request_id": frame["request_id"], "response": {}}
            say({"type": "control_response", "response": answer})
        elif frame["type"] == "user":
            say({**frame, "isReplay": True})
            content = frame["message"]["content"]
            text = content if isinstance(content, str) else content[0]["text"]
            tick(*map(int, text.split()))


main()
