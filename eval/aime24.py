"""AIME 2024: the 30 problems of an American high-school competition, whose answers are whole numbers."""

from __future__ import annotations

from typing import Unpack

from posttrain.evaluation.asked import COMPETITION, Asked, question_benchmark
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec


def aime24(**asked: Unpack[Asked]) -> Benchmark:
    """The hub's HuggingFaceH4/aime_2024, 32 completions a problem (avg@32)."""
    return question_benchmark(
        "aime24",
        "HuggingFaceH4/aime_2024",
        (RewardSpec("math_answer"),),
        asked,
        split="train",
        samples=32,
        **COMPETITION,
    )
