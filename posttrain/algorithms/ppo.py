"""PPO: clipped policy gradient with a critic as its baseline."""

from __future__ import annotations

from typing import Any, Literal

from posttrain.algorithms.ppo_presets import PPO_PRESETS
from posttrain.algorithms.presets import Mean, Preset, filled
from posttrain.estimator import Algorithm
from posttrain.estimator.gae import Per
from posttrain.estimator.importance import Correction
from posttrain.estimator.plan import Plan
from posttrain.estimator.regularisers import Estimator


def ppo(
    *,
    preset: Preset | None = None,
    clip_low: float | None = None,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    gamma: float | None = None,
    lambda_: float | None = None,
    per: Per | None = None,
    whiten: bool | None = None,
    value_clip: float | None = None,
    value_weight: float | None = None,
    aggregation: Mean | None = None,
    kl_weight: float | None = None,
    kl_estimator: Estimator | None = None,
    kl_place: Literal["loss", "reward"] | None = None,
    entropy_weight: float | None = None,
    correction: Correction | None = None,
    correction_cap: float | None = None,
) -> Algorithm:
    """L = -mean_t min(r A, clip(r, 1-clip_low, 1+clip_high) A) + value_weight mean_t 1/2 max((V-R)^2, (V_c-R)^2).

    r = pi / pi_old, A by GAE from the critic's values before the update (arXiv 1707.06347, eq. 7, 9 and 11; arXiv
    1506.02438, eq. 16), whitened over the step if `whiten`; R = A + V_old before that, V_c = V_old + clip(V - V_old,
    value_clip). A setting left out has the preset's value (trl, verl or openrlhf: `ppo_presets`), and without a preset
    clip 0.2 and lambda 0.95 (sec. 6), gamma 1 (arXiv 1909.08593, sec. 2), value_clip 0.2 (their codes).

    per: "token", or "turn" for GAE between turns (`Gae`). dual_clip c > 1: for A < 0 no gradient above r = c; 0: off.
    kl_place: the penalty is a term ("loss": k1, k2 or k3), or lies in every token's reward ("reward", k1).
    entropy_weight: a bonus on the policy's entropy. correction: as in `grpo`. The critic's learning rate and warm-up
    are the recipe's section `critic`.
    """
    explicit: dict[str, Any] = {name: value for name, value in locals().items() if name != "preset"}
    constants = filled(PPO_PRESETS[preset], explicit)
    policy, *others = constants.terms()
    return Algorithm("ppo", (policy, constants.value_term(), *others), Plan(critic="state"))
