"""Plays a benchmark with an engine and counts what was solved."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from posttrain.data.chat import stop_token_ids
from posttrain.data.examples import Example
from posttrain.data.sources import load_source
from posttrain.evaluation.benchmark import Benchmark
from posttrain.evaluation.evaluation import Completed, Evaluation
from posttrain.evaluation.model import Opened
from posttrain.evaluation.partner import make_environment
from posttrain.evaluation.samples import Played, Samples
from posttrain.reward import Graded, Grader, Measured
from posttrain.rollout.collector import Collector, check_failure_rate
from posttrain.rollout.engine import Engine, Sampling
from posttrain.trajectory import Group, Trajectory


def load_items(benchmark: Benchmark, limit: int | None = None) -> Sequence[Example]:
    """The benchmark's items, the first `limit` of them; DataError where there are none."""
    source = benchmark.source if limit is None else benchmark.source.model_copy(update={"limit": limit})
    items = load_source(source, "prompts")
    return items if benchmark.prepare is None else [benchmark.prepare(item) for item in items]


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
    samples_file: Samples | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Play every item `samples` times and grade the completions.

    grader: of the benchmark's rewards. items: those of `load_items`, where they are loaded already; limit: only the
    first so many. samples: None is the benchmark's own. stop_ids: None reads them from the tokenizer. Ungraded
    completions are left out of the rate and counted; TooManyFailuresError where they are more than max_failure_rate
    of those played. samples_file: where completions are written as they come, but for items beside which the engine
    failed, so that they are tried another time; what it holds is not played again.
    on_progress is called with the number of items played and of all items.
    """
    benchmark = benchmark.with_samples(samples)
    items = list(load_items(benchmark, limit) if items is None else items)[:limit]
    grader.check_columns(items[0].columns)
    ends = stop_token_ids(tokenizer) if stop_ids is None else stop_ids
    environment = make_environment(benchmark.environment, benchmark.partner, Opened(engine, tokenizer, ends))
    sampling = _sampling(benchmark, ends)
    collector = Collector(
        engine,
        environment,
        grader,
        tokenizer,
        sampling,
        attempts,
        limits=benchmark.episode,
        listed_actions=benchmark.listed_actions,
    )
    play = partial(_play, collector, benchmark, seed, max_failure_rate, [])
    whole = on_progress is None and samples_file is None
    at_once = len(items) if whole else max(1, _SAMPLES_AT_ONCE // benchmark.samples)
    completions: list[Completed] = []
    seconds = 0.0
    with closing(environment):
        for first in range(0, len(items), at_once):
            asked = items[first : first + at_once]
            made = None if samples_file is None else samples_file.find(first, asked)
            if made is None:
                made = play(asked)
                if samples_file is not None and not any(map(_is_engine_failure, made.completions)):
                    samples_file.add(first, asked, made)
            completions += made.completions
            seconds += made.seconds
            if on_progress is not None:
                on_progress(first + len(asked), len(items))
    return Evaluation(benchmark.name, benchmark.samples, tuple(completions), seconds)


def _sampling(benchmark: Benchmark, stop_ids: frozenset[int]) -> Sampling:
    return Sampling(benchmark.max_tokens, stop_ids, benchmark.temperature, benchmark.top_p, benchmark.top_k)


def _play(
    collector: Collector,
    benchmark: Benchmark,
    seed: int,
    max_failure_rate: float,
    groups: list[Group],
    items: list[Example],
) -> Played:
    """Play and grade some items; `groups` gathers all that was played, for the failure rate."""
    start = time.perf_counter()
    played = collector.collect(items, benchmark.samples, seed)
    groups += played
    check_failure_rate(groups, max_failure_rate)
    made = [completed(one, benchmark.outcome, benchmark.by) for group in played for one in group.trajectories]
    return Played(tuple(made), time.perf_counter() - start)


_SAMPLES_AT_ONCE = 256


def _is_engine_failure(one: Completed) -> bool:
    return one.error is not None and one.error.startswith("engine: ")


def completed(trajectory: Trajectory, outcome: str, by: str | None = None) -> Completed:
    """What an evaluation keeps of a graded trajectory; outcome: the reward whose answer counts; by: `Benchmark.by`."""
    value = trajectory.rewards.get(outcome)
    reads = isinstance(value, Graded) and value.reads_answer
    answer = value.answer if isinstance(value, Graded) else None
    return Completed(
        id=trajectory.prompt_id,
        completion=trajectory.completion,
        num_tokens=trajectory.num_completion_tokens,
        reward=trajectory.reward,
        solved=trajectory.solved,
        stop_reason=trajectory.stop_reason,
        error=trajectory.error,
        prompt=trajectory.prompt,
        answer=answer,
        extracted=answer is not None if reads else None,
        counts=value.counts if isinstance(value, Measured) else {},
        part="" if by is None else str(trajectory.columns[by]),
    )
