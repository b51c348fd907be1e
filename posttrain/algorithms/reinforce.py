"""REINFORCE: the plain policy gradient."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import Reward
from posttrain.estimator.aggregation import FixedLength


def reinforce(*, baseline: float = 0.0) -> Algorithm:
    """grad J = 1/N sum_i (R_i - b) sum_t grad log pi(y_it | x_i, y_i<t) (Williams 1992; arXiv 2509.04419, eq. 2).

    baseline b: a constant subtracted from every reward; 0.5 with rewards 0 and 1 gives the paper's advantage +-1
    (table 1) up to a factor 2. One optimiser step per rollout: there is no ratio to correct for a second.
    """
    term = PolicyTerm(Source.ROLLOUTS, advantage=Reward(baseline), aggregation=FixedLength(length=1), name="reinforce")
    return Algorithm("reinforce", (term,))
