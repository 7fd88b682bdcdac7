"""Keys to answers, and which questions they can answer."""

from typing import Any

import pytest

from holdover.questions import Answering, Question, questions_of

A_B = [{"label": "A"}, {"label": "B"}]


def asked(questions: object, tool: str = "AskUserQuestion") -> dict[str, Any]:
    return {"tool_name": tool, "input": {"questions": questions}}


@pytest.mark.parametrize(
    ("questions", "expected"),
    [
        ([{"question": "Q?", "options": A_B}], (Question("Q?", ("A", "B")),)),
        ([{"question": "Q?", "multiSelect": True, "options": A_B}],
         (Question("Q?", ("A", "B"), many=True),)),
        ([{"question": "Q?", "options": A_B}, {"question": "R?", "options": A_B}],
         (Question("Q?", ("A", "B")), Question("R?", ("A", "B")))),
        ([{"question": "Q?", "options": A_B}] * 2, ()),
        ([{"question": "Q?", "options": []}], ()),
        ([{"question": "Q?", "options": A_B * 5}], ()),
        ([{"question": "Q?", "options": A_B}, None], ()),
        ("x", ()),
        ([], ()),
        ([{"options": A_B}], ()),
        ([{"question": "Q?", "options": [{"label": 3}, "B"]}], (Question("Q?", ("3", "B")),)),
    ],
)  # fmt: skip
def test_questions_with_few_options_are_answered_by_keys(
    questions: object, expected: object
) -> None:
    assert questions_of(asked(questions)) == expected
    assert questions_of(asked(questions, "Bash")) == ()


def test_a_digit_answers_one_of_several_questions_and_the_next_is_asked() -> None:
    answering = Answering("p", (Question("Q?", ("A", "B")), Question("R?", ("C", "D"))))
    assert answering.shown() == ["(1 of 2) Q?", "  1 A", "  2 B"]
    assert not answering.digit(0)
    assert not answering.digit(3)
    assert not answering.enter(), "there is nothing to confirm"
    assert answering.digit(2)
    assert answering.answers is None
    assert answering.shown()[0] == "(2 of 2) R?"
    assert answering.back()
    assert answering.digit(1)
    assert answering.digit(1)
    assert answering.answers == {"Q?": "A", "R?": "C"}
    assert not Answering("p", (Question("Q?", ("A",)),)).back()


def test_several_labels_are_chosen_taken_back_and_confirmed() -> None:
    answering = Answering("p", (Question("Q?", ("A", "B", "C"), many=True),))
    assert not answering.enter(), "nothing is chosen"
    for number in (3, 2, 1, 2):
        assert answering.digit(number)
    assert answering.shown() == ["Q?", "  1 [x] A", "  2 [ ] B", "  3 [x] C"]
    assert answering.answers is None
    assert answering.enter()
    assert answering.answers == {"Q?": "A, C"}


def test_words_of_ones_own_stand_beside_what_is_chosen() -> None:
    one = Answering("p", (Question("Q?", ("A", "B")),))
    one.words("neither")
    assert one.answers == {"Q?": "neither"}
    several = Answering("p", (Question("Q?", ("A", "B"), many=True),))
    several.digit(2)
    several.words("and more")
    assert several.answers == {"Q?": "B, and more"}


def test_the_keys_that_are_named_are_those_that_do_something() -> None:
    answering = Answering("p", (Question("Q?", ("A", "B")), Question("R?", ("C",), many=True)))
    assert answering.help() == "1-2 answers · o answers in your own words · d declines"
    answering.digit(1)
    assert answering.help().startswith("1-1 choose, Enter answers · o ")
    assert "b asks the one before again" in answering.help()
