"""P3O: pairs of rollouts of one prompt, each pushed by the difference of their rewards."""

from __future__ import annotations

from typing import Literal

from posttrain.estimator import Algorithm, Plan, PolicyTerm, Source
from posttrain.estimator.advantages import Reward
from posttrain.estimator.denominators import PairRatio
from posttrain.estimator.masks import PairClip
from posttrain.estimator.pairing import Neighbours
from posttrain.estimator.pairs import PairDifference, PairMean
from posttrain.estimator.reward_kl import RewardKL


def p3o(*, clip: Literal["separate", "joint"] = "separate", epsilon: float = 0.2, beta: float = 0.05) -> Algorithm:
    """grad J = mean over pairs of rho_1 rho_2 (r_1 - r_2) grad log(pi(y_1) / pi(y_2)) / 2 (arXiv 2310.00212, sec. 4).

    rho_i = pi(y_i) / pi_old(y_i) over the whole completion; r = reward - beta sum_t log(pi_old / pi_ref): 0 needs no
    reference model. A shift of a prompt's rewards changes nothing. clip "separate" (V1): the sides' min(A_i rho_i, A_i
    clip(rho_i, 1 -+ epsilon)), A_i = (r_i - r_j) sg(rho_j), averaged. "joint" (V2): min(A l, A clip(l, -+epsilon)) / 2,
    A = (r_1 - r_2) sg(rho_1 rho_2), l = log(rho_1 / rho_2). The rollouts of a prompt are paired in their order.
    Reconstruction: the clipped forms; epsilon (PPO's) and beta are ours, the paper's values were not found.
    """
    reward = RewardKL(Reward(), beta) if beta else Reward()
    term = PolicyTerm(
        Source.ROLLOUTS,
        denominator=PairRatio(),
        advantage=PairDifference(reward),
        mask=PairClip(epsilon, joint=clip == "joint"),
        aggregation=PairMean(),
    )
    return Algorithm("p3o", (term,), Plan(pairing=Neighbours()))
