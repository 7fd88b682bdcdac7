"""Instances in the catalogue: which generations run where, as they say themselves."""

from dataclasses import astuple, dataclass, fields
from typing import Literal

from sqlalchemy import Connection

from holdoverd.catalogue.schema import instances
from holdoverd.catalogue.statements import upserting


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """One instance. `since_at`: when it came to `state`, in ms. A row may outlive its process."""

    host: str
    generation: int
    release: str
    state: Literal["candidate", "serving", "draining"]
    since_at: int
    pid: int


_NAMES = tuple(field.name for field in fields(InstanceRow))
_UPSERT = upserting(instances, _NAMES)


def upsert_instance(cx: Connection, row: InstanceRow) -> None:
    """Store an instance's row, new or changed."""
    _UPSERT.change(cx, astuple(row))
