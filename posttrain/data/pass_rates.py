"""Pass rates of prompts that are known before training: of a former run's rollouts, or a column of the data."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.data.examples import Example, Examples
from posttrain.data.recorded import scan, shards
from posttrain.data.trajectories import rollout_files
from posttrain.errors import DataError, did_you_mean


def of_run(path: str, examples: Examples) -> list[float | None]:
    """Of each example, the share of its graded rollouts in the run directory `path` that were solved; None: no rollout.

    Prompts are told by their ids, which name source and row. The reference's rollouts do not count. DataError where the
    run left no graded rollouts, or none of these prompts.
    """
    graded: defaultdict[str, int] = defaultdict(int)
    solved: defaultdict[str, int] = defaultdict(int)
    for row in _rollouts(Path(path).expanduser()):
        if row["reward"] is not None and row.get("by", "policy") == "policy":
            graded[row["prompt_id"]] += 1
            solved[row["prompt_id"]] += row["solved"] is True
    if not graded:
        raise DataError(f"{path}: no graded rollouts; allowed: the directory of a run that trained on rollouts")
    names = [examples[index].id for index in range(len(examples))]
    if not graded.keys() & set(names):
        raise DataError(
            f"{path}: its prompts ({next(iter(graded))}, ...) are not those of {examples.source} ({names[0]}, ...); "
            "allowed: a run with the same source of prompts, written in the same way"
        )
    return [solved[name] / graded[name] if name in graded else None for name in names]


def of_column(column: str, examples: Examples) -> list[float | None]:
    """The numbers in a column, None where it is empty. DataError where there is no such column, or another value."""
    return [_rate(examples[index], column) for index in range(len(examples))]


def within(
    examples: Examples, rates: list[float | None], low: float, high: float
) -> tuple[Examples, Mapping[int, float], str]:
    """The examples with a rate in [low, high] or an unknown one; the known rates by row; and both in words."""
    kept = [row for row, rate in enumerate(rates) if rate is None or low <= rate <= high]
    unknown = sum(rate is None for rate in rates)
    text = (
        f"curriculum: {len(kept):,} of {len(rates):,} prompts, with recorded pass rates from {low:g} to {high:g}"
        + f" ({unknown:,} without one)" * bool(unknown)
    )
    if not kept:
        raise DataError(f"{text}: nothing is left of {examples.source}; allowed: wider bounds")
    found = {new: rate for new, rate in enumerate(rates[row] for row in kept) if rate is not None}
    return examples.only(kept), found, text


def _rollouts(path: Path) -> Iterator[Mapping[str, Any]]:
    """Every stored rollout of a run; those in `rollouts/` where it kept no others."""
    stored = shards(path)
    if stored:
        yield from (row for _, row in scan(stored, ("prompt_id", "by", "reward", "solved")))
        return
    for file in rollout_files(path):
        yield from map(json.loads, file.read_text().splitlines())


def _rate(example: Example, column: str) -> float | None:
    if column not in example.columns:
        raise DataError(f"{example.id} has no column {column!r}; {did_you_mean(column, example.columns)}")
    value = example.columns[column]
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    raise DataError(f"{example.id}: column {column!r} is {value!r}; allowed: a pass rate from 0 to 1, or nothing")
