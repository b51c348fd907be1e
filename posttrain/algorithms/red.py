"""RED: GRPO beside imitation, the share of imitation set by how the two move the policy's entropy."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import Constant, GroupRelative
from posttrain.estimator.aggregation import SequenceMean
from posttrain.estimator.balance import AccuracyShift, EntropyBalance
from posttrain.estimator.denominators import Old
from posttrain.estimator.masks import Clip, Unmasked


def red(
    *,
    cap: float = 5.0,
    decay: float = 0.99,
    std: bool = True,
    clip: bool = True,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    accuracy_shift: bool = False,
) -> Algorithm:
    """L = L_GRPO + w L_SFT, w = clip(|dH_sft| / |dH_rl|, 1, cap) (arXiv 2508.16677, sec. 3; reconstruction).

    L_GRPO has no KL penalty; L_SFT = -1/|y*| sum_t log pi(y*_t), a mean over demonstrations. dH: the change of the
    policy's mean entropy on the tokens of each loss from step to step, smoothed with `decay` (`EntropyBalance`; the
    smoothing and cap 5 are a third party's). accuracy_shift: demonstrations weigh cap^(1 - 2 accuracy) by their
    prompt's pass rate; the paper's formula is not public, this is the same third party's, and off by default.
    """
    policy = PolicyTerm(
        Source.ROLLOUTS,
        denominator=Old(),
        advantage=GroupRelative(std=std),
        mask=Clip(low=clip_low, high=clip_high) if clip else Unmasked(),
        aggregation=SequenceMean(),
    )
    imitation = PolicyTerm(
        Source.DEMONSTRATIONS,
        advantage=AccuracyShift(cap) if accuracy_shift else Constant(),
        aggregation=SequenceMean(),
        weight=EntropyBalance(cap=cap, decay=decay),
        name="imitation",
    )
    return Algorithm("red", (policy, imitation))
