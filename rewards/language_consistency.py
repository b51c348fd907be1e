"""Language consistency: a penalty for letters in another script than that of the language asked for."""

from __future__ import annotations

import unicodedata
from functools import lru_cache


def language_consistency(completion: str, *, script: str = "LATIN") -> float:
    """Minus the share of the completion's letters that are not in `script`: LATIN, CYRILLIC, CJK, ARABIC, ...

    DeepSeek-R1 (arXiv 2501.12948, section 2.3.2) adds the share of words in the target language, which differs by a
    constant where words are letters; letters by their Unicode name tell scripts apart, not languages of one script.
    Code and formulas in Latin letters count as Latin. It shapes the reward: list it after the reward of the answer.
    """
    letters = [character for character in completion if character.isalpha()]
    return -sum(_script(character) != script.upper() for character in letters) / len(letters) if letters else 0.0


@lru_cache(maxsize=65_536)
def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]
