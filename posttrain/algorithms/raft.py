"""Rejection sampling: supervised fine-tuning on the policy's own best rollouts."""

from __future__ import annotations

from typing import Literal

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.aggregation import SequenceMean, TokenMean
from posttrain.estimator.best_of_n import BestOfNDivergence
from posttrain.estimator.denominators import Current, Old
from posttrain.estimator.filters import BestOfGroup, Solved
from posttrain.estimator.masks import Clip, Unmasked


def raft(
    *,
    keep: Literal["solved", "best"] = "solved",
    sequence_normalised: bool = False,
    clip: bool = False,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Algorithm:
    """L = -1/N_tokens sum_{i kept} sum_t log pi(y_it | x_i, y_i<t), N_tokens counted over the kept rollouts.

    keep "solved": every solved rollout (arXiv 2504.11343, sec. 2, where rewards are 0 and 1). keep "best": the
    rollouts of the highest reward of each prompt (RAFT, arXiv 2304.06767, sec. 3; all of them where they tie). With
    sequence_normalised, each kept sequence's token mean counts once. clip: min(r, clip(r)), r = pi / pi_old, in place
    of log pi, for several updates from one rollout phase (RAFT++, arXiv 2504.11343, sec. 2). With "best", the metrics
    say how far the best lie from what was sampled (`BestOfNDivergence`).
    """
    term = PolicyTerm(
        Source.ROLLOUTS,
        denominator=Old() if clip else Current(),
        mask=Clip(low=clip_low, high=clip_high) if clip else Unmasked(),
        aggregation=SequenceMean() if sequence_normalised else TokenMean(),
        where=Solved() if keep == "solved" else BestOfGroup(),
        name="imitation",
    )
    return Algorithm("raft", (term, BestOfNDivergence()) if keep == "best" else (term,))
