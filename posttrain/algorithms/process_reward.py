"""A process reward model: how good each step of a completion is, from labels of steps."""

from __future__ import annotations

from posttrain.estimator import Algorithm, Plan
from posttrain.estimator.targets import LogLabel, TargetTerm


def process_reward() -> Algorithm:
    """L = -mean over labelled steps of y log sigma(s) + (1 - y) log(1 - sigma(s)) (arXiv 2312.08935, eq. 2).

    s is the score at the last token of a step (of the last step: at the token that ends the completion), y its label:
    0 or 1, by people (arXiv 2305.20050, sec. 2.6) or by whether one of several continuations is right (eq. 3), or the
    share of them that are (eq. 4); `posttrain label-steps` makes both. Rows are trajectories
    {"prompt", "completions": [a text a step], "labels": [a number, true, false or null a step]}.
    """
    plan = Plan(scores=("correct",), labels="steps", reading="steps")
    return Algorithm("process_reward", (TargetTerm(likelihood=LogLabel()),), plan)
