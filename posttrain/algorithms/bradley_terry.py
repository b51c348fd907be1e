"""A Bradley-Terry reward model: a scalar for a completion, from preferences."""

from __future__ import annotations

from posttrain.estimator import Algorithm, Plan
from posttrain.estimator.reward_pairs import BradleyTerry, ComparisonTerm


def bradley_terry(*, margin: float = 1.0, centre: float = 0.0) -> Algorithm:
    """L = mean over pairs of -log sigma(s_w - s_l - margin m) + centre (s_w + s_l)^2 (arXiv 2307.09288, eq. 1 and 2).

    s is a linear function of the last hidden state at a completion's last token; m is the row's column `margin` (0
    where it has none), which `margin` scales: 0 ignores it. centre: the weight of an auxiliary loss that keeps scores
    near 0 (arXiv 2312.09244, sec. 4; TRL's center_rewards_coefficient), 0.01 in TRL's advice. `final/` is a sequence
    classification model of transformers with one label.
    """
    return Algorithm(
        "bradley_terry", (ComparisonTerm(comparison=BradleyTerry(margin, centre)),), Plan(scores=("reward",))
    )
