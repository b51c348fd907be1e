"""BOND: distil best-of-n of a reference policy into the policy, by the Jeffreys divergence."""

from __future__ import annotations

from typing import Literal

from posttrain.estimator import Algorithm, Plan, PolicyTerm, Source
from posttrain.estimator.advantages import LeaveOneOut, Reward
from posttrain.estimator.aggregation import FixedLength
from posttrain.estimator.anchors import Anchored, Quantile
from posttrain.estimator.batch_mean import BatchCentred
from posttrain.estimator.best_of_n import BestOfN, BestOfNDivergence
from posttrain.estimator.parts import Advantage
from posttrain.estimator.reward_kl import RewardKL
from posttrain.estimator.weights import Always


def bond(
    *,
    n: int = 16,
    samples: int = 16,
    beta: float = 0.5,
    baseline: Literal["batch", "group"] = "batch",
    ties: bool = False,
    floor: float = 0.5,
    eta: float = 0.0,
) -> Algorithm:
    """L = (1 - beta) KL(pi_BoN || pi) + beta KL(pi || pi_BoN), pi_BoN: best of n of pi_ref (arXiv 2407.14622, eq. 11).

    Forward: -E_BoN[log pi(y)], each prompt's `samples` of the reference weighted by their chance to be the best of n.
    Backward: -E_pi[grad log pi(y) ((n - 1) r_BOND - log(pi / pi_ref) - B)], r_BOND = log p_le by the same samples (eq.
    10 and 15), B the mean of the batch, or of the prompt's other rollouts ("group"); ties: see `Quantile`. The paper
    varies n, with 16 samples and beta 0.5. eta: the reference follows the policy, theta_ref <- (1 - eta) theta_ref +
    eta theta (the moving anchor of its section 5). On-policy: one optimiser step per rollout.
    """
    if not (n >= 2 and samples >= 1 and 0 <= beta <= 1 and 0 <= eta < 1):
        raise ValueError(
            f"n is {n}, samples {samples}, beta {beta}, eta {eta}; allowed: n of at least 2, samples of at least 1, "
            "beta from 0 to 1, eta from 0 to below 1"
        )
    penalised = RewardKL(LeaveOneOut() if baseline == "group" else Reward(), 1.0)
    quantile = Quantile(penalised, n, ties, floor)
    advantage = BatchCentred(quantile) if baseline == "batch" else quantile
    return Algorithm(
        "bond", jeffreys(advantage, BestOfN(n), beta), Plan(reference_samples=samples, reference_decay=eta)
    )


def jeffreys(backward: Advantage, selection: BestOfN, beta: float) -> tuple[PolicyTerm, PolicyTerm, BestOfNDivergence]:
    """(1 - beta) imitation of the selected reference samples, beta policy gradient by `backward`, and a diagnostic."""
    shown, completion = Source.DEMONSTRATIONS, FixedLength(length=1)
    imitation = PolicyTerm(
        shown, advantage=selection, aggregation=completion, weight=Always(1 - beta), name="imitation"
    )
    policy = PolicyTerm(
        Source.ROLLOUTS, advantage=backward, aggregation=completion, weight=Always(beta), where=Anchored()
    )
    return imitation, policy, BestOfNDivergence(shown, selection)
