"""The web client's rules, by the tests that lie beside them; and what the client weighs."""

import gzip
import re

import pytest

from holdoverd.web.assets import STATIC
from tests.needs import needs_browser, needs_node, webclient


@needs_node
@pytest.mark.slow
def test_types_and_rules() -> None:
    webclient.test(webclient.SOURCE)


@needs_browser
def test_what_is_loaded_first_is_small() -> None:
    """At most 120 KiB of JavaScript, compressed, before anything is shown."""
    first = re.findall(r'/assets/([^"]+\.js)"', (STATIC / "index.html").read_text())
    assert first
    sizes = [len(gzip.compress((STATIC / "assets" / name).read_bytes(), 9)) for name in first]
    assert sum(sizes) <= 120 * 1024


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("v20.19.0\n", True),
        ("v22.12.1", True),
        ("v18.20.4", False),
        ("v20.18.3", False),
        ("", False),
    ],
)
def test_a_node_that_is_too_old_is_not_taken(version: str, fits: bool) -> None:
    assert webclient.fits(version) == fits


def test_what_was_built_from_other_sources_is_not_current(tmp_path: webclient.Path) -> None:
    client, static = tmp_path / "client", tmp_path / "static"
    (client / "node_modules").mkdir(parents=True)
    (client / "a.ts").write_text("1")
    static.mkdir()
    assert not webclient.is_current(static, client)
    (static / webclient.BUILT_FROM).write_text(webclient.digest(client) + "\n")
    (client / "node_modules/b.js").write_text("no source")
    assert webclient.is_current(static, client)
    (client / "a.ts").write_text("2")
    assert not webclient.is_current(static, client)
