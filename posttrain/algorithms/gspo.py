"""GSPO: the ratio, the clip and the reward all belong to the sequence."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import GroupRelative
from posttrain.estimator.aggregation import SequenceMean
from posttrain.estimator.denominators import SequenceMean as SequenceRatio
from posttrain.estimator.masks import SequenceClip


def gspo(*, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Algorithm:
    """J = 1/N sum_i min(s_i A_i, clip(s_i, 1-clip_low, 1+clip_high) A_i), s_i = (pi(y_i)/pi_old(y_i))^(1/|y_i|).

    A_i = (R_i - mean_group R) / std_group R (arXiv 2507.18071, eq. 5-7; ranges of sec. 5.1). grad s_i A_i =
    1/|y_i| sum_t s_i A_i grad log pi(y_it): computed per token, as GSPO-token (eq. 13 and 14) writes it; with one
    advantage per sequence the two are the same gradient, and an advantage per token makes this GSPO-token.
    """
    policy = PolicyTerm(
        Source.ROLLOUTS,
        denominator=SequenceRatio(),
        advantage=GroupRelative(),
        mask=SequenceClip(low=clip_low, high=clip_high),
        aggregation=SequenceMean(),
    )
    return Algorithm("gspo", (policy,))
