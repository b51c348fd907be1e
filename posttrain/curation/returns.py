"""Return-weighted sampling of recorded trajectories: the better ones more often.

Supervised fine-tuning on the sample is in expectation what `algorithms.return_weighted` does by weights in its loss,
for as long as the sample is small beside what was recorded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from posttrain.data.stream import random_words, uniforms
from posttrain.errors import RecipeError

_DRAW = 5  # a stream of random words of its own

Baseline = Literal["group", "none"]


def return_weights(
    rewards: Sequence[float],
    groups: Sequence[str],
    *,
    beta: float = 1.0,
    cap: float = 20.0,
    baseline: Baseline = "group",
) -> NDArray[np.float64]:
    """min(exp(A_i / beta), cap) with A_i = R_i - mean reward of the group, or A_i = R_i (AWR, arXiv 1910.00177).

    RecipeError where beta or cap is not positive.
    """
    for name, value in (("beta", beta), ("cap", cap)):
        if not value > 0:
            raise RecipeError(f"return-weighted sampling: {name} is {value:g}; allowed: above 0")
    members: defaultdict[str, list[float]] = defaultdict(list)
    for reward, group in zip(rewards, groups, strict=True):
        members[group].append(reward)
    means = {group: float(np.mean(own)) if baseline == "group" else 0.0 for group, own in members.items()}
    advantages = np.array([reward - means[group] for reward, group in zip(rewards, groups, strict=True)])
    return np.asarray(np.exp(np.minimum(advantages / beta, np.log(cap))), dtype=np.float64)


def draw(weights: NDArray[np.float64], count: int, seed: int) -> list[int]:
    """`count` places without replacement, each draw in proportion to the weights that are left; in their own order.

    RecipeError where there are fewer with a weight.
    """
    if count > int((weights > 0).sum()):
        raise RecipeError(f"a sample of {count} from {int((weights > 0).sum())} rows; allowed: at most as many")
    # The first of such a race are draws without replacement, each in proportion to its weight.
    chances = uniforms(random_words(len(weights), seed, _DRAW))
    with np.errstate(divide="ignore"):
        times = -np.log1p(-chances) / weights
    return sorted(np.argsort(times, kind="stable")[:count].tolist())
