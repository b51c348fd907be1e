"""Partial credit, seen by a judge that is not quite sure."""

from __future__ import annotations

import hashlib
from statistics import NormalDist


def letters(completion: str, answer: str, prompt: str, *, noise: float = 0.0) -> float:
    """The share of the answer's places that hold the right letter, of the longer of the two.

    noise: standard deviation of what a judge adds, the same whenever the same completion of the prompt is judged.
    """
    given = completion.strip()
    share = sum(a == b for a, b in zip(given, answer, strict=False)) / max(len(given), len(answer))
    if not noise:
        return share
    digest = hashlib.blake2b(f"{prompt} {given}".encode(), digest_size=6).digest()
    uniform = (int.from_bytes(digest, "big") + 0.5) / (1 << 48)
    return share + NormalDist(0.0, noise).inv_cdf(uniform)
