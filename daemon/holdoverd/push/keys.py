"""The key that push services know this host by. Subscriptions are bound to it: it must last."""

import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from holdoverd.errors import SettingsError
from holdoverd.push.sealing import Sealing
from holdoverd.whole import write_whole

CREDENTIAL = "push"
NONE = b"none"
"""What the unit passes where the operator has put no key."""

FILE = "push-key.pem"


def load_key(env: Mapping[str, str], state_dir: Path) -> ec.EllipticCurvePrivateKey:
    """The credential ``push``, where one was passed; else this host's own, made once.

    Raises SettingsError for one that cannot be read or is of another kind; the message names the
    file and nothing of what it holds.
    """
    folder = env.get("CREDENTIALS_DIRECTORY")
    path = Path(folder) / CREDENTIAL if folder else None
    try:
        text = path.read_bytes() if path is not None and path.is_file() else NONE
        if path is None or text.strip() == NONE:
            path = state_dir / FILE
            if not path.exists():
                _make(path)
            text = path.read_bytes()
        key = load_pem_private_key(text, None)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read or made: {error.strerror}.") from error
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{path} is no private key in PEM without a password.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise SettingsError(f"{path} is no key of the curve P-256, which web push asks for.")
    return key


def _make(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    write_whole(draft, text, sync=True)
    try:
        # Two instances start at once in a deploy: the first one's key is everybody's.
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def load_sealing(env: Mapping[str, str], state_dir: Path, subject: str) -> Sealing:
    """`Sealing` with `load_key`'s key; raises as that does."""
    return Sealing(load_key(env, state_dir), subject)
