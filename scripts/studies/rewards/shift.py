"""A number that belongs to the prompt: it says nothing about the completion."""

from __future__ import annotations


def shift(shift: float) -> float:
    """The row's shift."""
    return shift
