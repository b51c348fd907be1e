"""A taste in letters, for tasks in which every completion is a little better or worse than another."""

from __future__ import annotations

import hashlib


def late_letters(completion: str) -> float:
    """Mean place in the alphabet, 0 for a and 1 for z, of the letters of the completion; 0 where there is none.

    A thousandth of noise that depends on the completion alone breaks ties.
    """
    places = [(ord(letter) - ord("a")) / 25 for letter in completion if "a" <= letter <= "z"]
    digest = hashlib.blake2b(completion.encode(), digest_size=4).digest()
    return sum(places) / max(1, len(places)) + int.from_bytes(digest, "big") / (1 << 32) / 1000
