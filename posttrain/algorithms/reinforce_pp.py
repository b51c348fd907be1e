"""REINFORCE++: clipped REINFORCE whose advantages are normalised over the whole batch instead of the group."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import GroupRelative, Reward
from posttrain.estimator.aggregation import TokenMean
from posttrain.estimator.denominators import Old
from posttrain.estimator.masks import Clip
from posttrain.estimator.parts import Advantage
from posttrain.estimator.regularisers import regularisers
from posttrain.estimator.reward_kl import ReturnKL
from posttrain.estimator.whitening import Whitened


def reinforce_pp(
    *, clip_low: float = 0.2, clip_high: float = 0.2, kl_weight: float = 0.01, group_baseline: bool = False
) -> Algorithm:
    """J = 1/N_tokens sum_i sum_t min(r Z, clip(r, 1-clip_low, 1+clip_high) Z), r = pi / pi_old, Z the standard score.

    Z = (A - mean_batch A) / std_batch A over all tokens of the step, of A_t = R - kl_weight sum_{s>=t} log(pi_old /
    pi_ref) (arXiv 2501.03262; eq. 8-10 as RLinf numbers them): k1 in the reward, a group of one will do. With
    group_baseline ("REINFORCE++ w/ baseline"), A = R - mean_group R and the KL is a k2 term of its own. kl_weight 0
    needs no reference model; 0.01 and the mean over tokens are those of the authors' code, OpenRLHF.
    """
    advantage: Advantage = GroupRelative(std=False) if group_baseline else Reward()
    if kl_weight and not group_baseline:
        advantage = ReturnKL(advantage, kl_weight)
    policy = PolicyTerm(
        Source.ROLLOUTS,
        denominator=Old(),
        advantage=Whitened(advantage),
        mask=Clip(low=clip_low, high=clip_high),
        aggregation=TokenMean(),
    )
    penalty = regularisers(TokenMean(), kl_weight=kl_weight if group_baseline else 0.0, kl_estimator="k2")
    return Algorithm("reinforce_pp", (policy, *penalty))
