"""OSP: the policy judges its own completions in pairs and learns from how sure it is."""

from __future__ import annotations

from typing import Literal

from posttrain.estimator import Algorithm, Plan, PolicyTerm, Source
from posttrain.estimator.pairing import Judge, Ranked
from posttrain.estimator.pairs import PairMean
from posttrain.estimator.preferences import PairPreference


def osp(
    *,
    beta: float = 0.1,
    judge: Literal["self", "rewards"] = "self",
    judge_template: str = Judge.template,
    judge_labels: tuple[str, str] = Judge.labels,
    pairs: Literal["mirrored", "adjacent", "all"] = "mirrored",
    hard_threshold: float | None = None,
    reward_scale: float = 1.0,
) -> Algorithm:
    """L = -mean over pairs of [p log sigma(h) + (1 - p) log sigma(-h)] (arXiv 2405.14103, sec. 3; reconstruction).

    h = beta (log pi(y_1)/pi_ref(y_1) - log pi(y_2)/pi_ref(y_2)), and p the policy's own probability that y_1 is better:
    softmax over judge_labels after judge_template, averaged over both orders of the two. At p 0 or 1 it is DPO; at 0.5
    it pulls h to 0. Each prompt has rollout.group_size completions, ranked by their mean p and paired across ranks
    (`Ranked` on pairs and hard_threshold, for labels of 0 and 1 instead). judge "rewards": p = sigma((R_1 - R_2) /
    reward_scale) of graders' rewards. The abstract is all that was at hand: loss, strength, pairs and beta are ours.
    """
    asked = Judge(judge_template, judge_labels)
    preference = PolicyTerm(
        Source.PREFERENCES, advantage=PairPreference(beta=beta), aggregation=PairMean(), name="preference"
    )
    pairing = Ranked(pairs, hard_threshold, asked if judge == "self" else None, reward_scale)
    return Algorithm("osp", (preference,), Plan(pairing=pairing))
