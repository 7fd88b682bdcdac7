"""Front matter, names, and which skill of a name an agent loads. The real agent is asked in
tests/claude/test_skills.py."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdoverd.skills import rules
from holdoverd.skills.rules import Found, decide, parse_front_matter, project_folders, read_skill


def test_a_skill_by_the_book_has_no_problems() -> None:
    text = (
        "---\nname: pdf-forms\ndescription: >\n  Fill in forms.\n  Use it when\n  forms come.\n"
        'license: "Apache-2.0"\nmetadata:\n  author: me\n  version: "1.0"\n'
        "allowed-tools: Bash(git:*) Read\n---\n# Body\n"
    )
    skill = read_skill("pdf-forms", text)
    assert skill.problems == ()
    assert skill.description == "Fill in forms. Use it when forms come."
    assert skill.fields["metadata"] == {"author": "me", "version": "1.0"}
    assert skill.body == "# Body\n"


@pytest.mark.parametrize(
    ("front", "value"),
    [
        ("d: plain", "plain"),
        ("d: plain # said aside", "plain"),
        ("d: 'it''s'", "it's"),
        (r'd: "a \"b\" \n c"', 'a "b" \n c'),
        ("d: first\n  and second", "first and second"),
        ("d: |\n  one\n  two\n", "one\ntwo"),
        ("d: >-\n  one\n  two\n\n  three", "one two\nthree"),
        ("d: [a, 'b, c', d]", ["a", "b, c", "d"]),
        ("d:\n  - a\n  - b", ["a", "b"]),
        ("d:\n- a\n- b", ["a", "b"]),
        ("d:\n  e: f\n  g: h", {"e": "f", "g": "h"}),
        ("d: true", True),
        ("d:", None),
        ("d: https://example.org/x", "https://example.org/x"),
    ],
)
def test_values_are_read_as_yaml_has_them(front: str, value: object) -> None:
    fields, _, problems = parse_front_matter(f"---\n{front}\n---\n")
    assert (fields["d"], problems) == (value, [])


@pytest.mark.parametrize(
    ("folder", "text", "named"),
    [
        ("x", "no front matter", "no front matter"),
        ("x", "---\nname: x\n", "not ended"),
        ("x", "---\nname: x\n---\n", "no description"),
        ("x", "---\ndescription: y\n---\n", "no name"),
        ("x", "---\nname: y\ndescription: z\n---\n", "calls it 'y'"),
        ("X", "---\nname: X\ndescription: z\n---\n", "may hold only a-z"),
        ("a--b", "---\nname: a--b\ndescription: z\n---\n", "may hold only a-z"),
        ("a" * 65, f"---\nname: {'a' * 65}\ndescription: z\n---\n", "1 to 64"),
        ("x", f"---\nname: x\ndescription: {'z' * 1025}\n---\n", "more than 1024"),
        ("x", "---\nname: x\ndescription: Use when: this\n---\n", "in quotes"),
        ("x", "---\nname: x\ndescription: [unclosed\n---\n", "not closed"),
        ("x", '---\nname: x\ndescription: "unclosed\n---\n', "not closed"),
        ("x", "---\nname: x\nname: x\ndescription: y\n---\n", "twice"),
        ("x", "---\nname: x\ndescription: y\nmetadata: z\n---\n", "no mapping"),
        ("x", "---\nname: x\ndescription: y\n\tz: 1\n---\n", "tab"),
        ("x", "---\nname: x\ndescription: y\njust words\n---\n", "no `key: value`"),
    ],
)
def test_what_is_wrong_is_named(folder: str, text: str, named: str) -> None:
    assert named in " ".join(read_skill(folder, text).problems)


@given(st.text(alphabet=st.sampled_from("---\n: \"'[]{}|>ab#\t\\,")))
def test_no_front_matter_raises(text: str) -> None:
    read_skill("x", f"---\n{text}")


def test_every_collision_is_decided_by_kind_and_then_by_nearness() -> None:
    """All subsets of one name in every place, in every order they may be found in."""
    places = [
        Found("x", "personal", "/h/.claude/skills/x"),
        Found("x", "project", "/p/.claude/skills/x", distance=1),
        Found("x", "project", "/p/q/.claude/skills/x", distance=0),
        Found("x", "nested", "/p/q/r/.claude/skills/x", below="r"),
        Found("x", "plugin", "/plugin/x", plugin="shop"),
    ]
    wins = [0, 2, 1]
    for size in range(1, len(places) + 1):
        for chosen in itertools.permutations(range(len(places)), size):
            decided = {one.path: one for one in decide(places[n] for n in chosen)}
            first = next((n for n in wins if n in chosen), None)
            for n in chosen:
                one = decided[places[n].path]
                if one.kind == "plugin":
                    assert (one.called, one.effective) == ("shop:x", True)
                elif one.kind == "nested":
                    assert one.effective
                    alone = first is None and not any(places[m].kind == "plugin" for m in chosen)
                    assert one.called == ("x" if alone else "r:x")
                else:
                    assert (one.called, one.effective) == ("x", n == first)


def test_of_two_plugins_of_a_name_the_first_is_loaded_and_a_disabled_one_is_not() -> None:
    first, second = (Found("x", "plugin", f"/{n}", distance=n, plugin="p") for n in (0, 1))
    assert [one.effective for one in decide([second, first])] == [True, False]
    off = Found("x", "plugin", "/0", plugin="p", enabled=False)
    assert [one.effective for one in decide([off, second])] == [False, True]


@pytest.mark.parametrize(
    ("cwd", "roots", "folders"),
    [
        ("/d/a/b", [], ["/d/a/b", "/d/a", "/d", "/"]),
        ("/d/a/b", ["/d/a"], ["/d/a/b", "/d/a"]),
        ("/home/me/x/y", [], ["/home/me/x/y", "/home/me/x"]),
        ("/home/me/x/y", ["/home/me/x/y"], ["/home/me/x/y"]),
        ("/home/me", [], []),
        ("/", [], ["/"]),
    ],
)
def test_a_projects_folders_reach_up_to_its_repository_or_the_home(
    cwd: str, roots: list[str], folders: list[str]
) -> None:
    assert project_folders(cwd, "/home/me", roots) == folders


def test_tokens_are_estimated_upwards() -> None:
    assert [rules.tokens(b"x" * n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
