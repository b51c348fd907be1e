"""MATH-500 (arXiv 2305.20050): 500 problems of the MATH test set."""

from __future__ import annotations

from typing import Unpack

from posttrain.evaluation.asked import Asked, question_benchmark
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec


def math500(**asked: Unpack[Asked]) -> Benchmark:
    """The hub's HuggingFaceH4/MATH-500; solved where math-verify finds the final answer equal to the gold one."""
    return question_benchmark("math500", "HuggingFaceH4/MATH-500", (RewardSpec("math_answer"),), asked, max_tokens=3072)
