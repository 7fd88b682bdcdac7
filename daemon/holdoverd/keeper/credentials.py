"""The account's login for its agent: read by the keeper, put into the agent's environment.

systemd hands it over as a credential (``LoadCredential=`` in the agent's unit), `holdover up` in a
folder of its own; so it is in no unit file, no command line and no request of the daemon, which
never sees it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

FILE = "login"
NAMES = ("CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_API_KEY")
"""Variables that a login may set, and no others: a login is no way to change an agent's PATH."""

MAX_BYTES = 64 * 1024
# Printable and without blanks, as tokens and keys are; whatever else came is a mistake.
SECRET = re.compile(r"[!-~]{1,4096}")


def parse(text: str) -> dict[str, str]:
    """{variable: secret} of a login's text, lines ``NAME=SECRET``; what is none is left out."""
    found = {}
    for line in text.splitlines():
        name, _, secret = line.strip().partition("=")
        if name in NAMES and SECRET.fullmatch(secret):
            found[name] = secret
    return found


def render(name: str, secret: str) -> str:
    """The text of a login. Raises ValueError for what `parse` would not give back."""
    text = f"{name}={secret}\n"
    if parse(text) != {name: secret}:
        raise ValueError(f"it is no secret of the kind {name}")
    return text


def read(env: Mapping[str, str]) -> dict[str, str]:
    """The login in ``$CREDENTIALS_DIRECTORY``; empty where there is none. Raises OSError."""
    folder = env.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return {}
    try:
        with open(os.path.join(folder, FILE), encoding="utf-8", errors="replace") as file:
            return parse(file.read(MAX_BYTES))
    except FileNotFoundError:
        return {}
