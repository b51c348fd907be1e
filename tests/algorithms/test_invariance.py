"""Promise 2: splits, order, pruning and repetition change nothing but rounding."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.algorithms import load
from posttrain.estimator import Algorithm, PolicyTerm, Source, TokenBatch, reduce
from posttrain.estimator.advantages import ReferenceKL, Reward
from posttrain.estimator.aggregation import FixedLength, SequenceMean, Sum, TokenMean
from posttrain.estimator.denominators import Behavior, Current, Old, One
from posttrain.estimator.diagnostics import means, merge
from posttrain.estimator.masks import Clip
from tests.algorithms.names import NAMES

VARIANTS = [
    load("sft", sequence_normalised=True),
    load("reinforce", baseline=0.5),
    load("grpo", std=False, kl_weight=0.0),
    load("grpo", preset="trl", kl_place="reward", kl_weight=0.1, entropy_weight=0.01, dual_clip=2.0),
    load("reinforce_pp", group_baseline=True),
    load("gspo", clip_low=0.05, clip_high=0.1),
    load("cispo", cap=1.2, floor=0.8),
    load("hpt", length=5),
    load("hpt", gate=2, clip=False, std=True, length=1),
    load("raft", keep="best"),
    load("hpt", off_policy_gate=2, length=5),
    load("hpt_soft", length=5),
    load("distill", divergence="reverse_kl", off_policy=0.3, token_mean=True),
    load("ppo", per="turn", gamma=0.9, whiten=False, kl_weight=0.1, kl_place="reward", dual_clip=2.0),
    load("oreal", shaping="leave_one_out", kl_anchor="reference", aggregation="token_mean"),
    load("oreal", token_model=False, one_each=False),
    *(
        Algorithm(
            "mixture",
            (
                PolicyTerm(Source.ROLLOUTS, denominator, Reward(0.3), Clip(), aggregation=aggregation, name="a"),
                PolicyTerm(Source.DEMONSTRATIONS, One(), aggregation=aggregation, name="b"),
                PolicyTerm(Source.ROLLOUTS, Current(), ReferenceKL("k1"), aggregation=aggregation, name="c"),
            ),
        )
        for denominator, aggregation in (
            (Old(), TokenMean()),
            (Behavior(), SequenceMean()),
            (One(), FixedLength(3)),
            (Current(), Sum()),
        )
    ),
]
ALGORITHMS = [*(load(name) for name in NAMES), *VARIANTS]
EACH = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
SEEDS = st.integers(0, 10_000)
FEW = settings(max_examples=6, deadline=None)


def close(ours: Tensor, expected: Tensor) -> None:
    assert (ours - expected).abs().max() <= 1e-12 * max(1e-3, float(expected.abs().max()))


def in_parts(algorithm: Algorithm, batch: TokenBatch, parts: list[list[int]]) -> tuple[Tensor, dict[str, float]]:
    """Loss and metrics, accumulated over the given rows as the trainer does."""
    prepared = algorithm.prepare(batch)
    counts = algorithm.counts(prepared)
    losses, found = [], []
    for rows in parts:
        totals, figures = algorithm.totals(prepared.take(torch.tensor(rows, dtype=torch.long)))
        losses.append(reduce(totals, counts))
        found.append(figures)
    return torch.stack(losses).sum(), means(merge(found))


def units(algorithm: Algorithm, batch: TokenBatch) -> list[list[int]]:
    """Rows that must stay in one micro-batch."""
    together: dict[Any, list[int]] = {}
    for row, (group, pair, source) in enumerate(
        zip(batch.group_index.tolist(), batch.pair_index.tolist(), batch.source.tolist(), strict=True)
    ):
        paired = algorithm.couples == "pair" and pair >= 0
        key = ("group", group) if algorithm.couples == "group" else (source, pair) if paired else ("row", row)
        together.setdefault(key, []).append(row)
    return list(together.values())


@EACH
@FEW
@given(seed=SEEDS, num_parts=st.integers(1, 30), ungraded=st.sampled_from([0.0, 0.3]))
def test_micro_batches(
    algorithm: Algorithm, seed: int, num_parts: int, ungraded: float, world_for: Any, gradient: Any
) -> None:
    batch, leaf = world_for(algorithm, seed, ungraded=ungraded).leaf_batch()
    order = units(algorithm, batch)
    random.Random(seed).shuffle(order)
    parts = [list(chain(*order[start::num_parts])) for start in range(min(num_parts, len(order)))]
    whole = algorithm(batch)
    loss, metrics = in_parts(algorithm, batch, parts)
    close(gradient(loss, leaf), gradient(whole.loss, leaf))
    assert metrics == pytest.approx(whole.metrics, rel=1e-9, abs=1e-12)


@EACH
@FEW
@given(seed=SEEDS)
def test_order_of_rows(algorithm: Algorithm, seed: int, world_for: Any, gradient: Any) -> None:
    here = world_for(algorithm, seed, ungraded=0.2)
    shuffled = replace(here, rows=random.Random(seed).sample(here.rows, len(here.rows)))
    close(
        gradient(algorithm(shuffled.batch()).loss, here.theta),
        gradient(algorithm(here.batch()).loss, here.theta),
    )


@EACH
@FEW
@given(seed=SEEDS)
def test_every_prompt_twice_at_half_weight(algorithm: Algorithm, seed: int, world_for: Any, gradient: Any) -> None:
    here = world_for(algorithm, seed, ungraded=0.2)
    again = [row.pair if row.pair in (None, -1) else row.pair + 10_000 for row in here.rows]
    copies = [
        replace(row, group=row.group + 100, pair=pair, weight=row.weight / 2)
        for row, pair in zip(here.rows, again, strict=True)
    ]
    doubled = replace(here, rows=[replace(row, weight=row.weight / 2) for row in here.rows] + copies)
    close(
        gradient(algorithm(doubled.batch()).loss, here.theta),
        gradient(algorithm(here.batch()).loss, here.theta),
    )


@EACH
@FEW
@given(seed=SEEDS, ungraded=st.sampled_from([0.0, 0.3]))
def test_pruned_rows_have_no_gradient(
    algorithm: Algorithm, seed: int, ungraded: float, world_for: Any, gradient: Any
) -> None:
    batch, leaf = world_for(algorithm, seed, ungraded=ungraded).leaf_batch()
    active = algorithm.active(algorithm.prepare(batch))
    whole = gradient(algorithm(batch).loss, leaf)
    loss, _ = in_parts(algorithm, batch, [active.nonzero().squeeze(1).tolist()])
    close(gradient(loss, leaf), whole)
    assert not whole[:, ~batch.broadcast(active)].any()


def test_pruning_prunes(world: Any) -> None:
    here = world(3)
    prepared = load("hpt").prepare(here.batch())
    active = load("hpt").active(prepared)
    for group, wanted in ((0, {Source.DEMONSTRATIONS}), (1, set())):  # nothing solved: imitate; all solved: nothing
        kept = {row.source for row, on in zip(here.rows, active.tolist(), strict=True) if on and row.group == group}
        assert kept == wanted


@FEW
@given(seed=SEEDS)
def test_a_rank_without_a_term_adds_nothing(seed: int, world: Any, gradient: Any) -> None:
    """Counts and gradients of two halves, each with whole groups, add up to those of the whole."""
    algorithm = load("hpt", length=5)
    here = world(seed)
    halves = [replace(here, rows=[row for row in here.rows if row.group % 2 == part]) for part in (0, 1)]
    prepared = [algorithm.prepare(half.batch()) for half in halves]
    counts = sum(algorithm.counts(batch) for batch in prepared)
    loss = sum(reduce(algorithm.totals(batch)[0], counts) for batch in prepared)
    close(gradient(loss, here.theta), gradient(algorithm(here.batch()).loss, here.theta))
