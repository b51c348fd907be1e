"""GRPO without its two biases: the division by the deviation, and that by the completion's length."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import GroupRelative
from posttrain.estimator.aggregation import FixedLength
from posttrain.estimator.denominators import Old
from posttrain.estimator.masks import Clip


def dr_grpo(*, clip_low: float = 0.2, clip_high: float = 0.2, length: int = 3000) -> Algorithm:
    """Dr. GRPO: J = 1/N sum_i 1/length sum_t min(r A, clip(r, 1-clip_low, 1+clip_high) A) (arXiv 2503.20783, sec. 3.2).

    A_i = R_i - mean_group R, r = pi / pi_old. length: a constant, the longest completion allowed (the paper's code
    divides by its generation budget, 3000; the printed formula by nothing, which is length 1). No KL penalty.
    """
    policy = PolicyTerm(
        Source.ROLLOUTS,
        denominator=Old(),
        advantage=GroupRelative(std=False),
        mask=Clip(low=clip_low, high=clip_high),
        aggregation=FixedLength(length),
    )
    return Algorithm("dr_grpo", (policy,))
