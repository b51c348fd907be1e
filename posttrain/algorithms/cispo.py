"""CISPO: clip the importance weight, keep every token's gradient."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import GroupRelative
from posttrain.estimator.aggregation import TokenMean
from posttrain.estimator.denominators import Floored


def cispo(*, cap: float = 5.0, floor: float = 0.0) -> Algorithm:
    """grad J = 1/N_tokens sum_i sum_t sg(clip(r, floor, cap)) A_i grad log pi(y_it) (arXiv 2506.13585, eq. 4 and 5).

    r = pi / pi_old, A_i = (R_i - mean_group R) / std_group R. cap and floor bound the weight itself (TRL's convention;
    the paper and verl write 1 + eps_high and 1 - eps_low). The paper sets no floor and prints no cap; 5 is ScaleRL's
    (arXiv 2510.13786).
    """
    policy = PolicyTerm(
        Source.ROLLOUTS,
        denominator=Floored(cap, floor),
        advantage=GroupRelative(),
        aggregation=TokenMean(),
    )
    return Algorithm("cispo", (policy,))
