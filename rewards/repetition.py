"""A penalty for text that repeats itself (n-gram repetition, as in arXiv 2502.03373)."""

from __future__ import annotations

from posttrain.errors import RecipeError


def repetition(completion: str, *, ngram: int = 20, max_penalty: float = 1.0) -> float:
    """-max_penalty (1 - distinct / all) over the completion's n-grams of words; 0 where it has fewer than n words.

    It shapes the reward and says nothing about the answer: list it after the reward that does. RecipeError unless
    ngram >= 1 and 0 <= max_penalty <= 1.
    """
    if ngram < 1 or not 0 <= max_penalty <= 1:
        raise RecipeError(
            f"repetition: ngram is {ngram}, max_penalty {max_penalty}; allowed: 1 or more, and 0 to 1 (it is taken off)"
        )
    words = completion.lower().split()
    grams = [tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]
    return -max_penalty * (1 - len(set(grams)) / len(grams)) if grams else 0.0
