"""From a change of a session to a push service on loopback that decrypts, and what it answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection

from holdoverd.callers import Caller
from holdoverd.catalogue import subscriptions, tokens
from holdoverd.catalogue.store import Catalogue
from holdoverd.errors import Forbidden, NotFound, SettingsError
from holdoverd.ids import now_ms
from holdoverd.push import service as push_service_module
from holdoverd.push.keys import load_key, load_sealing
from holdoverd.push.sealing import Sealing
from holdoverd.push.service import Push
from tests.http.kit import open_doors
from tests.push.loopback import Browser, Service, claims_of, push_service


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with push_service(tmp_path) as service:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        yield service


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    catalogue = Catalogue.open(f"sqlite:///{tmp_path}/catalogue.db")
    yield catalogue
    catalogue.close()


@pytest.fixture
async def caller(catalogue: Catalogue) -> Caller:
    token = tokens.new_token()

    def store(cx: Any) -> tokens.TokenRow:
        tokens.ensure_owner(cx, "alice", account=None, default_account="a", now=1)
        return tokens.create_token(
            cx, token, name="t", owner="alice", scopes=("read",), now=now_ms()
        )

    row = await catalogue.write(store)
    return Caller("alice", "a", frozenset(["read"]), row.id, admin=False)


def view(owner: str = "alice", state: str = "waiting", share: str | None = None) -> dict[str, Any]:
    asked = {"request_id": "p1", "tool_name": "Bash", "title": "Bash: ls"}
    pending = [asked] if state == "waiting" else []
    return {
        "id": "s_1",
        "owner": owner,
        "share": share,
        "title": "Mend",
        "state": state,
        "pending": pending,
        "error": None,
    }


KEY = ec.generate_private_key(ec.SECP256R1())


def sealing_of(key: ec.EllipticCurvePrivateKey) -> Callable[[], Sealing]:
    return lambda: Sealing(key, "https://holdover.example")


async def test_a_browser_reads_what_its_owner_is_told_and_the_service_does_not(
    catalogue: Catalogue, caller: Caller, remote: Service
) -> None:
    push = Push(catalogue, sealing_of(KEY), hosts=["127.0.0.1"])
    mine, others = Browser(), Browser(auth=b"another browser!")
    await push.subscribe(caller, remote.endpoint("mine"), **mine.keys())
    # Of another host's key, as a second host of one catalogue would have it.
    elsewhere = Push(catalogue, sealing_of(ec.generate_private_key(ec.SECP256R1())))
    await elsewhere.subscribe(caller, remote.endpoint("others"), **others.keys())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(push.run)
        push.levels_changed("working", frozenset(), view("bob"))
        push.levels_changed("working", frozenset(), view())
        push.levels_changed("waiting", frozenset(["p1"]), view(state="idle"))
        came = await trio.to_thread.run_sync(remote.wait, 2)
        nursery.cancel_scope.cancel()
    assert [path for path, _, _ in came] == ["/mine", "/mine"]
    read = [json.loads(mine.open(body)) for _, _, body in came]
    assert {message["kind"] for message in read} == {"waiting", "finished"}
    waiting = next(message for message in read if message["kind"] == "waiting")
    assert waiting == {
        "kind": "waiting",
        "session": "s_1",
        "request": "p1",
        "title": "Mend",
        "text": "Bash: ls",
    }
    headers = came[0][1]
    assert (headers["Content-Encoding"], headers["Urgency"]) == ("aes128gcm", "high")
    claims = claims_of(headers["Authorization"])
    assert claims["aud"] == f"https://127.0.0.1:{remote.port}"
    assert claims["key"] == await push.public_key()
    assert all(b"Mend" not in body for _, _, body in came)


@pytest.mark.parametrize("share", [None, "read", "write"])
async def test_who_may_answer_in_what_is_shared_is_told_where_they_asked_for_it(
    catalogue: Catalogue, caller: Caller, share: str | None
) -> None:
    push = Push(catalogue, sealing_of(KEY))

    async def subscribed(name: str, scopes: tuple[str, ...], *, shared: bool) -> None:
        def store(cx: Connection) -> tokens.TokenRow:
            tokens.ensure_owner(cx, name, account=None, default_account="a", now=1)
            return tokens.create_token(
                cx, tokens.new_token(), name="t", owner=name, scopes=scopes, now=now_ms()
            )

        row = await catalogue.write(store)
        one = Caller(name, "a", frozenset(scopes), row.id, admin="admin" in scopes)
        address = f"https://push.example/{name}"
        await push.subscribe(one, address, **Browser().keys(), shared=shared)

    await push.subscribe(caller, "https://push.example/alice", **Browser().keys())
    await subscribed("bob", ("read", "sessions"), shared=True)
    await subscribed("root", ("admin",), shared=True)
    await subscribed("carol", ("read", "sessions"), shared=False)
    await subscribed("dave", ("files", "read"), shared=True)
    key = await push.public_key()
    told = await catalogue.read(
        lambda cx: subscriptions.of(cx, "alice", key, now_ms(), shared=share == "write")
    )
    expected = {"alice", "bob", "root"} if share == "write" else {"alice"}
    assert {row.owner for row in told} == expected


@pytest.mark.parametrize("status", [404, 410])
async def test_what_a_service_has_forgotten_is_removed(
    catalogue: Catalogue, caller: Caller, remote: Service, status: int
) -> None:
    push = Push(catalogue, sealing_of(KEY), hosts=["127.0.0.1"])
    made = await push.subscribe(caller, remote.endpoint("x"), **Browser().keys())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(push.run)
        remote.status = 500
        push.levels_changed("working", frozenset(), view())
        await trio.to_thread.run_sync(remote.wait, 1)
        remote.status = status
        push.levels_changed("working", frozenset(), view())
        await trio.to_thread.run_sync(remote.wait, 2)
        with trio.fail_after(30):
            while await known(catalogue, push):
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    with pytest.raises(NotFound):
        await push.unsubscribe(caller, made)


async def known(catalogue: Catalogue, push: Push) -> list[subscriptions.Subscription]:
    key = await push.public_key()
    return await catalogue.read(lambda cx: subscriptions.of(cx, "alice", key, now_ms()))


async def test_nothing_is_sent_to_hosts_that_are_not_public(
    catalogue: Catalogue, caller: Caller, remote: Service, caplog: pytest.LogCaptureFixture
) -> None:
    push = Push(catalogue, sealing_of(KEY))
    await push.subscribe(caller, remote.endpoint("x"), **Browser().keys())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(push.run)
        push.levels_changed("working", frozenset(), view())
        with trio.fail_after(30):
            while "not on the public internet" not in caplog.text:
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert remote.came == []


async def test_a_subscription_ends_with_its_token_and_belongs_to_its_owner(
    catalogue: Catalogue, caller: Caller
) -> None:
    push = Push(catalogue, sealing_of(KEY))
    first = await push.subscribe(caller, "https://push.example/1", **Browser().keys())
    again = await push.subscribe(caller, "https://push.example/1", **Browser().keys())
    assert [row.id for row in await known(catalogue, push)] == [again]
    assert first != again
    with pytest.raises(NotFound):
        await push.unsubscribe(Caller("bob", "a", frozenset(), "t_2", admin=False), again)
    nobody = Caller("alice", "a", frozenset(), None, admin=True)
    with pytest.raises(Forbidden):
        await push.subscribe(nobody, "https://push.example/2", **Browser().keys())
    await catalogue.write(lambda cx: tokens.revoke_token(cx, str(caller.token_id)))
    assert await known(catalogue, push) == []


async def test_more_than_fits_is_dropped_and_nobody_waits(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(push_service_module, "MAX_WAITING", 3)
    push = Push(catalogue, sealing_of(KEY))
    for _ in range(5):
        push.levels_changed("working", frozenset(), view())
    assert caplog.text.count("a message is dropped") == 2


def test_a_key_is_made_once_and_a_credential_goes_before_it(tmp_path: Path) -> None:
    own = load_key({}, tmp_path)
    path = tmp_path / "push-key.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key({}, tmp_path).private_numbers() == own.private_numbers()
    (tmp_path / "credentials").mkdir()
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    assert load_key(env, tmp_path).private_numbers() == own.private_numbers()
    (tmp_path / "credentials/push").write_text("none\n")
    assert load_key(env, tmp_path).private_numbers() == own.private_numbers()
    (tmp_path / "credentials/push").write_text("anything\n")
    with pytest.raises(SettingsError, match="no private key in PEM"):
        load_key(env, tmp_path)
    (tmp_path / "credentials/push").write_bytes(path.read_bytes())
    assert load_key(env, tmp_path / "elsewhere").private_numbers() == own.private_numbers()


async def test_the_doors_take_and_end_a_subscription(catalogue: Catalogue) -> None:
    push = Push(catalogue, sealing_of(KEY))
    async with open_doors(catalogue, push=push) as doors:
        secret, _ = await doors.token("alice", ("read",))
        headers = {"Authorization": f"Bearer {secret}"}
        assert (await doors.ask("GET", "/v1/push")).status == 401
        answer = await doors.ask("GET", "/v1/push", **headers)
        assert answer.json() == {"public_key": await push.public_key()}
        body: dict[str, Any] = {"endpoint": "https://push.example/1", "keys": Browser().keys()}
        body["shared"] = True
        made = await doors.ask("POST", "/v1/push", body, **headers)
        assert made.status == 201
        assert [(row.id, row.shared) for row in await known(catalogue, push)] == [
            (made.json()["id"], True)
        ]
        for status, wrong in (
            (400, {}),
            (400, {**body, "keys": {}}),
            (400, {**body, "shared": "yes"}),
            (422, {**body, "endpoint": "http://push.example/1"}),
        ):
            assert (await doors.ask("POST", "/v1/push", wrong, **headers)).status == status
        assert (await doors.admin("POST", "/v1/push", body)).status == 403
        path = f"/v1/push/{made.json()['id']}"
        assert (await doors.ask("DELETE", path, **headers)).status == 204
        assert (await doors.ask("DELETE", path, **headers)).status == 404


async def test_a_key_that_cannot_be_read_costs_push_and_nothing_else(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    (tmp_path / "push").write_text("anything")
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    push = Push(catalogue, partial(load_sealing, env, tmp_path, "mailto:a@b"))
    async with open_doors(catalogue, push=push) as doors:
        secret, _ = await doors.token("alice", ("read",))
        answer = await doors.ask("GET", "/v1/push", Authorization=f"Bearer {secret}")
        assert answer.status == 503
        assert "no private key in PEM" in answer.json()["error"]["message"]


async def test_where_nobody_is_to_be_told_no_key_is_loaded(catalogue: Catalogue) -> None:
    def load() -> Sealing:
        raise AssertionError("nobody has subscribed")

    push = Push(catalogue, load)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(push.run)
        push.levels_changed("working", frozenset(), view())
        await trio.testing.wait_all_tasks_blocked(0.2)
        nursery.cancel_scope.cancel()


def test_a_daemon_starts_without_what_only_push_needs() -> None:
    code = "import sys, holdoverd.main; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


async def test_subscriptions_in_either_database(migrated: str) -> None:
    catalogue = Catalogue.open(migrated)

    def look(cx: Connection) -> None:
        tokens.ensure_owner(cx, "alice", account=None, default_account="a", now=1)
        token = tokens.create_token(
            cx, "hold_x", name="t", owner="alice", scopes=("read",), now=1, expires_at=100
        )
        row = subscriptions.Subscription("n_1", "alice", token.id, "https://p/1", "p", "a", "k")
        subscriptions.put(cx, row, now=1)
        subscriptions.put(cx, row, now=2)
        assert subscriptions.exist(cx)
        assert subscriptions.of(cx, "alice", "k", now=99) == [row]
        assert subscriptions.of(cx, "alice", "k", now=100) == []
        assert subscriptions.of(cx, "alice", "other", now=1) == []
        assert not subscriptions.remove(cx, "n_1", "bob")
        assert subscriptions.remove(cx, "n_1", None)
        assert not subscriptions.exist(cx)

    try:
        await catalogue.write(look)
    finally:
        catalogue.close()
