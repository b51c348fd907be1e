"""Obfuscated text, found by its number of characters per token.

A byte-pair tokenizer that learned natural language cuts what is not natural language (ciphers, encodings, letters with
spaces between them) into more and shorter tokens: "Broken-Token: Filtering Obfuscated Prompts by Counting
Characters-Per-Token". What is natural depends on tokenizer and language: a text of Chinese characters or of formulas
has fewer characters per token than English prose, so bounds belong to a tokenizer and a kind of data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.errors import RecipeError

_TEXTS_AT_ONCE = 512


def characters_per_token(texts: Sequence[str], tokenizer: Any) -> list[float]:
    """len(text) / number of tokens, special ones left out; of an empty text 0."""
    found: list[float] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        part = list(texts[start : start + _TEXTS_AT_ONCE])
        ids = tokenizer(part, add_special_tokens=False)["input_ids"]
        found += [len(text) / len(tokens) if tokens else 0.0 for text, tokens in zip(part, ids, strict=True)]
    return found


def outside(ratios: Sequence[float], low: float | None, high: float | None) -> dict[int, str]:
    """The places of ratios below `low` or above `high`, and why; None is no bound. RecipeError where low > high.

    Below: ciphers and encodings. Above: long runs of one character, which a tokenizer holds as few tokens.
    """
    if low is not None and high is not None and low > high:
        raise RecipeError(f"characters per token from {low:g} to {high:g}; allowed: bounds in this order")
    why = {}
    for place, ratio in enumerate(ratios):
        if low is not None and ratio < low:
            why[place] = f"{ratio:.2f} characters per token, below {low:g}"
        elif high is not None and ratio > high:
            why[place] = f"{ratio:.2f} characters per token, above {high:g}"
    return why
