"""GPQA Diamond (arXiv 2311.12022): 198 questions of graduate science with four options."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Unpack

from posttrain.data.examples import Example
from posttrain.data.formats import lettered
from posttrain.evaluation.asked import Asked, continued, question_benchmark
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec

_ORDER = "gpqa"
_ASKED = "Please reason step by step, and put the letter of your answer within \\boxed{}."


def gpqa_diamond(**asked: Unpack[Asked]) -> Benchmark:
    """The hub's Idavidrein/gpqa (behind its terms of use); the options stand in an order drawn from the question."""
    return question_benchmark(
        "gpqa_diamond",
        "Idavidrein/gpqa",
        (RewardSpec("multiple_choice"),),
        asked,
        subset="gpqa_diamond",
        split="train",
        problem="Question",
        answer="Correct Answer",
        template="{problem}",
        prepare=_shuffled,
        max_tokens=8192,
    )


def _shuffled(item: Example) -> Example:
    """The question with its options, and the right one's letter as its answer."""
    columns = item.columns
    options = [columns["Correct Answer"], *(columns[f"Incorrect Answer {number}"] for number in (1, 2, 3))]
    order = random.Random(f"{_ORDER} {columns['problem']}").sample(range(4), 4)
    asked = f"\n\n{lettered([str(options[place]).strip() for place in order])}\n\n{_ASKED}"
    right = "ABCD"[order.index(0)]
    return replace(item, prompt=continued(item.prompt, asked), columns={**columns, "answer": right})
