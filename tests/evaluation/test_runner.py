"""Benchmarks played with the real engine, collector and reward workers; the reward's verdicts stand in the rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.schema import SourceSettings
from posttrain.errors import DataError, RecipeError, TooManyFailuresError
from posttrain.evaluation.benchmark import Benchmark
from posttrain.evaluation.runner import evaluate, load_items, make_grader
from posttrain.reward import Grader, RewardSpec
from posttrain.rollout.transformers_engine import TransformersEngine
from tests.tiny import tiny_model

REWARD = '''
def by_column(completion, verdict):
    """The row's verdict, whatever was said."""
    if verdict == "raise":
        raise ArithmeticError("as the row asks")
    return float(verdict == "solved")
'''
VERDICTS = ("solved", "wrong", "wrong", "raise", "solved", "solved")


@pytest.fixture(scope="module")
def sampler() -> tuple[TransformersEngine, Any]:
    """An engine over a tiny random model, and its tokenizer."""
    model, tokenizer = tiny_model(max_position_embeddings=64)
    return TransformersEngine(model, dtype="float32"), tokenizer


@pytest.fixture
def benchmark_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a benchmark over rows with these verdicts."""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "by_column.py").write_text(REWARD)
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))

    def make(verdicts: tuple[str, ...] = VERDICTS, **settings: Any) -> Benchmark:
        rows = [{"prompt": f"{number}?", "verdict": verdict} for number, verdict in enumerate(verdicts)]
        data = tmp_path / "items.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Benchmark(
            "verdicts",
            SourceSettings(path=str(data), chat=True),
            (RewardSpec("by_column"),),
            **({"max_tokens": 5} | settings),
        )

    return make


@pytest.fixture
def grader(benchmark_of: Any) -> Iterator[Grader]:
    with make_grader(benchmark_of(), workers=1) as grader:
        yield grader


def test_outcomes_are_counted_and_ungraded_ones_left_out(benchmark_of: Any, sampler: Any, grader: Grader) -> None:
    result = evaluate(benchmark_of(), *sampler, grader)
    assert [one.solved for one in result.completions] == [True, False, False, None, True, True]
    assert (result.n, result.num_solved, result.num_ungraded) == (6, 3, 1)
    assert result.pass_rate == pytest.approx(3 / 5)
    assert "ArithmeticError" in (result.first_error or "")
    assert grader.failures.total() == 1
    assert [one.id for one in result.completions] == [item.id for item in load_items(benchmark_of())]
    assert result.num_truncated == sum(one.num_tokens == 5 for one in result.completions)
    assert result.seconds > 0


def test_the_values_of_a_column_have_rates_of_their_own(benchmark_of: Any, sampler: Any, grader: Grader) -> None:
    parts = evaluate(benchmark_of(by="verdict"), *sampler, grader).parts
    assert {name: (part.n, part.num_solved) for name, part in parts.items()} == {
        "solved": (3, 3),
        "wrong": (2, 0),
        "raise": (1, 0),
    }


def test_greedy_repeats_under_every_seed(benchmark_of: Any, sampler: Any, grader: Grader) -> None:
    first, second = (evaluate(benchmark_of(), *sampler, grader, seed=seed) for seed in (0, 1))
    assert first.completions == second.completions


def test_samples_differ_and_repeat_with_their_seed(benchmark_of: Any, sampler: Any, grader: Grader) -> None:
    benchmark = benchmark_of(("solved", "wrong"), temperature=1.0)
    first, again, other = (evaluate(benchmark, *sampler, grader, samples=8, seed=seed) for seed in (0, 0, 1))
    assert first.completions == again.completions != other.completions
    assert len({one.completion for one in first.completions[:8]}) > 1
    assert first.counts == [(8, 8), (8, 0)]
    assert first.pass_rate == 0.5
    assert first.pass_at == {1: 0.5, 2: 0.5, 4: 0.5, 8: 0.5}


def test_limit_takes_the_first_items(benchmark_of: Any, sampler: Any, grader: Grader) -> None:
    whole = evaluate(benchmark_of(), *sampler, grader)
    assert evaluate(benchmark_of(), *sampler, grader, limit=2).completions == whole.completions[:2]
    items = load_items(benchmark_of())
    assert evaluate(benchmark_of(), *sampler, grader, items=items, limit=2).completions == whole.completions[:2]


def test_progress_is_reported_and_changes_nothing(benchmark_of: Any, sampler: Any, grader: Grader) -> None:
    benchmark = benchmark_of(("solved",) * 300, max_tokens=2, temperature=1.0)
    seen: list[tuple[int, int]] = []
    result = evaluate(benchmark, *sampler, grader, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(256, 300), (300, 300)]
    assert result.completions == evaluate(benchmark, *sampler, grader).completions


def test_too_many_failures_stop_with_the_cause(benchmark_of: Any, sampler: Any, grader: Grader) -> None:
    with pytest.raises(TooManyFailuresError, match="ArithmeticError"):
        evaluate(benchmark_of(("raise", "raise", "solved")), *sampler, grader)


def test_a_missing_column_is_said_before_sampling(
    benchmark_of: Any, sampler: Any, tmp_path: Path, grader: Grader
) -> None:
    benchmark = benchmark_of()
    (tmp_path / "items.jsonl").write_text('{"prompt": "1?", "verdikt": "solved"}\n')
    with pytest.raises(DataError, match="did you mean 'verdikt'"):
        evaluate(benchmark, *sampler, grader)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 4}, "temperature"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"samples": 0}, "samples is 0"),
    ],
)
def test_a_benchmark_checks_its_numbers(benchmark_of: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        benchmark_of(**settings)
    with pytest.raises(RecipeError, match="repeats one greedy"):
        benchmark_of().with_samples(2)
