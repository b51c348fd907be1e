"""Where the random numbers of a rollout come from: a hash of who draws."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *place: str | int) -> int:
    """A 128-bit seed: BLAKE2b of the run's seed and a place such as (example id, occurrence, sample, attempt, turn).

    It depends on nothing else, so draws are the same however examples are cut into calls and batches.
    """
    return int.from_bytes(hashlib.blake2b(repr((seed, *place)).encode(), digest_size=16).digest(), "big")


def derived_uniform(seed: int, *place: str | int) -> float:
    """A number in [0, 1) from `derived_seed`."""
    return (derived_seed(seed, *place) >> 75) * 2.0**-53
