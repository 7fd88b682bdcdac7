"""Tokens, owners and instances."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from holdoverd.callers import Caller
from holdoverd.catalogue import instances, schema, tokens
from holdoverd.catalogue.instances import InstanceRow
from holdoverd.errors import Conflict


def make(cx: Connection, owner: str = "ann", **given: object) -> tuple[str, tokens.TokenRow]:
    tokens.ensure_owner(cx, owner, account=None, default_account="holdover-agent", now=1)
    token = tokens.new_token()
    asked = {"name": "laptop", "scopes": ["read"], "now": 10, **given}
    return token, tokens.create_token(cx, token, owner=owner, **asked)  # type: ignore[arg-type]


def test_a_token_is_random_and_recognisable() -> None:
    made = {tokens.new_token() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"hold_[A-Za-z0-9_-]{43}", token) for token in made)


def test_a_token_tells_who_calls(cx: Connection) -> None:
    token, row = make(cx, scopes=["sessions", "read", "read"])
    caller = tokens.authenticate(cx, token, now=11)
    expected = Caller("ann", "holdover-agent", frozenset({"read", "sessions"}), row.id, False)
    assert caller == expected
    assert row.scopes == ("read", "sessions")


def test_the_scope_admin_makes_an_admin(cx: Connection) -> None:
    token, _ = make(cx, scopes=["admin"])
    caller = tokens.authenticate(cx, token, now=11)
    assert caller is not None
    assert caller.admin


def test_nothing_stored_can_be_used_as_a_token(cx: Connection) -> None:
    token, _ = make(cx)
    stored = cx.execute(select(schema.tokens)).one()
    assert not any(token in str(value) or token[5:] in str(value) for value in stored)
    assert tokens.authenticate(cx, stored.digest, now=11) is None


@pytest.mark.parametrize("wrong", ["", "hold_", "x" * 48, "hold_\ud800", "hold_é\x00", "a" * 10**6])
def test_what_is_no_token_is_nobody(cx: Connection, wrong: str) -> None:
    make(cx)
    assert tokens.authenticate(cx, wrong, now=11) is None


def test_a_token_ends_when_it_expires_or_is_revoked(cx: Connection) -> None:
    token, row = make(cx, expires_at=20)
    assert tokens.authenticate(cx, token, now=19) is not None
    assert tokens.authenticate(cx, token, now=20) is None
    assert tokens.revoke_token(cx, row.id)
    assert tokens.authenticate(cx, token, now=19) is None
    assert not tokens.revoke_token(cx, row.id)


def test_owners_see_and_revoke_their_own_tokens(cx: Connection) -> None:
    _, of_ann = make(cx, "ann", now=1)
    _, of_bob = make(cx, "bob", now=2)
    assert tokens.list_tokens(cx) == [of_bob, of_ann]
    assert tokens.list_tokens(cx, "ann") == [of_ann]
    assert not tokens.revoke_token(cx, of_bob.id, owner="ann")
    assert tokens.list_tokens(cx, "bob") == [of_bob]


def test_an_owner_keeps_the_account_it_was_made_with(cx: Connection) -> None:
    def bound(account: str | None) -> str:
        return tokens.ensure_owner(cx, "ann", account=account, default_account="d", now=1)

    assert tokens.owner_account(cx, "ann") is None
    assert bound("alice") == "alice"
    assert bound(None) == "alice"
    assert bound("alice") == "alice"
    with pytest.raises(Conflict, match=r"'ann' is bound to the account 'alice'.*'bob'"):
        bound("bob")
    assert tokens.owner_account(cx, "ann") == "alice"


def test_a_token_needs_an_owner(cx: Connection) -> None:
    with pytest.raises(IntegrityError):
        tokens.create_token(cx, "t", name="n", owner="nobody", scopes=[], now=1)


def stored(cx: Connection) -> list[InstanceRow]:
    names = [field.name for field in fields(InstanceRow)]
    table = schema.instances
    query = select(*(table.c[name] for name in names)).order_by(table.c.host, table.c.generation)
    return [InstanceRow(*row) for row in cx.execute(query)]


def test_instances_say_how_they_are(cx: Connection) -> None:
    first = InstanceRow("alpha", 1, "0.1.0", "serving", 5, 100)
    second = InstanceRow("alpha", 2, "0.2.0", "candidate", 6, 101)
    other = InstanceRow("beta", 1, "0.1.0", "draining", 7, 102)
    for row in (other, second, first):
        instances.upsert_instance(cx, row)
    assert stored(cx) == [first, second, other]
    changed = InstanceRow("alpha", 1, "0.1.1", "draining", 8, 200)
    instances.upsert_instance(cx, changed)
    assert stored(cx) == [changed, second, other]
