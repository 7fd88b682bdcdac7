"""An agent that runs its prompts with /bin/sh and says what they printed. Standard library alone.

``eat`` alone has the agent itself take memory, and ``leave`` exit: what a prompt's own program
cannot do to it.
"""

import json
import os
import subprocess
import sys


def say(frame: dict[str, object]) -> None:
    os.write(1, json.dumps(frame).encode() + b"\n")


def run(text: str) -> str:
    if text == "leave":
        os._exit(7)
    if text == "eat":
        eaten = []
        while True:
            eaten.append(b"x" * (16 << 20))
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", text], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except OSError as error:
        return f"no shell: {error}"
    return f"{done.stdout}{done.stderr}status {done.returncode}"


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
            block = {"type": "text", "text": run(text)}
            message = {"role": "assistant", "content": [block]}
            say({"type": "assistant", "message": message, "parent_tool_use_id": None})
            say({"type": "result", "subtype": "success", "is_error": False, "result": ""})


main()
