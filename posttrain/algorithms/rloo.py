"""RLOO: REINFORCE with the mean of a prompt's other completions as the baseline."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import LeaveOneOut
from posttrain.estimator.aggregation import FixedLength
from posttrain.estimator.reward_kl import RewardKL


def rloo(*, kl_weight: float = 0.05) -> Algorithm:
    """grad J = 1/N sum_i (R_i - 1/(n-1) sum_{j != i} R_j) sum_t grad log pi(y_it) (arXiv 2402.14740, sec. 2.2).

    R_i = reward_i - kl_weight sum_t log(pi_old / pi_ref): the KL penalty lies in the reward (eq. 3 there); 0 needs no
    reference model. The paper tunes kl_weight per task; 0.05 is TRL's. A completion is one action, so token sums are
    not divided by the length, and there is no ratio: one optimiser step per rollout.
    """
    advantage = RewardKL(LeaveOneOut(), kl_weight) if kl_weight else LeaveOneOut()
    term = PolicyTerm(Source.ROLLOUTS, advantage=advantage, aggregation=FixedLength(length=1))
    return Algorithm("rloo", (term,))
