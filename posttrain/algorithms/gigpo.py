"""GiGPO: the group's baseline for episodes, and within it one for turns that acted in the same state."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import GroupRelative, ReferenceKL
from posttrain.estimator.aggregation import TokenMean
from posttrain.estimator.denominators import Old
from posttrain.estimator.masks import Clip
from posttrain.estimator.term import Term
from posttrain.estimator.turn_credit import EpisodeAndTurn, Peers, TurnReturn
from posttrain.estimator.weights import Always


def gigpo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    gamma: float = 0.95,
    turn_weight: float = 1.0,
    peers: Peers = "state",
    std: bool = True,
    kl_weight: float = 0.01,
) -> Algorithm:
    """J = mean_t min(r A, clip(r, 1-clip_low, 1+clip_high) A) - kl_weight KL, A = A_E + turn_weight A_S.

    (arXiv 2505.10978, eq. 8 and 9.) A_E = (R_i - mean_group R) / std_group R of the episode (eq. 3); A_S = (R_k -
    mean R) / std R over the turns of the group that acted in the same state, R_k = sum_{j>=k} gamma^(j-k) r_j of the
    turn (eq. 6 and 7). States are named by the environment; one that names none gets A_E alone. peers "turn" compares
    turns of the same number instead. std False divides by nothing (their F_norm = 1). kl_weight 0 needs no reference.
    """
    advantage = EpisodeAndTurn(GroupRelative(std=std), TurnReturn(gamma, peers, std), turn_weight)
    policy = PolicyTerm(
        Source.ROLLOUTS,
        denominator=Old(),
        advantage=advantage,
        mask=Clip(low=clip_low, high=clip_high),
        aggregation=TokenMean(),
    )
    terms: list[Term] = [policy]
    if kl_weight:
        pull = PolicyTerm(Source.ROLLOUTS, advantage=ReferenceKL("k3"), weight=Always(kl_weight), name="kl")
        terms.append(pull)
    return Algorithm("gigpo", tuple(terms))
