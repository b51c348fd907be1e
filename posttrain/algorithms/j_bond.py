"""J-BOND: BOND at one rollout and two anchor samples a prompt, the anchor following the policy."""

from __future__ import annotations

import math

from posttrain.algorithms.bond import jeffreys
from posttrain.estimator import Algorithm, Plan, PolicyTerm, Source
from posttrain.estimator.advantages import Reward
from posttrain.estimator.aggregation import FixedLength
from posttrain.estimator.anchors import BelowAnchors, SequenceKL
from posttrain.estimator.batch_mean import BatchCentred
from posttrain.estimator.best_of_n import BestOfN
from posttrain.estimator.reward_kl import RewardKL
from posttrain.estimator.weights import Always


def j_bond(
    *, beta: float = 0.5, eta: float = 0.02, gamma: float = 0.0, penalty: float = math.log(16), samples: int = 2
) -> Algorithm:
    """grad = (1 - beta) G_FW + beta G_BW + gamma G_Reg (arXiv 2407.14622, sec. 5, alg. 2; group_size 1).

    G_FW = -grad log pi(y_best of the anchor's samples). G_BW = -grad log pi(y) (R - B), R = r_JBOND - l, l =
    log(pi(y)/pi_anchor(y)), r_JBOND = -penalty where y is worse than every anchor sample, else 0; B the batch's mean.
    G_Reg = +grad log pi(y) l, the gradient of KL(pi || pi_anchor); the paper prints a minus, which would maximise it.
    After every step theta_anchor <- (1 - eta) theta_anchor + eta theta. Its runs: beta 0.5, eta 0.02; gamma 0 to 2.
    """
    if not (0 <= beta <= 1 and 0 <= eta < 1 and gamma >= 0 and samples >= 1):
        raise ValueError(
            f"beta is {beta}, eta {eta}, gamma {gamma}, samples {samples}; allowed: beta from 0 to 1, eta from 0 to "
            "below 1, gamma of at least 0, samples of at least 1"
        )
    backward = BatchCentred(BelowAnchors(RewardKL(Reward(), 1.0), penalty))
    regulariser = PolicyTerm(
        Source.ROLLOUTS, advantage=SequenceKL(), aggregation=FixedLength(length=1), weight=Always(gamma), name="kl"
    )
    plan = Plan(reference_samples=samples, reference_decay=eta)
    terms = jeffreys(backward, BestOfN(), beta)
    return Algorithm("j_bond", (*terms, regulariser) if gamma else terms, plan)
