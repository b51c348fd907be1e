"""GSM8K (arXiv 2110.14168): grade-school word problems, 1,319 in the test split."""

from __future__ import annotations

from typing import Unpack

from posttrain.evaluation.asked import Asked, question_benchmark
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec


def gsm8k(**asked: Unpack[Asked]) -> Benchmark:
    """The test split of the hub's openai/gsm8k; solved where the completion's final number is the gold one."""
    return question_benchmark("gsm8k", "openai/gsm8k", (RewardSpec("gsm8k"),), asked, subset="main", problem="question")
