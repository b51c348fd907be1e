"""HumanEval (arXiv 2107.03374): 164 Python functions to complete, graded by their tests in a sandbox."""

from __future__ import annotations

from typing import Unpack

from posttrain.evaluation.asked import Asked, question_benchmark
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec

_ASKED = (
    "Complete this Python function. Answer with the whole function, its imports with it, in one ```python block."
    "\n\n```python\n{problem}\n```"
)


def humaneval(**asked: Unpack[Asked]) -> Benchmark:
    """The hub's openai/openai_humaneval; solved where every test passes. It needs bubblewrap."""
    return question_benchmark(
        "humaneval",
        "openai/openai_humaneval",
        (RewardSpec("code_tests"),),
        asked,
        problem="prompt",
        answer="canonical_solution",
        template=_ASKED,
        columns={"tests": "test", "given": "prompt"},
    )
