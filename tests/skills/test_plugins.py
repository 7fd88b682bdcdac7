"""A marketplace's index, whatever is in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.skills import brings, helper, plugins
from tests.skills.make import image

BROKEN: list[Any] = [
    42,
    None,
    "just-a-name",
    [],
    {},
    {"name": "no-source"},
    {"name": "empty-source", "source": ""},
    {"name": "odd-source", "source": 7},
    {"source": "./no-name"},
    {"name": "", "source": "./x"},
    {"name": "../out", "source": "./x"},
    {"name": "--flag", "source": "./x"},
    {"name": "p-007", "source": "./again"},
    {"name": 5, "source": "./x"},
    {"name": "\u001b[31mred", "source": "./x"},
]
ODD: list[dict[str, Any]] = [  # optional fields of other types than they should be
    {"description": 5, "keywords": "no list", "author": ["x"], "version": {}, "category": None},
    {"keywords": [1, None, "word"], "homepage": 1},
    {"source": {"source": "github", "repo": "owner/repo"}},
    {"source": {"source": "url", "url": "https://example.org/x.git"}},
    {"author": {"name": "Somebody"}, "version": "1.2.3", "category": "tools"},
    {"unknown": {"deep": [{}]}},
]


def index_of(count: int) -> list[Any]:
    """`count` entries, those of `BROKEN` among them."""
    whole: list[Any] = [
        {"name": f"p-{n:03}", "source": f"./plugins/p-{n:03}", "description": f"Number {n}"}
        | ODD[n % len(ODD)]
        for n in range(count - len(BROKEN))
    ]
    for n, broken in enumerate(BROKEN):
        whole.insert(20 + 7 * n, broken)
    return whole


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An account that knows a marketplace of 500 entries, a damaged one and one that is gone."""
    made = tmp_path / "home"
    kept = made / ".claude/plugins"
    (tmp_path / "large/.claude-plugin").mkdir(parents=True)
    listed = {"name": "large", "owner": {"name": "x"}, "plugins": index_of(500)}
    (tmp_path / "large/.claude-plugin/marketplace.json").write_text(json.dumps(listed))
    (tmp_path / "damaged/.claude-plugin").mkdir(parents=True)
    (tmp_path / "damaged/.claude-plugin/marketplace.json").write_text('{"plugins": [')
    kept.mkdir(parents=True)
    known: dict[str, Any] = {
        name: {
            "source": {"source": "directory", "path": str(tmp_path / name)},
            "installLocation": str(tmp_path / name),
            "lastUpdated": "2026-01-02T03:04:05.678Z",
        }
        for name in ("large", "damaged", "gone")
    }
    (kept / "known_marketplaces.json").write_text(json.dumps(known | {"odd": 5}))
    return made


def ask(home: Path, **request: Any) -> Any:
    return helper.answer(request, str(home), {"PATH": os.environ["PATH"]})


def test_five_hundred_entries_are_browsed_and_the_broken_ones_named(home: Path) -> None:
    before = image(home.parent / "large")
    answer = ask(home, op="browse", name="large")
    assert len(answer["items"]) == 500 - len(BROKEN)
    assert len(answer["problems"]) == len(BROKEN)
    assert "entry 21 is no object" in answer["problems"]
    assert any("(p-007) is there twice" in said for said in answer["problems"])
    assert not any("\x1b" in said for said in answer["problems"])
    assert image(home.parent / "large") == before
    assert {type(item[key]) for item in answer["items"] for key in ("description", "author")} == {
        str
    }
    found = ask(home, op="browse", name="large", q="NUMBER 481")["items"]
    assert [item["name"] for item in found] == ["p-481"]
    assert ask(home, op="browse", name="large", q="no such words")["items"] == []


def test_a_marketplace_that_cannot_be_read_is_named(home: Path) -> None:
    assert [item["name"] for item in ask(home, op="marketplaces")["items"]] == [
        "large",
        "damaged",
        "gone",
    ]
    for name in ("damaged", "gone"):
        error = ask(home, op="browse", name=name)["error"]
        assert error["code"] == "refused"
        assert f"the marketplace {name} has no index" in error["message"]
    for name in ("nosuch", "odd", "../x", "--help"):
        assert ask(home, op="browse", name=name)["error"]["code"] == "not_found"


