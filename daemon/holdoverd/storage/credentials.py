"""The keys to storage: read once at start, from a file that systemd or the supervisor passes.

``$HOLDOVER_STORAGE_CREDENTIALS`` names the file, else it is ``storage`` in
``$CREDENTIALS_DIRECTORY``, where ``LoadCredential=storage:…`` puts it. It holds
``{"access_key": …, "secret_key": …}``, or ``{}`` where there are none. Not a setting, because settings are shown.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from holdoverd.errors import SettingsError

CREDENTIAL = "storage"
"""The name in ``LoadCredential=``."""


@dataclass(frozen=True)
class Credentials:
    """A pair of S3 keys. Neither shows in `repr`, so that no log line can hold them."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)


def credentials_file(env: Mapping[str, str]) -> Path | None:
    """Where the keys should be; None when nobody has passed any."""
    if named := env.get("HOLDOVER_STORAGE_CREDENTIALS"):
        return Path(named)
    if folder := env.get("CREDENTIALS_DIRECTORY"):
        path = Path(folder) / CREDENTIAL
        return path if path.exists() else None
    return None


def load_credentials(env: Mapping[str, str]) -> Credentials | None:
    """The keys; None when nobody has passed any.

    Raises `SettingsError` when the file cannot be read or is not what it should be; the message
    names the file and nothing of what it holds.
    """
    path = credentials_file(env)
    if path is None:
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data == {}:
            return None
        keys = Credentials(data["access_key"], data["secret_key"])
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError):
        keys = Credentials("", "")
    if not all(isinstance(key, str) and key for key in (keys.access_key, keys.secret_key)):
        raise SettingsError(
            f'{path} does not hold the keys to storage; write {{"access_key": …, "secret_key": …}} '
            "into it, both strings."
        )
    return keys
