"""Items of reporting guidelines, and what of them a subject's records answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from cxrbench.leaderboard.report.subject import Subject

State = Literal["filled", "in part", "open"]
LETTERS = "abcdefgh"
Facts = Callable[[Subject], list[str]]


@dataclass(frozen=True)
class Item:
    """One item, or one lettered part of an item.

    ask: the question to the authors where no record answers. facts: what records say of it. rest: what they
    leave to the authors even then; empty where they answer the whole.
    """

    number: str
    topic: str
    ask: str
    facts: tuple[Facts, ...] = ()
    rest: str = ""


@dataclass(frozen=True)
class Answer:
    """An item as it stands in a checklist."""

    item: Item
    said: list[str]

    @property
    def state(self) -> State:
        """Whether records answer all of it, something of it, or nothing."""
        if not self.said:
            return "open"
        return "in part" if self.item.rest else "filled"

    @property
    def number(self) -> str:
        """The item's number without the letter of a part."""
        return self.item.number.rstrip(LETTERS)

    @property
    def question(self) -> str:
        """What the authors have to say; empty where records say it all."""
        return {"open": self.item.ask, "in part": self.item.rest, "filled": ""}[self.state]


@dataclass(frozen=True)
class Guideline:
    """A reporting guideline: its items, grouped by section."""

    name: str
    source: str
    sections: dict[str, Sequence[Item]]

    def answers(self, subject: Subject) -> dict[str, list[Answer]]:
        """Every item with what the subject's records say, by section."""
        return {
            section: [Answer(item, [t for facts in item.facts for t in facts(subject)]) for item in items]
            for section, items in self.sections.items()
        }  # fmt: skip


@dataclass(frozen=True)
class Count:
    """How many items there are by state; `parts` and `parts_filled` count lettered parts by themselves."""

    filled: int
    in_part: int
    open: int
    parts: int
    parts_filled: int

    @property
    def items(self) -> int:
        """All items."""
        return self.filled + self.in_part + self.open


def count(answers: dict[str, list[Answer]]) -> Count:
    """Items by state; an item of several parts is filled when all are, and open when all are."""
    every = [answer for section in answers.values() for answer in section]
    states: list[State] = []
    for _, parts in groupby(every, key=lambda answer: answer.number):
        found = {answer.state for answer in parts}
        states.append(found.pop() if len(found) == 1 else "in part")
    return Count(
        states.count("filled"),
        states.count("in part"),
        states.count("open"),
        len(every),
        sum(answer.state == "filled" for answer in every),
    )
