"""StepAgent: in the expert's states, the policy's own actions against the expert's."""

from __future__ import annotations

from typing import Literal

from posttrain.estimator import Algorithm, Plan, PolicyTerm, Source
from posttrain.estimator.aggregation import TokenMean
from posttrain.estimator.denominators import Old
from posttrain.estimator.expert import ComparisonMean, Discriminated, OverOwn
from posttrain.estimator.masks import Clip
from posttrain.estimator.scores import ScoreTerm


def stepagent(
    *,
    reward: Literal["implicit", "inverse"] = "implicit",
    beta: float = 0.1,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Algorithm:
    """L = -mean over states and own actions a of log sigma(beta (d(a*) - d(a))), d = log pi/pi_ref (arXiv 2411.03817).

    DPO's loss (arXiv 2305.18290, eq. 7), step by step: a state is a demonstration's prompt, a* the expert's action
    there, a the policy's. Give a row a step (`posttrain record` does with `episode.history_turns`); its state is
    sampled rollout.group_size times. No reward is read.

    reward "inverse": a discriminator D(s, a) = sigma(mean_t w_t), the critic's, learns to tell a* from a by
    cross-entropy, and the rewards log D/(1 - D) of a prompt's own actions enter the clipped policy gradient, relative
    to their group. Then beta is not read. Reconstruction: the paper's formulas were not at hand.
    """
    shown, own = Source.DEMONSTRATIONS, Source.ROLLOUTS
    if reward == "implicit":
        advantage, mean = OverOwn(beta), ComparisonMean()
        sides = ((shown, "expert"), (own, "policy"))
        terms = tuple(PolicyTerm(side, advantage=advantage, aggregation=mean, name=name) for side, name in sides)
        return Algorithm("stepagent", terms)
    policy = PolicyTerm(
        own,
        denominator=Old(),
        advantage=Discriminated(),
        mask=Clip(low=clip_low, high=clip_high),
        aggregation=TokenMean(),
    )
    discriminator = (
        ScoreTerm(source=shown, outcome=True, name="expert"),
        ScoreTerm(source=own, outcome=False, name="own"),
    )
    return Algorithm("stepagent", (policy, *discriminator), Plan(critic="action"))
