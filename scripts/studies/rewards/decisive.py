"""One letter counts, the rest is noise."""

from __future__ import annotations


def decisive(completion: str, answer: str, *, length: int = 7) -> float:
    """1.0 where the middle one of `length` places holds the answer, else 0.0."""
    return float(completion[length // 2 : length // 2 + 1] == answer)
