"""Reasoning Gym (arXiv 2505.24760): generated problems of one of its datasets, graded by the dataset's own scorer."""

from __future__ import annotations

from typing import Any

from posttrain.config.schema import SourceSettings
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec


def reasoning_gym(
    *,
    dataset: str,
    size: int = 500,
    seed: int = 1_000_000_000,
    config: dict[str, Any] | None = None,
    system: str | None = None,
    allow_code_execution: bool = False,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int = 1024,
) -> Benchmark:
    """`size` problems of `dataset`, generated with its settings `config`; solved where its scorer gives 1.0.

    Problem i is drawn from a generator seeded seed + i, so that data of another seed shares problems where the seeds
    are closer than the size: the default seed is out of the reach of training data. system: a system message.
    allow_code_execution: as the reward's.
    """
    return Benchmark(
        name=f"reasoning_gym/{dataset}",
        source=SourceSettings(
            path="reasoning_gym",
            config={**(config or {}), "dataset": dataset, "size": size, "seed": seed},
            system=system,
        ),
        rewards=(RewardSpec("reasoning_gym", settings={"allow_code_execution": allow_code_execution}),),
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
    )
