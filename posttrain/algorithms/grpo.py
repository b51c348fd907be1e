"""GRPO: clipped policy gradient with the group as its baseline."""

from __future__ import annotations

from posttrain.algorithms.presets import Mean, Place, Preset, resolve
from posttrain.estimator import Algorithm
from posttrain.estimator.importance import Correction
from posttrain.estimator.regularisers import Estimator


def grpo(
    *,
    preset: Preset | None = None,
    clip_low: float | None = None,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    std: bool | None = None,
    aggregation: Mean | None = None,
    kl_weight: float | None = None,
    kl_estimator: Estimator | None = None,
    kl_place: Place | None = None,
    entropy_weight: float | None = None,
    correction: Correction | None = None,
    correction_cap: float | None = None,
) -> Algorithm:
    """J = 1/G sum_i 1/|y_i| sum_t { min(r A, clip(r, 1-clip_low, 1+clip_high) A) - kl_weight k3(pi, pi_ref) }.

    r = pi / pi_old, A_i = (R_i - mean_group R) / std_group R (arXiv 2402.03300, eq. 3, 4 and sec. 4.1.2). A setting
    left out has the preset's value, and without a preset the paper's: clip 0.2 (not stated there; PPO's), kl_weight
    0.04 (sec. 4.2; 0 needs no reference model), k3, sequence_mean, everything else off. `preset` (not "as", which is
    a keyword of Python) names the peer whose defaults are meant: trl, verl or openrlhf (`presets`).

    dual_clip c > 1: for A < 0 no gradient above r = c (arXiv 1912.09729: 3); 0: off. std False: no division.
    kl_estimator: k1, k2 or k3 (`ReferenceKL`). kl_place: the penalty is a term ("loss"), lies in the reward before the
    group's statistics ("reward", k1) or after them, per token ("return", k1). entropy_weight: a bonus on the policy's
    entropy. correction: importance weights from sampler to trainer, bounded by correction_cap (`SamplerCorrection`).
    """
    constants = resolve(
        preset,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        std=std,
        aggregation=aggregation,
        kl_weight=kl_weight,
        kl_estimator=kl_estimator,
        kl_place=kl_place,
        entropy_weight=entropy_weight,
        correction=correction,
        correction_cap=correction_cap,
    )
    return Algorithm("grpo", constants.terms())
