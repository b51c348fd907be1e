"""UI-S1: semi-online reinforcement learning on recorded trajectories, with credit to steps and to episodes."""

from __future__ import annotations

from typing import Literal

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import ReferenceKL
from posttrain.estimator.aggregation import TokenMean
from posttrain.estimator.denominators import Old
from posttrain.estimator.filters import Spread
from posttrain.estimator.masks import Clip
from posttrain.estimator.parts import Advantage
from posttrain.estimator.term import Term
from posttrain.estimator.turn_credit import EpisodeAndTurn, LastTurn, TurnReturn
from posttrain.estimator.weights import Always


def ui_s1(
    *,
    gamma: float = 0.5,
    step_weight: float = 1.0,
    variant: Literal["paper", "code"] = "paper",
    least_spread: float = 0.3,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_weight: float = 1e-4,
) -> Algorithm:
    """J = 1/K sum_t min(r A, clip(r, 1-clip_low, 1+clip_high) A) - kl_weight KL, A = A^E + step_weight A^S.

    (arXiv 2509.11543, eq. 9 to 13.) A^S = (R_t - mean) / std over the group's rollouts at the same step of the recorded
    trajectory, R_t = sum_{k=t}^{t_end} gamma^(k-t) r_k up to and with the first action that left it; A^E the same of
    the last step's return, as printed. Of groups whose rewards spread by less than least_spread nothing is learnt;
    `rollout.max_draws` draws others. The environment is `semi_online`, which names its steps.

    variant "code": a mistaken step's reward stays its own, and A^E normalises the rewards of all steps of all rollouts.
    """
    own = TurnReturn(gamma, "state", through_mistakes=variant == "paper")
    episode: Advantage = LastTurn() if variant == "paper" else TurnReturn(0.0, "group")
    varied = Spread(least_spread)
    policy = PolicyTerm(
        Source.ROLLOUTS,
        denominator=Old(),
        advantage=EpisodeAndTurn(episode, own, step_weight),
        mask=Clip(low=clip_low, high=clip_high),
        aggregation=TokenMean(),
        where=varied,
    )
    terms: list[Term] = [policy]
    if kl_weight:
        anchor = ReferenceKL("k3")
        terms.append(PolicyTerm(Source.ROLLOUTS, advantage=anchor, weight=Always(kl_weight), name="kl", where=varied))
    return Algorithm("ui_s1", tuple(terms))
