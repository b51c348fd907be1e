"""MMLU-Pro (arXiv 2406.01574): 12,032 questions of 14 subjects with up to ten options."""

from __future__ import annotations

from typing import Unpack

from posttrain.evaluation.asked import CHOICE, Asked, question_benchmark
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec


def mmlu_pro(**asked: Unpack[Asked]) -> Benchmark:
    """The test split of the hub's TIGER-Lab/MMLU-Pro, asked without examples; solved by the right letter."""
    return question_benchmark(
        "mmlu_pro",
        "TIGER-Lab/MMLU-Pro",
        (RewardSpec("multiple_choice"),),
        asked,
        problem="question",
        template=CHOICE,
        max_tokens=2048,
    )
