"""DAPO: GRPO with a wider upper clip and a mean over tokens, without a KL penalty."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import GroupRelative
from posttrain.estimator.aggregation import TokenMean
from posttrain.estimator.denominators import Old
from posttrain.estimator.filters import MixedGroup
from posttrain.estimator.masks import Clip


def dapo(*, clip_low: float = 0.2, clip_high: float = 0.28, mixed_only: bool = True) -> Algorithm:
    """J = 1/N_tokens sum_i sum_t min(r A, clip(r, 1-clip_low, 1+clip_high) A) (arXiv 2503.14476, eq. 8 and 9).

    A_i = (R_i - mean_group R) / std_group R, r = pi / pi_old. The paper's two other parts lie elsewhere: the soft
    overlong punishment (eq. 13) is the reward `overlong`, listed after the outcome; dynamic sampling (eq. 11), which
    draws again where all rewards of a prompt are equal, belongs to rollouts. Here such prompts skip the forward pass
    and, with mixed_only, do not count in N_tokens, so that the step is that of a batch without them.
    """
    policy = PolicyTerm(
        Source.ROLLOUTS,
        denominator=Old(),
        advantage=GroupRelative(),
        mask=Clip(low=clip_low, high=clip_high),
        aggregation=TokenMean(),
        where=MixedGroup() if mixed_only else None,
    )
    return Algorithm("dapo", (policy,))
