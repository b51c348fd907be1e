"""KTO: completions that are desirable or not, valued against a reference point as people value gains and losses."""

from __future__ import annotations

from typing import Literal

from posttrain.estimator import Algorithm, Plan, PolicyTerm, Source
from posttrain.estimator.aggregation import FixedLength
from posttrain.estimator.prospect import ProspectValue


def kto(
    *,
    loss: Literal["kto", "apo_zero"] = "kto",
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Algorithm:
    """L = mean over completions of lambda_y - v(x, y) (arXiv 2402.01306, eq. 8), s = sum_t log pi/pi_ref:

    v = desirable_weight sigma(beta (s - z0)) for a desirable completion, undesirable_weight sigma(beta (z0 - s)) for
    another; lambda_y is that weight. z0 = max(0, mean of sum_t log pi/pi_ref over prompts with the completion of
    another) estimates KL(pi || pi_ref), without gradient, over the whole step (sec. 4.1). beta 0.1 and weights of 1 as
    in the paper (app. C); with n_d desirable and n_u other completions, it advises desirable_weight n_d /
    (undesirable_weight n_u) between 1 and 3/2 (eq. 9). A pair counts as one completion of each kind. loss "apo_zero":
    z0 = 0 (arXiv 2408.06266).
    """
    anchored = loss == "kto"
    term = PolicyTerm(
        Source.PREFERENCES,
        advantage=ProspectValue(beta, desirable_weight, undesirable_weight, anchored),
        aggregation=FixedLength(length=1),
        name="prospect",
    )
    return Algorithm("kto", (term,), Plan(mismatched=anchored))
