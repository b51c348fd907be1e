"""DAPO's soft punishment of completions that come close to the length limit (arXiv 2503.14476, eq. 13)."""

from __future__ import annotations

from posttrain.errors import RecipeError


def overlong(num_tokens: int, *, max_tokens: int = 20_480, buffer_tokens: int = 4_096) -> float:
    """0 up to max_tokens - buffer_tokens, then a straight line down to -1 at max_tokens, and -1 beyond.

    num_tokens: the completion's. max_tokens: rollout.max_tokens as a rule; the paper's are 16384 + 4096. It shapes the
    reward and says nothing about the answer: list it after the reward that does. RecipeError unless
    0 < buffer_tokens <= max_tokens.
    """
    if not 0 < buffer_tokens <= max_tokens:
        raise RecipeError(
            f"overlong: buffer_tokens is {buffer_tokens}, max_tokens {max_tokens}; allowed: above 0, at most max_tokens"
        )
    return max(-1.0, min(0.0, (max_tokens - buffer_tokens - num_tokens) / buffer_tokens))
