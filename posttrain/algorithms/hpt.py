"""Hybrid post-training: per prompt, reinforcement learning where the policy can solve it, imitation where it cannot."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import GroupRelative
from posttrain.estimator.aggregation import FixedLength, SequenceMean
from posttrain.estimator.denominators import Old, One
from posttrain.estimator.likelihoods import Shaped
from posttrain.estimator.masks import Clip, Unmasked
from posttrain.estimator.parts import Weight
from posttrain.estimator.weights import SolvedGate, SolvedTable


def hpt(
    *,
    gate: int = 0,
    off_policy_gate: int | None = None,
    clip: bool = True,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    std: bool = False,
    length: int = 8192,
    demonstration_weight: float = 1.0,
    gamma: float = 0.1,
) -> Algorithm:
    """L = 1[num_solved > gate] L_RL + 1[num_solved <= gate] demonstration_weight L_SFT (arXiv 2509.04419, eq. 10-13).

    L_RL = -1/n sum_i 1/length sum_t min(r A, clip(r) A) with A_i = R_i - mean_group R (Dr. GRPO), and
    L_SFT = -1/|y*| sum_t log pi(y*_t | x, y*_<t) on the prompt's demonstration; both are means over all prompts of
    the step. The paper prints no length normaliser and divides A by the standard deviation; its code divides by 8192
    (the longest completion), drops the deviation and the clip: `length`, `std`, `clip`. The gate compares the integer
    number of solved rollouts: 0 for Qwen, 2 of 8 for LLaMA. off_policy_gate, as in the code (its table 5): where
    gate < num_solved <= off_policy_gate the demonstration alone is learnt from, off-policy, instead of the rollouts:
    -1/length sum_t f(pi), f(x) = x / (x + gamma) (reconstruction: its advantage, alone in its group, is 1).
    """
    off = gate if off_policy_gate is None else off_policy_gate
    if off < gate:
        raise ValueError(f"off_policy_gate is {off}; allowed: at least gate = {gate}")
    weights = SolvedGate(off, above=True), SolvedGate(gate, above=False, value=demonstration_weight)
    between = SolvedTable((0.0,) * (gate + 1) + (1.0,) * (off - gate) + (0.0,)) if off > gate else None
    mask = Clip(low=clip_low, high=clip_high) if clip else Unmasked()
    return Algorithm("hpt", hybrid_terms(*weights, between, mask=mask, std=std, length=length, gamma=gamma))


def hybrid_terms(
    rollouts: Weight, demonstrations: Weight, off_policy: Weight | None, *, mask: Clip | Unmasked, std: bool,
    length: float, gamma: float,
) -> tuple[PolicyTerm, ...]:  # fmt: skip
    """HPT's terms with the given coefficients: L_RL, L_SFT, and where wanted the off-policy term."""
    policy = PolicyTerm(
        Source.ROLLOUTS,
        denominator=Old(),
        advantage=GroupRelative(std=std),
        mask=mask,
        aggregation=FixedLength(length),
        weight=rollouts,
    )
    imitation = PolicyTerm(Source.DEMONSTRATIONS, aggregation=SequenceMean(), weight=demonstrations, name="imitation")
    if off_policy is None:
        return policy, imitation
    guided = PolicyTerm(
        Source.DEMONSTRATIONS,
        denominator=One(),
        likelihood=Shaped(gamma),
        aggregation=FixedLength(length),
        weight=off_policy,
        name="guided",
    )
    return policy, imitation, guided
