"""Hybrid post-training: per prompt, reinforcement learning where the policy can solve it, imitation where it cannot."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import GroupRelative
from posttrain.estimator.aggregation import FixedLength, SequenceMean
from posttrain.estimator.denominators import Old
from posttrain.estimator.masks import Clip, Unmasked
from posttrain.estimator.weights import SolvedGate


def hpt(
    *,
    gate: int = 0,
    clip: bool = True,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    std: bool = False,
    length: int = 8192,
    demonstration_weight: float = 1.0,
) -> Algorithm:
    """L = 1[num_solved > gate] L_RL + 1[num_solved <= gate] demonstration_weight L_SFT (arXiv 2509.04419, eq. 10-13).

    L_RL = -1/n sum_i 1/length sum_t min(r A, clip(r) A) with A_i = R_i - mean_group R (Dr. GRPO), and
    L_SFT = -1/|y*| sum_t log pi(y*_t | x, y*_<t) on the prompt's demonstration; both are means over all prompts of
    the step. The paper prints no length normaliser and divides A by the standard deviation; its code divides by 8192
    (the longest completion), drops the deviation and the clip: `length`, `std`, `clip`. The gate compares the integer
    number of solved rollouts: 0 for Qwen, 2 of 8 for LLaMA.
    """
    mask = Clip(low=clip_low, high=clip_high) if clip else Unmasked()
    policy = PolicyTerm(
        Source.ROLLOUTS,
        denominator=Old(),
        advantage=GroupRelative(std=std),
        mask=mask,
        aggregation=FixedLength(length),
        weight=SolvedGate(gate, above=True),
    )
    imitation = PolicyTerm(
        Source.DEMONSTRATIONS,
        aggregation=SequenceMean(),
        weight=SolvedGate(gate, above=False, value=demonstration_weight),
        name="imitation",
    )
    return Algorithm("hpt", (policy, imitation))
