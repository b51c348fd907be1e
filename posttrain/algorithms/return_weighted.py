"""Return-weighted imitation: supervised fine-tuning on recorded trajectories, the better ones more."""

from __future__ import annotations

from typing import Literal

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import Constant, GroupRelative, Reward
from posttrain.estimator.aggregation import SequenceMean, TokenMean
from posttrain.estimator.batch_mean import SelfNormalised
from posttrain.estimator.exponential import Exponential
from posttrain.estimator.filters import BestOfGroup, Solved

KEEP = {"all": None, "solved": Solved(), "best": BestOfGroup()}


def return_weighted(
    *,
    beta: float | None = 1.0,
    cap: float = 20.0,
    baseline: Literal["group", "none"] = "group",
    std: bool = False,
    self_normalised: bool = False,
    keep: Literal["all", "solved", "best"] = "all",
    sequence_normalised: bool = False,
) -> Algorithm:
    """L = -1/N_tokens sum_i min(exp(A_i / beta), cap) sum_t log pi(y_it | x_i, y_i<t) over recorded trajectories.

    AWR (arXiv 1910.00177, sec. 3; beta 1 and cap 20 are its code's) with A_i = R_i - V, V the mean reward of the
    prompt's trajectories in place of a fitted value (reconstruction); std divides A_i by their deviation, as the code
    does over the batch. baseline "none": A_i = R_i. self_normalised: weights are divided by their mean over the step
    (reward-weighted regression). keep: solved trajectories only, or the best of each prompt; with beta null, their
    weights are 1: filtered supervised fine-tuning. A weighted or filtered trajectory without a reward is left out.
    """
    advantage: Constant | Exponential | SelfNormalised = Constant()
    if beta is not None:
        returns = GroupRelative(std=std) if baseline == "group" else Reward()
        advantage = Exponential(returns, beta, cap)
        advantage = SelfNormalised(advantage) if self_normalised else advantage
    term = PolicyTerm(
        Source.TRAJECTORIES,
        advantage=advantage,
        aggregation=SequenceMean() if sequence_normalised else TokenMean(),
        where=KEEP[keep],
        name="imitation",
    )
    return Algorithm("return_weighted", (term,))
