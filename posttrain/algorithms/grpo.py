"""GRPO: clipped policy gradient with the group as its baseline."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import GroupRelative, ReferenceKL
from posttrain.estimator.aggregation import SequenceMean
from posttrain.estimator.denominators import Old
from posttrain.estimator.masks import Clip
from posttrain.estimator.weights import Always


def grpo(*, clip_low: float = 0.2, clip_high: float = 0.2, std: bool = True, kl_weight: float = 0.04) -> Algorithm:
    """J = 1/G sum_i 1/|y_i| sum_t { min(r A, clip(r, 1-clip_low, 1+clip_high) A) - kl_weight k3(pi, pi_ref) }.

    r = pi / pi_old, A_i = (R_i - mean_group R) / std_group R (arXiv 2402.03300, eq. 3, 4 and sec. 4.1.2; kl_weight
    0.04 as in sec. 4.2; epsilon 0.2 is not stated there and is PPO's). kl_weight 0 needs no reference model.
    std False leaves the division out (Dr. GRPO, arXiv 2503.20783).
    """
    policy = PolicyTerm(
        Source.ROLLOUTS,
        denominator=Old(),
        advantage=GroupRelative(std=std),
        mask=Clip(low=clip_low, high=clip_high),
        aggregation=SequenceMean(),
    )
    if kl_weight == 0:
        return Algorithm("grpo", (policy,))
    penalty = PolicyTerm(
        Source.ROLLOUTS,
        advantage=ReferenceKL("k3"),
        aggregation=SequenceMean(),
        weight=Always(kl_weight),
        name="kl",
    )
    return Algorithm("grpo", (policy, penalty))
