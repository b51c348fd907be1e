"""A budget of tokens: exactly so many, or at most so many (L1, arXiv 2503.04697)."""

from __future__ import annotations

from posttrain.errors import RecipeError


def length_budget(
    num_tokens: int,
    target_tokens: int | None = None,
    *,
    budget_tokens: int = 1024,
    exact: bool = False,
    slope: float = 0.0003,
    offset: float = 0.5,
) -> float:
    """exact: max(-1, -slope |target - n|); else clip(slope (target - n) + offset, 0, 1) - 1, both at most 0.

    n: the completion's tokens. target: the row's column target_tokens where it has one, else budget_tokens. The first
    is LCPO-Exact's term; the second LCPO-Max's factor, which there multiplies the answer's reward, as a penalty beside
    it. RecipeError for a negative slope or a target below 1.
    """
    target = budget_tokens if target_tokens is None else target_tokens
    if slope < 0 or target < 1:
        raise RecipeError(f"length_budget: slope is {slope}, the target {target}; allowed: 0 or more, and 1 or more")
    if exact:
        return max(-1.0, -slope * abs(target - num_tokens))
    return min(1.0, max(0.0, slope * (target - num_tokens) + offset)) - 1.0
