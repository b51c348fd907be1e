"""Exact duplicates: texts that are the same without case (NFKC) and spacing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from posttrain.data.ngrams import normalised


def exact_duplicates(texts: Sequence[str]) -> dict[int, int]:
    """The place of every text that an earlier one is equal to -> the place of the first of them; 16 bytes a text."""
    first: dict[bytes, int] = {}
    found: dict[int, int] = {}
    for place, text in enumerate(texts):
        key = hashlib.blake2b(normalised(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if first.setdefault(key, place) != place:
            found[place] = first[key]
    return found
