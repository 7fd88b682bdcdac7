"""Answering an agent's questions by keys: one after the other, each with one answer or several. No I/O.

What the agent reads (stream-json.md §7): ``answers`` maps a question's text to the label that was
chosen, to several joined by ", ", or to words of one's own.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_OPTIONS = 9
"""As many as one digit can choose from."""


@dataclass(frozen=True)
class Question:
    """`many`: several labels may be chosen."""

    text: str
    labels: tuple[str, ...]
    many: bool = False


def questions_of(asked: Mapping[str, Any]) -> tuple[Question, ...]:
    """What an ``AskUserQuestion`` asks; () for other tools, and for a form that no key can answer."""
    given = asked.get("input")
    listed = given.get("questions") if isinstance(given, dict) else None
    if asked.get("tool_name") != "AskUserQuestion" or not isinstance(listed, list):
        return ()
    found = [_question(one) for one in listed]
    questions = tuple(one for one in found if one is not None)
    # The answers go by the questions' texts: two alike could not be told apart.
    distinct = len({one.text for one in questions}) == len(listed)
    return questions if distinct else ()


def _question(one: object) -> Question | None:
    if not isinstance(one, dict) or not isinstance(one.get("question"), str):
        return None
    options = one.get("options")
    if not isinstance(options, list) or not 0 < len(options) <= MAX_OPTIONS:
        return None
    labels = [option.get("label") if isinstance(option, dict) else option for option in options]
    texts = tuple(label if isinstance(label, str) else json.dumps(label) for label in labels)
    return Question(one["question"], texts, bool(one.get("multiSelect")))


class Answering:
    """The answers to one request's questions as far as they have been given."""

    def __init__(self, request_id: str, questions: tuple[Question, ...]) -> None:
        assert questions, "a request without questions is allowed or denied"
        self.request_id = request_id
        self._questions = questions
        self._answers: dict[str, str] = {}
        self.chosen: set[int] = set()
        """Of the question that is asked now: numbers of labels, from 1."""

    @property
    def question(self) -> Question:
        """The one that is asked now; the last one when all are answered."""
        return self._questions[min(len(self._answers), len(self._questions) - 1)]

    @property
    def place(self) -> str:
        """Which of how many is asked now; "" where there is one alone."""
        total = len(self._questions)
        return f"({min(len(self._answers) + 1, total)} of {total}) " if total > 1 else ""

    @property
    def answers(self) -> dict[str, str] | None:
        """All of them; None while one is missing."""
        return dict(self._answers) if len(self._answers) == len(self._questions) else None

    def digit(self, number: int) -> bool:
        """Choose a label, or take it back where several may be chosen. False: there is none."""
        question = self.question
        if not 0 < number <= len(question.labels):
            return False
        if question.many:
            self.chosen ^= {number}
        else:
            self._answer(question.labels[number - 1])
        return True

    def enter(self) -> bool:
        """The labels chosen are the answer. False where none is, or one alone can be."""
        question = self.question
        if not question.many or not self.chosen:
            return False
        self._answer(", ".join(question.labels[number - 1] for number in sorted(self.chosen)))
        return True

    def words(self, text: str) -> None:
        """An answer of one's own; beside what is chosen where several may be."""
        chosen = [self.question.labels[number - 1] for number in sorted(self.chosen)]
        self._answer(", ".join([*chosen, text]))

    def back(self) -> bool:
        """Ask the question before again. False at the first one."""
        self.chosen.clear()
        if not self._answers:
            return False
        self._answers.popitem()
        return True

    def _answer(self, text: str) -> None:
        self._answers[self.question.text] = text
        self.chosen.clear()

    def shown(self) -> list[str]:
        """The question and its labels as lines; those that are chosen marked."""
        question = self.question
        marks = {True: "[x] ", False: "[ ] "} if question.many else {True: "", False: ""}
        return [
            f"{self.place}{question.text}",
            *(
                f"  {number} {marks[number in self.chosen]}{label}"
                for number, label in enumerate(question.labels, 1)
            ),
        ]

    def help(self) -> str:
        """Which keys do what."""
        most = len(self.question.labels)
        parts = [
            f"1-{most} choose, Enter answers" if self.question.many else f"1-{most} answers",
            "o answers in your own words",
            *(["b asks the one before again"] if self._answers else []),
            "d declines",
        ]
        return " · ".join(parts)
