"""Completions of which one is drawn: what may follow the tokens drawn so far.

Actions that cannot be carried out are masked where they begin to differ from those that can, token by token, and what
is left is renormalised (invalid action masking, arXiv 2006.14171).
"""

from __future__ import annotations

from collections.abc import Sequence

Choices = tuple[tuple[int, ...], ...]
"""Tokens of each completion that may be drawn, its stop token included. None of them: whatever the policy says."""


def following(choices: Sequence[Sequence[int]], drawn: Sequence[int]) -> list[int]:
    """The tokens that choices which begin with `drawn` go on with, in ascending order."""
    size, so_far = len(drawn), list(drawn)
    return sorted({one[size] for one in choices if len(one) > size and list(one[:size]) == so_far})


def allowed_tokens(choices: Choices, drawn: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """What each of the tokens drawn was one of; empty where a token was none of them."""
    allowed = tuple(tuple(following(choices, drawn[:place])) for place in range(len(drawn)))
    return allowed if all(token in one for token, one in zip(drawn, allowed, strict=True)) else ()
