"""Minerva Math (arXiv 2206.14858): 272 undergraduate problems of MIT OpenCourseWare."""

from __future__ import annotations

from typing import Unpack

from posttrain.evaluation.asked import COMPETITION, Asked, question_benchmark
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec


def minerva_math(**asked: Unpack[Asked]) -> Benchmark:
    """The hub's math-ai/minervamath; solved where math-verify finds the final answer equal to the gold one."""
    return question_benchmark(
        "minerva_math", "math-ai/minervamath", (RewardSpec("math_answer"),), asked, problem="question", **COMPETITION
    )
