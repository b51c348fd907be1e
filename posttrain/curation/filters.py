"""The filters of a curation, in their order: each takes rows and says which of them go, why, and its own figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from posttrain.config.schema import ModelSettings, TokenizerSettings
from posttrain.curation.asked import Filters
from posttrain.curation.contamination import Questions, contaminated, num_short
from posttrain.curation.duplicates import exact_duplicates
from posttrain.curation.near_duplicates import near_duplicates
from posttrain.curation.obfuscated import characters_per_token, outside
from posttrain.curation.returns import draw, return_weights
from posttrain.curation.rows import Row
from posttrain.data.curriculum import Buckets
from posttrain.data.readers import excerpt

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Found:
    """Which rows go (place -> why), figures, and the rows where the filter adds columns to them."""

    removed: Mapping[int, str]
    figures: Mapping[str, Any] = field(default_factory=dict)
    rows: list[Row] | None = None


Filter = Callable[[list[Row]], Found]


def load_characters_filter(asked: Filters) -> Filter | None:
    """The filter by characters per token, its tokenizer loaded; None without one. UserError as `load_tokenizer`."""
    if asked.tokenizer is None:
        return None
    from posttrain.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(TokenizerSettings(path=asked.tokenizer), ModelSettings())

    def characters(rows: list[Row]) -> Found:
        ratios = characters_per_token([row.text for row in rows], tokenizer)
        shares = (0, 0.01, 0.05, 0.5, 0.95, 0.99, 1)
        spread = dict(zip(map(str, shares), np.quantile(ratios or [0.0], shares).round(2).tolist(), strict=True))
        return Found(outside(ratios, asked.min_characters, asked.max_characters), {"quantiles": spread})

    return characters


def filters(
    asked: Filters,
    kind: str,
    characters: Filter | None,
    questions: Sequence[Questions],
    rates: Mapping[str, float | None] | None,
) -> Iterator[tuple[str, Filter]]:
    """The name of each filter that is asked for, and the filter. rates: pass rates by the rows' ids."""
    if kind == "trajectories":
        yield "more than one turn", _unwritable
    if characters is not None:
        yield "characters per token", characters
    if asked.exact:
        yield "duplicates", _duplicates
    if asked.near:
        yield "near duplicates", partial(_near_duplicates, asked, asked.near)
    for one in questions:
        if one.unread is None:
            yield f"asked by {one.benchmark}", partial(_asked_by, one, asked.ngram)
    if rates is not None:
        yield "pass rate", partial(_pass_rate, asked, rates)
    if asked.sample is not None:
        yield "ungraded", _ungraded
        yield "return-weighted sample", partial(_sample, asked, asked.sample)


def _unwritable(rows: list[Row]) -> Found:
    return Found({place: row.problem for place, row in enumerate(rows) if row.problem is not None})


def _duplicates(rows: list[Row]) -> Found:
    same = exact_duplicates([row.text for row in rows])
    return Found({place: f"the same as {rows[first].id}" for place, first in same.items()})


def _near_duplicates(asked: Filters, threshold: float, rows: list[Row]) -> Found:
    texts = [row.text for row in rows]
    close = near_duplicates(texts, threshold, same_numbers=not asked.any_numbers, seed=asked.seed)
    return Found({place: f"overlap {share:.2f} with {rows[other].id}" for place, (other, share) in close.items()})


def _asked_by(questions: Questions, n: int, rows: list[Row]) -> Found:
    found = contaminated([row.everything for row in rows], questions, n=n)
    why = {one.text: f"shares with {questions.ids[one.item]}: {excerpt(one.words, 200)}" for one in found}
    short = num_short(questions, n)
    return Found(why, {"items": len(questions.texts), "compared whole": short})


def _pass_rate(asked: Filters, rates: Mapping[str, float | None], rows: list[Row]) -> Found:
    cut = Buckets(asked.buckets, range(len(asked.buckets) + 1))
    removed: dict[int, str] = {}
    found: list[Row] = []
    counts: Counter[str] = Counter()
    for place, row in enumerate(rows):
        rate = rates[row.id]
        bucket = None if rate is None else int(cut(np.array([rate]))[0])
        found.append(replace(row, columns={**row.columns, "pass_rate": rate, "pass_rate_bucket": bucket}))
        if rate is not None and not asked.min_pass_rate <= rate <= asked.max_pass_rate:
            removed[place] = f"pass rate {rate:.3g}"
        else:
            counts[UNKNOWN if bucket is None else f"bucket {bucket}"] += 1
    return Found(removed, {"kept": dict(sorted(counts.items()))}, found)


def _ungraded(rows: list[Row]) -> Found:
    return Found({place: "no reward" for place, row in enumerate(rows) if row.reward is None})


def _sample(asked: Filters, count: int, rows: list[Row]) -> Found:
    rewards = [row.reward for row in rows if row.reward is not None]  # all of them, after `_ungraded`
    weights = return_weights(rewards, [row.group for row in rows], beta=asked.beta, baseline=asked.baseline)
    chosen = draw(weights, count, asked.seed)
    left = dict.fromkeys(sorted(set(range(len(rows))) - set(chosen)), "not drawn")
    weighted = [
        replace(row, columns={**row.columns, "weight": weight})
        for row, weight in zip(rows, weights.tolist(), strict=True)
    ]
    means = {"mean reward before": float(np.mean(rewards)), "mean reward": float(np.mean([rewards[i] for i in chosen]))}
    return Found(left, means, weighted)
