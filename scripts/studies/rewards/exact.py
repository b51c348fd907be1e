"""The whole answer, or nothing."""

from __future__ import annotations


def exact(completion: str, answer: str) -> float:
    """1.0 where the completion is the answer, else 0.0."""
    return float(completion.strip() == answer)
