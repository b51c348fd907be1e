"""DPO and its relatives: preferences as a classification of which completion the policy favours over the reference."""

from __future__ import annotations

from typing import Literal

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.pairs import PairMean
from posttrain.estimator.preferences import PairPreference, imitate_chosen

Loss = Literal["sigmoid", "hinge", "ipo", "exo", "discopop", "nca", "bco", "sppo", "apo_zero", "apo_down"]


def dpo(
    *,
    loss: Loss = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    robust: bool = False,
    length_normalised: bool = False,
    sft_weight: float = 0.0,
    loss_constant: float | None = None,
    divergence: Literal["reverse_kl", "forward_kl", "js"] = "reverse_kl",
) -> Algorithm:
    """L = mean over pairs of l(m), m = log pi(y_w)/pi_ref(y_w) - log pi(y_l)/pi_ref(y_l) (arXiv 2305.18290, eq. 7).

    loss "sigmoid": l = -log sigma(beta m), beta 0.1 as in the paper (app. B). "hinge": max(0, 1 - beta m) (RSO, arXiv
    2309.06657). "ipo": (m - 1/(2 beta))^2 (arXiv 2310.12036, eq. 17, tau = beta); the paper sums log-ratios, its
    authors' runs and TRL take their mean over tokens: length_normalised. The others, some of them functions of each
    side's log-ratio, stand with their papers in `pair_losses.LOSSES`; loss_constant is exo's epsilon (1e-3) and
    discopop's tau (0.05). divergence: to the reference, f-DPO (arXiv 2309.16240). label_smoothing: conservative DPO,
    or with `robust` the unbiased form (arXiv 2403.00409). sft_weight: RPO's alpha (arXiv 2404.19733, eq. 1), times the
    chosen side's mean negative log-likelihood. A reward between 0 and 1 is a soft preference.
    """
    preference = PolicyTerm(
        Source.PREFERENCES,
        advantage=PairPreference(loss, beta, label_smoothing, robust, length_normalised, loss_constant, divergence),
        aggregation=PairMean(),
        name="preference",
    )
    return Algorithm("dpo", (preference, *imitate_chosen(sft_weight)))
