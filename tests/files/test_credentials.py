"""The keys to storage: from a file, never shown."""

from pathlib import Path

import pytest

from holdoverd.errors import SettingsError
from holdoverd.settings import load
from holdoverd.storage.client import Store
from holdoverd.storage.credentials import Credentials, load_credentials

GOOD = '{"access_key": "a", "secret_key": "s3cret"}'


def test_file_named_by_the_environment_wins_over_systemds_folder(tmp_path: Path) -> None:
    (tmp_path / "storage").write_text('{"access_key": "x", "secret_key": "y"}')
    named = tmp_path / "mine.json"
    named.write_text(GOOD)
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert load_credentials(env) == Credentials("x", "y")
    env["HOLDOVER_STORAGE_CREDENTIALS"] = str(named)
    assert load_credentials(env) == Credentials("a", "s3cret")


def test_without_any_there_is_no_store(tmp_path: Path) -> None:
    assert load_credentials({}) is None
    assert load_credentials({"CREDENTIALS_DIRECTORY": str(tmp_path)}) is None
    settings = load([], {"HOLDOVER_STORAGE_ENDPOINT": "http://127.0.0.1:1"}).storage
    assert Store.open(settings, None, None) is None
    assert (
        Store.open(load([], {"HOLDOVER_STORAGE_ENDPOINT": ""}).storage, Credentials("a", "b"), None)
        is None
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"access_key": "a"}',
        '{"access_key": "a", "secret_key": 5}',
        "s3cret",
    ],
)
def test_mistake_names_the_file_and_nothing_of_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "storage"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_credentials({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert str(file) in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_missing_file_that_was_named_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_credentials({"HOLDOVER_STORAGE_CREDENTIALS": str(tmp_path / "none")})


def test_variable_that_names_the_file_is_no_setting() -> None:
    assert load([], {"HOLDOVER_STORAGE_CREDENTIALS": "/x"}).storage.bucket == "holdover"
