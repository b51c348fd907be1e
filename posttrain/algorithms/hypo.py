"""HyPO: preferences from data, and rollouts without rewards that keep the policy near the reference."""

from __future__ import annotations

from typing import Literal

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import LeaveOneOut
from posttrain.estimator.aggregation import FixedLength
from posttrain.estimator.pairs import PairMean
from posttrain.estimator.preferences import PairPreference
from posttrain.estimator.reward_kl import RewardKL
from posttrain.estimator.unrewarded import Unrewarded
from posttrain.estimator.weights import Always


def hypo(
    *, loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid", beta: float = 0.1, kl_weight: float = 0.1
) -> Algorithm:
    """L = L_DPO(pairs) + kl_weight KL(pi || pi_ref), the KL from k rollouts a prompt (arXiv 2406.01462, sec. 5).

    grad KL = 1/N sum_i (k_i - 1/(k-1) sum_{j != i} k_j) sum_t grad log pi(y_it), k_i = sum_t log(pi_old / pi_ref) of
    rollout i: RLOO on the log-ratios (k: rollout.group_size). Rollouts have no rewards. Reconstruction: that the
    gradient is this one; kl_weight (the paper's lambda) is ours, its value was not found. One optimiser step per
    rollout: the estimate is on-policy. Preferences and prompts are drawn side by side.
    """
    preference = PolicyTerm(
        Source.PREFERENCES, advantage=PairPreference(loss, beta), aggregation=PairMean(), name="preference"
    )
    divergence = PolicyTerm(
        Source.ROLLOUTS,
        advantage=Unrewarded(RewardKL(LeaveOneOut(), 1.0)),
        aggregation=FixedLength(length=1),
        weight=Always(kl_weight),
        name="kl",
    )
    return Algorithm("hypo", (preference, divergence))
