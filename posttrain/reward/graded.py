"""A reward that says more than its value: which answer it read, what each turn earned, or what it counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self


class Graded(float):
    """A reward's value, the answer it found in the completion (None: it found none), and what each turn earned.

    Evaluations count completions without an answer, and vote over answers (maj@k); a reward that reads no answer
    returns a plain number, or `spread`. turns: one number a turn, which add up to the value; None: the last turn earned
    it all. solved: what counts as the outcome; None: whether the value is the full mark.
    """

    answer: str | None
    turns: tuple[float, ...] | None
    reads_answer: bool
    solved: bool | None

    def __new__(
        cls,
        value: float,
        answer: str | None,
        turns: tuple[float, ...] | None = None,
        reads_answer: bool = True,
        solved: bool | None = None,
    ) -> Self:
        """The number `value`, with `answer`."""
        self = super().__new__(cls, value)
        self.answer, self.turns, self.reads_answer, self.solved = answer, turns, reads_answer, solved
        return self

    @classmethod
    def spread(cls, turns: Iterable[float], solved: bool | None = None) -> Self:
        """The sum of what the turns earned; no answer is read."""
        each = tuple(turns)
        return cls(sum(each), None, each, reads_answer=False, solved=solved)

    def __getnewargs__(  # type: ignore[override]
        self,
    ) -> tuple[float, str | None, tuple[float, ...] | None, bool, bool | None]:
        """What makes it again in another process."""
        return float(self), self.answer, self.turns, self.reads_answer, self.solved


class Measured(float):
    """A reward's value, and counts behind it: what is counted -> (how many hold, of how many).

    Evaluations add them up over all completions and show the share of each.
    """

    counts: Mapping[str, tuple[int, int]]

    def __new__(cls, value: float, counts: Mapping[str, tuple[int, int]]) -> Self:
        """The number `value`, with `counts`."""
        self = super().__new__(cls, value)
        self.counts = counts
        return self

    def __getnewargs__(self) -> tuple[float, Mapping[str, tuple[int, int]]]:  # type: ignore[override]
        """What makes it again in another process."""
        return float(self), self.counts
