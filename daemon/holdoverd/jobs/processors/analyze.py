"""``analyze``: Claude Code in print mode reads the file and answers. Params: ``prompt``, ``model``,
``agent``.

The agent gets the file at a path and the tools to read it, none to change or run anything: what is
in the file is a stranger's words. Its answer is the result.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from holdoverd.jobs.processors import (
    DATA_ERROR,
    NO_INPUT,
    TEMPORARY,
    UNAVAILABLE,
    fail,
    params,
    report,
)

PROMPT = "Say what this file is and what it holds, and what stands out in it."
RETRY_LATER_S = 60


def main() -> None:
    path = os.environ.get("HOLDOVER_FILE")
    if not path:
        fail(NO_INPUT, "There is no file to analyse.")
    given = params()
    agents: dict[str, Any] = json.loads(os.environ.get("HOLDOVER_AGENTS") or "{}")
    name = str(given.get("agent") or os.environ.get("HOLDOVER_DEFAULT_AGENT") or "")
    agent = agents.get(name)
    if agent is None:
        fail(UNAVAILABLE, 'analyze needs an agent with preset = "claude" ([agents.claude]).')
    command = [os.path.expanduser(agent["command"][0]), *agent["command"][1:]]
    environment = {**os.environ, **agent["env"], "DISABLE_AUTOUPDATER": "1"}
    for mine in [key for key in environment if key.startswith("HOLDOVER_")]:
        del environment[mine]
    if shutil.which(command[0], path=environment.get("PATH")) is None:
        fail(
            UNAVAILABLE,
            f"analyze needs the agent {name!r}, and its program {command[0]} is not found on the "
            f"PATH of the account {environment.get('USER')}; install Claude Code for it.",
        )
    done = run([*command, *arguments(given, path)], environment)
    judge(name, done)


def arguments(given: dict[str, Any], path: str) -> list[str]:
    """Flags: https://code.claude.com/docs/en/headless. The prompt comes on stdin."""
    flags = [
        "-p",
        "--output-format=json",
        "--tools=Read,Grep,Glob",
        "--allowedTools=Read,Grep,Glob",
        "--permission-mode=dontAsk",  # whatever else it may want: no, and go on
        f"--add-dir={Path(path).parent}",
        "--no-session-persistence",
        "--strict-mcp-config",
    ]
    if model := given.get("model"):
        flags.append(f"--model={model}")
    return flags


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    path = os.environ["HOLDOVER_FILE"]
    prompt = f"{params().get('prompt') or PROMPT}\n\nThe file: {path}\n"
    return subprocess.run(
        command,
        input=prompt,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        check=False,
    )


def judge(name: str, done: subprocess.CompletedProcess[str]) -> None:
    """Print the answer, or end with what went wrong."""
    try:
        said: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        sys.stderr.write(done.stdout[-4000:])
        fail(1, f"The agent {name!r} ended with status {done.returncode} and no answer.")
    answer = str(said.get("result") or "")
    if not said.get("is_error") and done.returncode == 0:
        print(answer)
        return
    status = said.get("api_error_status")
    if status in (429, 529):
        report(retry_after_s=RETRY_LATER_S)
        fail(TEMPORARY, f"The model is busy: {answer}")
    if status in (401, 403):
        fail(
            UNAVAILABLE,
            f"The agent {name!r} is not logged in: {answer} Run `holdover agent login`.",
        )
    if status in (400, 413):
        fail(DATA_ERROR, f"The model refused the file: {answer}")
    fail(1, f"The agent {name!r} failed: {answer or said.get('subtype')}")


if __name__ == "__main__":
    main()
