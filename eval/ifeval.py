"""IFEval (arXiv 2311.07911): 541 prompts with instructions that a program can verify."""

from __future__ import annotations

import importlib.util
from typing import Unpack

from posttrain.errors import MissingDependencyError
from posttrain.evaluation.asked import Asked, question_benchmark
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec


def ifeval(**asked: Unpack[Asked]) -> Benchmark:
    """The hub's google/IFEval; solved where every instruction of the prompt is followed (prompt-level strict accuracy).

    The other three accuracies of section 2.2 stand beside it. It needs the package langdetect.
    """
    if importlib.util.find_spec("langdetect") is None:
        raise MissingDependencyError("benchmark ifeval: langdetect is not installed; pip install 'posttrain[lm-eval]'")
    return question_benchmark(
        "ifeval",
        "google/IFEval",
        (RewardSpec("ifeval"),),
        asked,
        split="train",
        problem="prompt",
        answer="key",
        template="{problem}",
        max_tokens=1280,
    )
