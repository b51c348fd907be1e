"""Plays a benchmark with an engine and counts what was solved."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from posttrain import catalog
from posttrain.data.chat import stop_token_ids
from posttrain.data.examples import Example
from posttrain.data.sources import load_source
from posttrain.evaluation.benchmark import Benchmark
from posttrain.evaluation.evaluation import Completed, Evaluation
from posttrain.reward import Grader
from posttrain.rollout.collector import Collector, check_failure_rate
from posttrain.rollout.engine import Engine, Sampling
from posttrain.trajectory import Group, Trajectory


def load_items(benchmark: Benchmark, limit: int | None = None) -> Sequence[Example]:
    """The benchmark's items, the first `limit` of them; DataError where there are none."""
    source = benchmark.source if limit is None else benchmark.source.model_copy(update={"limit": limit})
    return load_source(source, "prompts")


def make_grader(benchmark: Benchmark, **limits: Any) -> Grader:
    """A grader of the benchmark's rewards; `limits` as those of `Grader` (workers, deadline_seconds, memory_bytes)."""
    return Grader(benchmark.rewards, **limits)


def evaluate(
    benchmark: Benchmark,
    engine: Engine,
    tokenizer: Any,
    grader: Grader,
    *,
    items: Sequence[Example] | None = None,
    limit: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    stop_ids: frozenset[int] | None = None,
    attempts: int = 2,
    max_failure_rate: float = 0.5,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Play every item `samples` times and grade the completions.

    grader: of the benchmark's rewards. items: those of `load_items`, where they are loaded already; limit: only the
    first so many. samples: None is the benchmark's own. stop_ids: None reads them from the tokenizer. Ungraded
    completions are left out of the rate and counted; TooManyFailuresError where they are more than max_failure_rate
    of those played. on_progress is called with the number of items played and of all items.
    """
    benchmark = benchmark.with_samples(samples)
    items = list(load_items(benchmark, limit) if items is None else items)[:limit]
    grader.check_columns(items[0].columns)
    collector = Collector(
        engine,
        catalog.build("environments", benchmark.environment.name, benchmark.environment.settings),
        grader,
        tokenizer,
        Sampling(
            max_tokens=benchmark.max_tokens,
            stop_token_ids=stop_token_ids(tokenizer) if stop_ids is None else stop_ids,
            temperature=benchmark.temperature,
            top_p=benchmark.top_p,
            top_k=benchmark.top_k,
        ),
        attempts,
    )
    start = time.perf_counter()
    groups: list[Group] = []
    at_once = len(items) if on_progress is None else max(1, _SAMPLES_BETWEEN_REPORTS // benchmark.samples)
    for first in range(0, len(items), at_once):
        groups += collector.collect(items[first : first + at_once], benchmark.samples, seed)
        check_failure_rate(groups, max_failure_rate)
        if on_progress is not None:
            on_progress(len(groups), len(items))
    completions = tuple(_completed(trajectory) for group in groups for trajectory in group.trajectories)
    return Evaluation(benchmark.name, benchmark.samples, completions, time.perf_counter() - start)


_SAMPLES_BETWEEN_REPORTS = 256


def _completed(trajectory: Trajectory) -> Completed:
    return Completed(
        id=trajectory.prompt_id,
        completion=trajectory.completion,
        num_tokens=trajectory.num_completion_tokens,
        reward=trajectory.reward,
        solved=trajectory.solved,
        stop_reason=trajectory.stop_reason,
        error=trajectory.error,
    )
