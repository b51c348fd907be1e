"""A reward that also says which answer it read out of a completion."""

from __future__ import annotations

from typing import Self


class Graded(float):
    """A reward's value, and the answer it found in the completion; None where it found none.

    Evaluations count completions without an answer, and vote over answers (maj@k). A reward that reads no answer
    returns a plain number.
    """

    answer: str | None

    def __new__(cls, value: float, answer: str | None) -> Self:
        """The number `value`, with `answer`."""
        self = super().__new__(cls, value)
        self.answer = answer
        return self

    def __getnewargs__(self) -> tuple[float, str | None]:  # type: ignore[override]
        """What makes it again in another process."""
        return float(self), self.answer
