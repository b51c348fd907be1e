"""AMC 2023: 40 problems of an American high-school competition."""

from __future__ import annotations

from typing import Unpack

from posttrain.evaluation.asked import COMPETITION, Asked, question_benchmark
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec


def amc23(**asked: Unpack[Asked]) -> Benchmark:
    """The hub's math-ai/amc23, 32 completions a problem (avg@32)."""
    return question_benchmark(
        "amc23", "math-ai/amc23", (RewardSpec("math_answer"),), asked, problem="question", samples=32, **COMPETITION
    )
