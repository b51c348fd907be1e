"""ORPO: imitate the chosen completion and raise its odds over the rejected one, without a reference model."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.pairs import PairMean
from posttrain.estimator.preferences import OddsPreference, imitate_chosen
from posttrain.estimator.weights import Always


def orpo(*, odds_weight: float = 0.1, sft_weight: float = 1.0) -> Algorithm:
    """L = mean over pairs of L_SFT - odds_weight log sigma(log odds(y_w) - log odds(y_l)) (arXiv 2403.07691, eq. 6, 7).

    odds(y) = P / (1 - P) with log P = 1/|y| log pi(y) (eq. 4); L_SFT = -1/|y_w| log pi(y_w), the mean over pairs.
    TRL takes L_SFT over prompt and completion, as a mean over the micro-batch's tokens. odds_weight: the paper's
    lambda, 0.1 for Mistral.
    """
    preference = PolicyTerm(
        Source.PREFERENCES,
        advantage=OddsPreference(),
        aggregation=PairMean(),
        weight=Always(odds_weight),
        name="preference",
    )
    return Algorithm("orpo", (preference, *imitate_chosen(sft_weight)))
