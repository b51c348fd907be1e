"""LUFFY: GRPO whose groups hold a demonstration, learnt from off-policy with a shaped probability."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.aggregation import FixedLength, TokenMean
from posttrain.estimator.denominators import Old, One
from posttrain.estimator.guidance import GuidedGroupRelative, Joint
from posttrain.estimator.likelihoods import Shaped
from posttrain.estimator.masks import Clip, Unmasked


def luffy(
    *,
    gamma: float = 0.1,
    std: bool = True,
    clip: bool = False,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    length: float | None = None,
    demonstration_reward: float = 1.0,
) -> Algorithm:
    """J = 1/Z { sum_{demonstrations} sum_t f(pi) A + sum_{rollouts} sum_t r A } (arXiv 2504.14945).

    f(x) = x / (x + gamma) shapes the demonstration's ratio, whose denominator is 1 (sec. 2.3 of its first version);
    r = pi / pi_old; A is relative to the whole group, the demonstration rewarded with demonstration_reward; Z counts
    the tokens of both. `clip` puts PPO's clip back on the rollouts: the paper's formula has it, its runs do not (sec.
    2.4). They also divide by a constant `length` (8192) instead of Z, and leave the deviation out: std False.
    """
    advantage = GuidedGroupRelative(demonstration_reward, std)
    aggregation = Joint(TokenMean() if length is None else FixedLength(length))
    policy = PolicyTerm(
        Source.ROLLOUTS,
        denominator=Old(),
        advantage=advantage,
        mask=Clip(low=clip_low, high=clip_high) if clip else Unmasked(),
        aggregation=aggregation,
    )
    guided = PolicyTerm(
        Source.DEMONSTRATIONS,
        denominator=One(),
        advantage=advantage,
        likelihood=Shaped(gamma),
        aggregation=aggregation,
        name="guided",
    )
    return Algorithm("luffy", (policy, guided))