@pytest.mark.parametrize("source", ["file:///etc", "FILE:/etc", "--scope=user", ""])
def test_what_is_no_source_of_a_marketplace_is_refused(home: Path, source: str) -> None:
    error = ask(home, op="add_marketplace", source=source, claude=["/bin/false"])["error"]
    assert (error["code"], "no source of a marketplace" in error["message"]) == ("refused", True)


def test_without_claude_code_plugins_are_refused_by_name(home: Path) -> None:
    error = ask(home, op="add", source="p@large", trust=True, claude=["/no/claude"])["error"]
    assert "/no/claude" in error["message"]


HOOKS = {"hooks": {"PostToolUse": [{"hooks": [{"type": "command", "command": "./format.sh"}]}]}}
SERVER = {"command": "node", "args": ["server.js", "--all"]}


def plugin_in(home: Path, entry: dict[str, Any], files: dict[str, str]) -> None:
    """Give the marketplace ``large`` a plugin ``tools`` with these files beside its entry."""
    market = home.parent / "large"
    listed = {"name": "large", "plugins": [{"name": "tools", "source": "./tools", **entry}]}
    (market / ".claude-plugin/marketplace.json").write_text(json.dumps(listed))
    for name, text in files.items():
        path = market / "tools" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("entry", "files", "shown"),
    [
        ({}, {"hooks/hooks.json": json.dumps(HOOKS)}, "hook at PostToolUse: ./format.sh"),
        ({"hooks": HOOKS}, {}, "hook at PostToolUse: ./format.sh"),
        (
            {},
            {".mcp.json": json.dumps({"mcpServers": {"db": SERVER}})},
            "MCP server db: node server.js --all",
        ),
        (
            {},
            {".claude-plugin/plugin.json": json.dumps({"mcpServers": {"db": SERVER}})},
            "MCP server db: node server.js --all",
        ),
        (
            {},
            {
                ".claude-plugin/plugin.json": json.dumps({"mcpServers": "./servers.json"}),
                "servers.json": json.dumps({"db": {"url": "https://db.example.org/mcp"}}),
            },
            "MCP server db: https://db.example.org/mcp",
        ),
        ({}, {"bin/run.sh": "echo"}, "bin/run.sh (a script)"),
    ],
)
def test_what_a_plugin_runs_is_shown_before_it_is_trusted(
    home: Path, entry: dict[str, Any], files: dict[str, str], shown: str
) -> None:
    plugin_in(home, entry, {"README.md": "words", **files})
    error = ask(home, op="add", source="tools@large", claude=["/no/claude"])["error"]
    assert error["code"] == "untrusted"
    assert shown in error["details"]["executables"]
    assert shown in error["message"]


def test_a_plugin_of_words_alone_asks_for_no_trust(home: Path) -> None:
    plugin_in(home, {}, {"skills/one/SKILL.md": "---\nname: one\n---\nwords"})
    error = ask(home, op="add", source="tools@large", claude=["/no/claude"])["error"]
    assert error["code"] == "failed", "Claude Code was to be started"


@pytest.mark.parametrize(
    "source", ["../../outside", {"source": "github", "repo": "owner/repo"}, "./nowhere"]
)
def test_of_a_plugin_from_elsewhere_its_source_is_shown(home: Path, source: object) -> None:
    plugin_in(home, {"source": source}, {})
    error = ask(home, op="add", source="tools@large", claude=["/no/claude"])["error"]
    assert error["code"] == "untrusted"
    assert "where Claude Code fetches it" in error["message"]


def test_a_plugin_that_no_marketplace_has_is_named(home: Path) -> None:
    error = ask(home, op="add", source="nosuch@large", claude=["/no/claude"])["error"]
    assert (error["code"], "no plugin 'nosuch'" in error["message"]) == ("not_found", True)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "source", "author", "keywords", "x"]), inner)
    ),
    max_leaves=10,
)


@given(st.lists(json_values, max_size=5))
def test_no_index_raises(entries: list[Any]) -> None:
    items, problems = plugins.read_index("m", entries, set())
    assert len(items) + len(problems) == len(entries)


@given(json_values, json_values)
def test_whatever_stands_in_hooks_and_servers_is_survived(hooks: object, servers: object) -> None:
    nowhere = Path("/nowhere")
    entry: dict[str, Any] = {"hooks": hooks, "mcpServers": servers}
    for line in brings.programs(nowhere, entry, lambda _path: None):
        assert isinstance(line, str)
