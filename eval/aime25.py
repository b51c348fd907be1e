"""AIME 2025: the 30 problems of an American high-school competition, whose answers are whole numbers."""

from __future__ import annotations

from typing import Unpack

from posttrain.evaluation.asked import COMPETITION, Asked, question_benchmark
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec


def aime25(**asked: Unpack[Asked]) -> Benchmark:
    """The hub's math-ai/aime25, 32 completions a problem (avg@32)."""
    return question_benchmark(
        "aime25", "math-ai/aime25", (RewardSpec("math_answer"),), asked, samples=32, **COMPETITION
    )
