"""OREAL's token-level outcome model, trained alone: which tokens decide whether a completion is right."""

from __future__ import annotations

from posttrain.batch import Source
from posttrain.estimator import Algorithm, Plan
from posttrain.estimator.scores import ScoreTerm


def outcome_reward() -> Algorithm:
    """L = -mean over completions of R log p + (1 - R) log(1 - p), p = sigma(mean_t w_t) (arXiv 2502.06781, eq. 12).

    w_t is the score of token t, R whether the recorded trajectory was solved: its column `solved`, or else a reward of
    1. Trajectories are a file's, or the rollouts of a run (its directory). A token's weight is max(2 sigma(w_t) - 1, 0)
    for a solved completion, max(1 - 2 sigma(w_t), 0) for another (eq. 10). In `oreal` the same model is trained beside
    a policy.
    """
    term = ScoreTerm(source=Source.TRAJECTORIES, name="reward")
    return Algorithm("outcome_reward", (term,), Plan(scores=("solved",), reading="mean"))
