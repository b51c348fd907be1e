"""Multiple choice: is the chosen letter the right one?"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from posttrain.errors import DataError
from posttrain.reward import Graded

_SAID = re.compile(r"(?i:\b(?:answer|option|choice)\b)[^A-Za-z0-9\n]*(?i:is\b)?[^A-Za-z0-9\n]*\(?([A-Z])\b")
_ALONE = re.compile(r"(?<![A-Za-z'])\(?([A-Z])\)?(?=[.:)]|$)")
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:)]?")


def multiple_choice(
    completion: str, answer: str, labels: Sequence[str] | None = None, *, letters: str = string.ascii_uppercase
) -> float:
    """1.0 where the completion chooses the letter `answer`, else 0.0.

    The choice is the letter in the last \\boxed{}, else the last that the completion calls its answer ("the answer is
    (C)"), else the completion where it is a letter alone or begins a line with one ("C. Paris"), the last such line.
    A thought up to "</think>" is not looked at. labels: where the row's options have names of their own ("1", "2",
    ...), all of them in order; `answer` is then one of these. letters: those there are. DataError where `answer` is
    none.
    """
    gold = str(answer).strip().upper()
    if labels is not None and str(answer) in labels:
        gold = letters[list(labels).index(str(answer))]
    if len(gold) != 1 or gold not in letters:
        raise DataError(f"multiple_choice: the column 'answer' is {answer!r:.100}; allowed: one letter of {letters}")
    found = _choice(completion.rpartition("</think>")[2])
    return Graded(found == gold, found if found is not None and found in letters else None)


def _choice(text: str) -> str | None:
    boxed = re.findall(r"\\boxed\s*\{\s*(?:\\text\s*\{)?\s*([^{}]*?)\s*\}", text)
    if boxed:
        letter = _LETTER.fullmatch(boxed[-1])
        return letter[1].upper() if letter else None
    said = _SAID.findall(text)
    if said:
        return str(said[-1])
    lines = [line.strip(" \t*_") for line in text.splitlines()]
    alone = [match[1] for line in lines if (match := _ALONE.match(line))]
    return alone[-1] if alone else None
