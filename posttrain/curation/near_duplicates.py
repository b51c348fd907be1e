"""Near duplicates: texts whose sets of word sequences overlap, by MinHash and locality-sensitive hashing.

A text is the set of its shingles: `words_per_shingle` words or symbols in a row. Of two sets A and B the share of
MinHash values that agree estimates |A & B| / |A | B| (Broder 1997); values in bands of r rows make a pair with overlap
s a candidate with probability 1 - (1 - s^r)^bands (Indyk and Motwani 1998). Candidates are then compared exactly, so
that whatever is removed does overlap as much as the threshold says; a pair at the threshold is missed with a
probability of at most 1 %, less above it.

A text is compared with earlier texts that stay: buckets hold `_BUCKET` of them at most, and the `_BUCKET` candidates
that agree most are compared exactly. So time and memory grow in proportion to the number of texts, also where thousands
of them follow one template.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from posttrain.data.ngrams import WITHOUT_SPACES
from posttrain.data.stream import random_words
from posttrain.errors import RecipeError

_HASHES = 128
_RECALL = 0.99
_BUCKET = 64
_SHINGLES_AT_ONCE = 4096
_MARGIN = 0.15  # over four deviations of an estimate from 128 values, which are at most 0.044 each
_PERMUTE = 4  # a stream of random words of its own
_SYMBOL = re.compile(rf"[{WITHOUT_SPACES}]|[^\W{WITHOUT_SPACES}]+|[^\w\s]")
_NUMBER = re.compile(r"\d+")

Words = NDArray[np.uint64]


def near_duplicates(
    texts: Sequence[str],
    threshold: float = 0.8,
    *,
    words_per_shingle: int = 5,
    same_numbers: bool = True,
    seed: int = 0,
) -> dict[int, tuple[int, float]]:
    """The place of each near duplicate -> the earlier text that stays in its place, and their overlap.

    threshold: the least overlap |A & B| / |A | B|, in (0, 1]. same_numbers: texts with other numbers are other problems
    and both stay. seed: of the hash functions. RecipeError for a number out of range.
    """
    if not 0 < threshold <= 1:
        raise RecipeError(f"near duplicates: the threshold is {threshold:g}; allowed: above 0, at most 1")
    if words_per_shingle < 1:
        raise RecipeError(f"near duplicates: words_per_shingle is {words_per_shingle}; allowed: 1 or more")
    num_bands, num_rows = bands(threshold)
    factors = random_words(2 * _HASHES, seed, _PERMUTE).reshape(2, _HASHES) | np.uint64(1)
    buckets: dict[tuple[int, bytes], list[int]] = {}
    signatures = np.empty((len(texts), _HASHES), dtype=np.uint32)
    sets: dict[int, Words] = {}
    found: dict[int, tuple[int, float]] = {}
    for place, text in enumerate(texts):
        own = shingles(text, words_per_shingle)
        signature = signatures[place] = _signature(own, factors)
        cut = signature[: num_bands * num_rows].reshape(num_bands, num_rows)
        keys = [(band, cut[band].tobytes()) for band in range(num_bands)]
        candidates = np.array(sorted({one for key in keys for one in buckets.get(key, ())}), dtype=np.int64)
        agreement = (signatures[candidates] == signature).mean(axis=1)
        nearest = np.argsort(-agreement, kind="stable")[:_BUCKET]
        for other in candidates[nearest[agreement[nearest] >= threshold - _MARGIN]].tolist():
            overlap = jaccard(own, sets[other])
            if overlap >= threshold and not (same_numbers and _numbers(text) != _numbers(texts[other])):
                found[place] = other, overlap
                break
        else:
            sets[place] = own
            for key in keys:
                bucket = buckets.setdefault(key, [])
                if len(bucket) < _BUCKET:
                    bucket.append(place)
    return found


def shingles(text: str, size: int) -> Words:
    """The sorted 64-bit hashes of the text's shingles; a shorter text is one shingle."""
    symbols = _SYMBOL.findall(unicodedata.normalize("NFKC", text).casefold())
    sequences = {"\0".join(symbols[i : i + size]) for i in range(max(1, len(symbols) - size + 1))}
    digests = b"".join(
        hashlib.blake2b(one.encode("utf-8", "surrogatepass"), digest_size=8).digest() for one in sequences
    )
    return np.sort(np.frombuffer(digests, dtype="<u8").astype(np.uint64))


def jaccard(a: Words, b: Words) -> float:
    """|A & B| / |A | B| of two sets of hashes."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def bands(threshold: float) -> tuple[int, int]:
    """(bands, rows): the most rows with which a pair at the threshold is a candidate with probability 0.99 or more."""
    choices = ((_HASHES // rows, rows) for rows in range(_HASHES, 0, -1))
    return next(
        ((number, rows) for number, rows in choices if 1 - (1 - threshold**rows) ** number >= _RECALL), (_HASHES, 1)
    )


def _signature(own: Words, factors: Words) -> NDArray[np.uint32]:
    """Of each hash function x -> a x + b (mod 2^64) the least value over the set, its upper half."""
    least = np.full(_HASHES, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(own), _SHINGLES_AT_ONCE):
        values = own[start : start + _SHINGLES_AT_ONCE, None] * factors[0] + factors[1]
        least = np.minimum(least, values.min(axis=0))
    return (least >> np.uint64(32)).astype(np.uint32)


def _numbers(text: str) -> list[str]:
    return _NUMBER.findall(text)
