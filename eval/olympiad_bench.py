"""OlympiadBench (arXiv 2402.14008): its English mathematics problems with open answers in text."""

from __future__ import annotations

from typing import Unpack

from posttrain.evaluation.asked import COMPETITION, Asked, question_benchmark
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec


def olympiad_bench(**asked: Unpack[Asked]) -> Benchmark:
    """The hub's math-ai/olympiadbench; solved where math-verify finds the final answer equal to the gold one."""
    return question_benchmark(
        "olympiad_bench",
        "math-ai/olympiadbench",
        (RewardSpec("math_answer"),),
        asked,
        problem="question",
        answer="final_answer",
        **COMPETITION,
    )
