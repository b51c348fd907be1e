"""SimPO: preferences by mean log-likelihood and a target margin, without a reference model."""

from __future__ import annotations

from typing import Literal

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.pairs import PairMean
from posttrain.estimator.preferences import ReferenceFreePreference, imitate_chosen


def simpo(
    *,
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
    beta: float = 2.0,
    gamma: float = 1.0,
    length_normalised: bool = True,
    sft_weight: float = 0.0,
) -> Algorithm:
    """L = mean over pairs of -log sigma(beta/|y_w| log pi(y_w) - beta/|y_l| log pi(y_l) - gamma).

    arXiv 2405.14734, eq. 6. beta 2, gamma 1: the authors' Llama-3-8B base run (beta 2.0, gamma/beta 0.5).
    length_normalised False, gamma 0 and sft_weight above 0 give CPO (arXiv 2401.08417), with the mean over tokens
    instead of the sum in its likelihood of the chosen side.
    """
    preference = PolicyTerm(
        Source.PREFERENCES,
        advantage=ReferenceFreePreference(loss, beta, gamma, length_normalised),
        aggregation=PairMean(),
        name="preference",
    )
    return Algorithm("simpo", (preference, *imitate_chosen(sft_weight)))
