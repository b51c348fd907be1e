"""Online DPO: preferences between the policy's own rollouts, by their rewards."""

from __future__ import annotations

from typing import Literal

from posttrain.estimator import Algorithm, Plan, PolicyTerm, Source
from posttrain.estimator.pairing import BestAgainstWorst
from posttrain.estimator.pairs import PairMean
from posttrain.estimator.preferences import PairPreference


def online_dpo(
    *, loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid", beta: float = 0.1, length_normalised: bool = False
) -> Algorithm:
    """L = mean over prompts of l(m), m = log pi(y_w)/pi_ref(y_w) - log pi(y_l)/pi_ref(y_l) (arXiv 2402.04792, alg. 1).

    y_w and y_l are the rollouts of the highest and the lowest reward of a prompt's group (the paper: of two, by an
    annotator; eq. 1 for l, which `dpo` explains; beta 0.1 as in TRL's OnlineDPO). A prompt whose rewards are all equal
    gives no pair, where TRL takes the first as preferred. A rollout may be an episode: its log pi/pi_ref is summed over
    its actions in all turns, so that pairs are of whole trajectories (GRAPE's and TPO's).
    """
    preference = PolicyTerm(
        Source.PREFERENCES,
        advantage=PairPreference(loss, beta, length_normalised=length_normalised),
        aggregation=PairMean(),
        name="preference",
    )
    return Algorithm("online_dpo", (preference,), Plan(pairing=BestAgainstWorst()))
