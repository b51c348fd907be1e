"""Shaping that cannot change which policy is best (Ng, Harada and Russell, ICML 1999, theorem 1)."""

from __future__ import annotations

from collections.abc import Sequence


def potential_based(potentials: Sequence[float], discount: float) -> list[float]:
    """F_t = discount potentials[t+1] - potentials[t] for each step of an episode; after its end the potential is 0.

    Their discounted sum is -potentials[0] for every episode, however long: a constant of where it starts. That holds
    only with 0 at the end, also of an episode that was cut off (Grzes, AAMAS 2017).
    """
    after = [*potentials[1:], 0.0] if potentials else []
    return [discount * later - now for now, later in zip(potentials, after, strict=True)]
