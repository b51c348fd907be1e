"""MBPP, sanitized (arXiv 2108.07732): 257 short Python problems, graded by their tests in a sandbox."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from posttrain.data.examples import Example
from posttrain.evaluation.asked import Asked, continued, question_benchmark
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec

_ASKED = "{problem} Answer with the function in one ```python block.\n\nIt must pass these tests:\n"


def mbpp(**asked: Unpack[Asked]) -> Benchmark:
    """The test split of the hub's google-research-datasets/mbpp; solved where all tests pass. It needs bubblewrap."""
    return question_benchmark(
        "mbpp",
        "google-research-datasets/mbpp",
        (RewardSpec("code_tests"),),
        asked,
        subset="sanitized",
        problem="prompt",
        answer="code",
        template=_ASKED,
        prepare=_with_tests,
    )


def _with_tests(item: Example) -> Example:
    """The problem with its tests, and these with their imports as what grades it."""
    tests = list(item.columns["test_list"])
    columns = {**item.columns, "tests": [*item.columns["test_imports"], *tests]}
    return replace(item, prompt=continued(item.prompt, "\n".join(tests)), columns=columns)
