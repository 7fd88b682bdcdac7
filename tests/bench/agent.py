"""An agent that says what stands in a file, as fast as its pipe takes it.

Its prompt names the file and a named pipe; it begins once somebody opens that for writing.
``python -I -S agent.py``: standard library alone.
"""

import json
import os
import sys

CHUNK_BYTES = 1024 * 1024


def say(frame: dict[str, object]) -> None:
    os.write(1, json.dumps(frame).encode() + b"\n")


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
            path, gate = text.split("\n")
            with open(gate, "rb"), open(path, "rb", buffering=0) as file:
                while chunk := file.read(CHUNK_BYTES):
                    view = memoryview(chunk)
                    while view:
                        view = view[os.write(1, view) :]


main()
