"""Texts that share n words in a row: how training data that holds a benchmark's questions is found.

Words are compared without case and punctuation. Text between numbers is often all that two problems share, so numbers
are words too: a problem with other numbers, or one in other words, is another problem.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # kana and CJK ideographs: each is a word
_WORD = re.compile(rf"[{WITHOUT_SPACES}]|[^\W{WITHOUT_SPACES}]+")


@dataclass(frozen=True)
class Overlap:
    """A text that shares `words` with the item `item` of a benchmark; both are places in the lists."""

    text: int
    item: int
    words: str


def words(text: str) -> list[str]:
    """The words of a text in their order, in lower case (NFKC), without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def normalised(text: str) -> str:
    """The text in lower case (NFKC), with single spaces; punctuation counts."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def ngrams(text: str, n: int) -> list[str]:
    """Every n words in a row; nothing where the text is shorter."""
    found = words(text)
    return [" ".join(found[start : start + n]) for start in range(len(found) - n + 1)]


class Items:
    """The n-grams of a benchmark's items, to be looked up.

    What more than `common` items share is a phrase of the benchmark and not counted. An item of fewer than n words is
    found only where a text is all of it (`normalised`).
    """

    def __init__(self, items: Sequence[str], n: int, common: int) -> None:
        self.n, self.common = n, common
        self._whole = {normalised(item): index for index, item in reversed(list(enumerate(items)))}
        self._items: dict[str, int] = {}
        counts: Counter[str] = Counter()
        for index, item in enumerate(items):
            found = dict.fromkeys(ngrams(item, n))
            counts.update(list(found))
            for words_in_a_row in found:
                self._items.setdefault(words_in_a_row, index)
        for words_in_a_row, count in counts.items():
            if count > common:
                del self._items[words_in_a_row]

    def whole(self, text: str) -> int | None:
        """The item that the text is."""
        return self._whole.get(normalised(text))

    def shared(self, text: str) -> dict[str, int]:
        """The n-grams that the text shares with items, in the text's order, and the first item that has each."""
        return {one: self._items[one] for one in ngrams(text, self.n) if one in self._items}


def overlaps(texts: Sequence[str], items: Sequence[str], *, n: int = 13, common: int = 10) -> list[Overlap]:
    """The texts that are an item, or share n words in a row with one, each with the first such words.

    What more than `common` different texts share with items is a phrase and not counted, as what more than `common`
    items share: GPT-3's 13-grams and limit of 10 documents (arXiv 2005.14165, appendix C; the limit among the items is
    ours, since instructions stand in front of each). Time and memory grow with the number of words.
    """
    index = Items(items, n, common)
    found: dict[str, dict[str, int]] = {}  # of each different text
    counts: Counter[str] = Counter()
    keys = [normalised(text) for text in texts]
    for key in dict.fromkeys(keys):
        found[key] = index.shared(key)
        counts.update(list(found[key]))
    result = []
    for place, key in enumerate(keys):
        whole = index.whole(key)
        rare = next((one for one in found[key] if counts[one] <= common), None)
        if whole is not None:
            result.append(Overlap(place, whole, key))
        elif rare is not None:
            result.append(Overlap(place, found[key][rare], rare))
    return result
