"""DR-PO: PPO whose rollouts start inside the demonstrations."""

from __future__ import annotations

from typing import Any, Literal

from posttrain.algorithms.ppo_presets import PpoConstants
from posttrain.algorithms.presets import Constants, filled
from posttrain.estimator import Algorithm, Plan, PolicyTerm, Source
from posttrain.estimator.denominators import Old

Form = Literal["gae", "group_relative"]

FORMS: dict[Form, Constants] = {
    "gae": PpoConstants(kl_weight=0.05, kl_estimator="k1", kl_place="reward", value_weight=0.1),
    "group_relative": Constants(aggregation="token_mean", kl_weight=0.05, kl_estimator="k1", kl_place="reward"),
}
"""The constants of the authors' code; without a critic, as far as they apply."""


def dr_po(
    *,
    reset_probability: float = 1.0,
    advantage: Form = "gae",
    clip_low: float | None = None,
    clip_high: float | None = None,
    kl_weight: float | None = None,
    gamma: float | None = None,
    lambda_: float | None = None,
    whiten: bool | None = None,
    value_clip: float | None = None,
    value_weight: float | None = None,
    std: bool | None = None,
) -> Algorithm:
    """J = 1/N_tokens sum_i sum_{t > k_i} min(r A, clip(r) A), each y_i begins with k_i tokens of the demonstration.

    (arXiv 2404.08495, sec. 4, alg. 1, with PPO as the oracle.) With reset_probability (beta; 1 in the paper, 0 is PPO)
    k is uniform in 1 .. length - 1 of the prompt's demonstration, else 0; what is given has no gradient, what is graded
    is both. advantage "gae": a critic and GAE, as in the paper (which also regresses the critic on given tokens, here
    only on the policy's own); "group_relative": the group as baseline, without a critic. A setting left out has the
    code's value: clip 0.2, kl_weight 0.05 in the reward (k1), gamma 1, lambda_ 0.95, whiten True, value_clip 0.2,
    value_weight 0.1; std True divides the group's advantage by its deviation.
    """
    explicit: dict[str, Any] = {
        name: value for name, value in locals().items() if name not in ("reset_probability", "advantage")
    }
    if not 0 <= reset_probability <= 1:
        raise ValueError(f"reset_probability is {reset_probability}; allowed: 0 to 1")
    constants = FORMS[advantage]
    unread = (
        ("std",)
        if isinstance(constants, PpoConstants)
        else ("gamma", "lambda_", "whiten", "value_clip", "value_weight")
    )
    for name in unread:
        if explicit.pop(name) is not None:
            raise ValueError(f"{name} is set, but advantage {advantage!r} does not read it; leave it out")
    constants = filled(constants, explicit)
    policy = PolicyTerm(
        Source.ROLLOUTS,
        denominator=Old(),
        advantage=constants.advantage(),
        mask=constants.mask(),
        aggregation=constants.mean(),
    )
    if not isinstance(constants, PpoConstants):
        return Algorithm("dr_po", (policy,), Plan(reset_probability=reset_probability))
    plan = Plan(reset_probability=reset_probability, critic="state")
    return Algorithm("dr_po", (policy, constants.value_term()), plan)
