"""MATH-500 (arXiv 2305.20050): 500 problems of the MATH test set."""

from __future__ import annotations

from posttrain.config.schema import SourceSettings
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec

TEMPLATE = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}."


def math500(
    *,
    data: str | None = None,
    problem: str = "problem",
    template: str = TEMPLATE,
    system: str | None = None,
    chat: bool = True,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int = 3072,
) -> Benchmark:
    """The hub's HuggingFaceH4/MATH-500, or a local file `data` with a column of problems and a column `answer`.

    Solved where math-verify finds the completion's final answer equal to `answer`. problem: the column with the
    problems. template: makes the prompt of it. chat: ask in the tokenizer's chat template; system: a system message.
    """
    return Benchmark(
        name="math500",
        source=SourceSettings(
            path=data or "HuggingFaceH4/MATH-500",
            split="train" if data else "test",
            columns={"problem": problem},
            template=template,
            system=system,
            chat=chat,
        ),
        rewards=(RewardSpec("math_answer"),),
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
    )
