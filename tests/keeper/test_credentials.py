"""A login becomes two variables at most, and nothing else of the agent's environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.keeper import credentials


@pytest.mark.parametrize("name", credentials.NAMES)
def test_what_is_kept_is_what_comes_back(name: str) -> None:
    assert credentials.parse(credentials.render(name, "sk-ant-x_y=z")) == {name: "sk-ant-x_y=z"}


@pytest.mark.parametrize("secret", ["", " ", "a b", "a\nPATH=/x", "a\0", "ä", "x" * 4097])
def test_what_is_no_secret_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="no secret of the kind"):
        credentials.render("ANTHROPIC_API_KEY", secret)


@given(st.text(max_size=300))
def test_no_text_sets_anything_else(text: str) -> None:
    found = credentials.parse(text + "\nPATH=/evil\nLD_PRELOAD=/x\nANTHROPIC_API_KEYS=y\n")
    assert set(found) <= set(credentials.NAMES)
    assert all(credentials.SECRET.fullmatch(secret) for secret in found.values())


def test_read_where_systemd_says(tmp_path: Path) -> None:
    assert credentials.read({}) == {}
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert credentials.read(env) == {}
    (tmp_path / "login").write_bytes(b"")
    assert credentials.read(env) == {}, "a unit without a login has an empty one"
    (tmp_path / "login").write_bytes(b"\xff\nANTHROPIC_API_KEY=k\n")
    assert credentials.read(env) == {"ANTHROPIC_API_KEY": "k"}
