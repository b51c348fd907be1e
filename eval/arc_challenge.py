"""ARC-Challenge (arXiv 1803.05457): 1,172 questions of grade-school science with options."""

from __future__ import annotations

from typing import Unpack

from posttrain.evaluation.asked import CHOICE, Asked, question_benchmark
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec


def arc_challenge(**asked: Unpack[Asked]) -> Benchmark:
    """The test split of the hub's allenai/ai2_arc; solved where the completion chooses the right letter."""
    return question_benchmark(
        "arc_challenge",
        "allenai/ai2_arc",
        (RewardSpec("multiple_choice"),),
        asked,
        subset="ARC-Challenge",
        problem="question",
        answer="answerKey",
        template=CHOICE,
        columns={"options": "choices.text", "labels": "choices.label"},
    )
