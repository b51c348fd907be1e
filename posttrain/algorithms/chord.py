"""CHORD: GRPO and, beside it, imitation of the tokens that the policy is undecided about, annealed or constant."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import Constant, GroupRelative
from posttrain.estimator.aggregation import SequenceMean
from posttrain.estimator.confidence import Uncertainty
from posttrain.estimator.denominators import Old
from posttrain.estimator.masks import Clip
from posttrain.estimator.weights import Always, Annealed


def chord(
    *,
    mu: float = 0.1,
    mu_end: float | None = None,
    mu_steps: int = 200,
    phi: bool = True,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    std: bool = True,
) -> Algorithm:
    """L = (1 - mu) L_GRPO + mu L_SFT, L_SFT = -1/N sum_t sg(phi_t) log pi(y*_t) (arXiv 2508.11408).

    phi_t = p_t (1 - p_t), p_t = pi(y*_t), is largest where the policy is undecided. The default is CHORD-phi: mu a
    constant, 0.1 in its authors' recipe. CHORD-mu is mu 0.9, mu_end 0.05, phi False: mu falls along half a cosine to
    mu_end over mu_steps optimiser steps. L_GRPO as in arXiv 2402.03300, eq. 3, without its KL penalty. ValueError
    unless mu and mu_end lie in [0, 1].
    """
    end = mu if mu_end is None else mu_end
    if not (0 <= mu <= 1 and 0 <= end <= 1):
        raise ValueError(f"mu is {mu}, mu_end {mu_end}; allowed: 0 to 1")
    policy = PolicyTerm(
        Source.ROLLOUTS,
        denominator=Old(),
        advantage=GroupRelative(std=std),
        mask=Clip(low=clip_low, high=clip_high),
        aggregation=SequenceMean(),
        weight=Always(1 - mu) if end == mu else Annealed(1 - mu, 1 - end, mu_steps),
    )
    imitation = PolicyTerm(
        Source.DEMONSTRATIONS,
        advantage=Uncertainty() if phi else Constant(),
        weight=Always(mu) if end == mu else Annealed(mu, end, mu_steps),
        name="imitation",
    )
    return Algorithm("chord", (policy, imitation))
