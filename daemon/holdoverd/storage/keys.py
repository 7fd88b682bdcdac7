"""Makes the keys to this host's own storage, once. Standard library only: an install runs it.

The file is what `credentials` reads, ``{"access_key": …, "secret_key": …}``; storage gets the same
pair in its own words by `plan.identities`.
"""

import base64
import json
import os
from pathlib import Path

from holdoverd.storage.plan import identities
from holdoverd.whole import write_whole


def ensure_keys(path: Path) -> bool:
    """Make `path`, 0600, unless it is there; tells whether it was made. Whole or not at all."""
    if path.exists():
        return False
    keys = {
        "access_key": base64.b32encode(os.urandom(10)).decode(),
        "secret_key": base64.urlsafe_b64encode(os.urandom(30)).decode(),
    }
    write_whole(path, json.dumps(keys) + "\n", sync=True)
    return True


def write_identities(keys: Path, target: Path) -> None:
    """Tell storage of the keys in the file `keys`, in a file of its own that only its user reads."""
    pair = json.loads(keys.read_text(encoding="utf-8"))
    write_whole(target, identities(pair["access_key"], pair["secret_key"]), sync=True)
