"""Which users agents may run as, and what becomes of their units."""

from __future__ import annotations

import getpass
from dataclasses import replace
from pathlib import Path

import pytest

from holdoverd.deploy import accounts, layout
from holdoverd.deploy.accounts import User
from holdoverd.deploy.layout import InstallError
from tests.host.machine import SOURCE

ALICE = User("alice", 1001, "/home/alice", 0o700, frozenset({"alice"}))


@pytest.mark.parametrize("name", ["alice", "a", "_x", "Ann.Lee", "web-1", "a" * 32])
def test_users_names_are_accounts(name: str) -> None:
    accounts.check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "-p", ".x", "1st", "a/b", "../root", "a b", "a@b", "$(x)", "a%n", "é", "a\n", "a" * 33],
)
def test_what_is_no_users_name_is_refused_by_its_form(name: str) -> None:
    with pytest.raises(InstallError, match="no user's name"):
        accounts.check_name(name)


def test_the_daemons_user_is_refused() -> None:
    with pytest.raises(InstallError, match="read everybody's sessions"):
        accounts.check_name("holdover")


def test_a_user_with_a_closed_home_needs_no_warning() -> None:
    assert accounts.check_user(ALICE) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"uid": 0}, "is root"),
        ({"mode": None}, "has no home folder"),
        ({"home": "/home/a b"}, "cannot stand in a unit file"),
        ({"home": "/home/%n"}, "cannot stand in a unit file"),
    ],
)
def test_users_that_no_agent_may_run_as(changed: dict[str, object], words: str) -> None:
    with pytest.raises(InstallError, match=words):
        accounts.check_user(replace(ALICE, **changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o711, 0o701])
def test_a_home_that_others_may_enter_is_warned_of(mode: int) -> None:
    (warning,) = accounts.check_user(replace(ALICE, mode=mode))
    assert "chmod 700 /home/alice" in warning


def test_the_admin_doors_group_is_warned_of() -> None:
    (warning,) = accounts.check_user(replace(ALICE, groups=frozenset({"holdover-admin"})))
    assert "admin door" in warning


def test_accounts_are_what_has_a_socket() -> None:
    names = [
        "holdover-agent-bob.socket",
        "holdover-agent-alice.socket",
        "holdover-agent-alice@.service",
        "holdover-agent-a@b.socket",
        "holdover-agent-.socket",
        "holdover-admin.socket",
        "holdover.socket",
    ]
    assert accounts.accounts_of(names) == ["alice", "bob"]


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host's folder of units, and releases whose templates are this tree's."""
    folder = tmp_path / "units"
    folder.mkdir()
    monkeypatch.setattr(layout, "UNITS", folder)
    for name in ("1.0", "2.0"):
        site = tmp_path / name / "lib/python3.11/site-packages/holdoverd"
        site.mkdir(parents=True)
        (site / "units").symlink_to(SOURCE / "units")
    return folder


def test_a_deploy_brings_every_accounts_units_to_its_release(units: Path) -> None:
    me, first, second = getpass.getuser(), units.parent / "1.0", units.parent / "2.0"
    accounts.write_units(first, me, "/home/me")
    accounts.write_units(first, "gone-long-ago", "/home/gone")
    assert accounts.installed() == sorted([me, "gone-long-ago"])

    assert accounts.renew(second)
    text = (units / f"holdover-agent-{me}@.service").read_text()
    assert f"ExecStart={second}/bin/python " in text
    assert f"User={me}\n" in text
    # Whose user is gone starts nothing any more, and is nobody's reason to fail.
    assert f"{first}/" in (units / "holdover-agent-gone-long-ago@.service").read_text()
    assert not accounts.renew(second), "nothing is left to do"
