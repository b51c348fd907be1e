"""f-DPG: match a target distribution, in any f-divergence."""

from __future__ import annotations

from typing import Literal

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.aggregation import FixedLength
from posttrain.estimator.divergences import TargetDivergence

Divergence = Literal["kl", "reverse_kl", "js", "tv", "chi2", "reverse_chi2"]


def f_dpg(*, divergence: Divergence = "js", beta: float = 1.0) -> Algorithm:
    """grad D_f(pi || p) = E_pi[ f'(pi(y)/p(y)) grad log pi(y) ], p(y|x) = pi_ref(y|x) exp(R/beta) / Z(x).

    (arXiv 2302.08215, eq. 5 and table 2.) divergence: kl is KL(p || pi) (DPG, arXiv 1912.08517), reverse_kl is
    KL-regularised reinforcement learning, js the code's default. beta 1 is ours: the paper's RLHF targets vary it. One
    optimiser step per rollout: the estimate is on-policy. Large groups: Z is estimated from the group.
    """
    term = PolicyTerm(
        Source.ROLLOUTS,
        advantage=TargetDivergence(divergence, beta),
        aggregation=FixedLength(length=1),
        name="divergence",
    )
    return Algorithm("f_dpg", (term,))
