"""Preference algorithms: the papers' losses on padded tensors, soft preferences, splits that keep pairs, mistakes."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.errors import RecipeError
from posttrain.estimator import Source, TokenBatch, reduce
from posttrain.estimator.diagnostics import means, merge
from tests.algorithms.preference_losses import CASES, Loss, margins

PREFERENCES = [Source.PREFERENCES]
EACH = pytest.mark.parametrize(
    ("name", "settings", "loss"), CASES, ids=lambda v: "" if callable(v) else str(v or "default")
)
NAMES = pytest.mark.parametrize("name", ["dpo", "simpo", "orpo"])


def soft(world: Any, seed: int) -> Any:
    """The world's pairs with a chance between 0 and 1 that the first side is the better one."""
    draw = random.Random(seed)
    rows = []
    for chosen, rejected in zip(world.rows[0::2], world.rows[1::2], strict=True):
        chance = draw.random()
        rows += [replace(chosen, reward=chance), replace(rejected, reward=1 - chance)]
    return replace(world, rows=rows)


def padded(world: Any, flat: Tensor, loss: Loss) -> Tensor:
    """`loss` of a world of pairs at the action logprobs `flat`."""
    lengths = [len(row.tokens) for row in world.rows]
    pieces = flat.split(lengths)
    reference = [torch.tensor(row.reference, dtype=flat.dtype) for row in world.rows]
    shape = len(world.rows) // 2, 2, max(1, *lengths)

    def stack(values: Any) -> Tensor:
        rows = [torch.cat([value, value.new_zeros(shape[-1] - len(value))]) for value in values]
        return torch.stack(rows).view(shape)

    mask = stack([torch.ones(length, dtype=flat.dtype) for length in lengths])
    chance = torch.tensor([row.reward for row in world.rows[0::2]], dtype=flat.dtype)
    return loss(stack(pieces), stack(reference), mask, chance)


@EACH
@pytest.mark.parametrize("is_soft", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_the_papers(
    name: str, settings: dict[str, Any], loss: Loss, is_soft: bool, seed: int, world: Any, gradient: Any
) -> None:
    here = world(seed, sources=PREFERENCES, drift=1.5, num_groups=6)
    here = soft(here, seed) if is_soft else here
    flat = torch.cat(here.logprobs()).detach().requires_grad_()
    ours = gradient(load(name, **settings)(here.batch(flat)).loss, flat)
    expected = gradient(padded(here, flat, loss), flat)
    assert expected.abs().max() > 0
    assert (ours - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_a_preference_without_strength_pulls_the_margin_to_0(world: Any, gradient: Any) -> None:
    here = world(0, sources=PREFERENCES, drift=1.0)
    even = replace(here, rows=[replace(row, reward=0.5) for row in here.rows])
    margin = padded(even, torch.cat(even.logprobs()), lambda p, r, m, _: margins(p, r, m).square().sum())
    found = gradient(load("dpo")(even.batch()).loss, here.theta)
    assert float((found * gradient(margin, here.theta)).sum()) > 0
    at_reference = torch.tensor([x for row in even.rows for x in row.reference], dtype=torch.float64).requires_grad_()
    assert gradient(load("dpo")(even.batch(at_reference)).loss, at_reference).abs().max() < 1e-15


@EACH
@pytest.mark.parametrize("seed", range(3))
def test_splits_that_keep_pairs_change_nothing(
    name: str, settings: dict[str, Any], loss: Loss, seed: int, world: Any, gradient: Any
) -> None:
    del loss
    here = world(seed, sources=[Source.PREFERENCES, Source.ROLLOUTS], num_groups=7)
    algorithm = load(name, **settings)
    whole = algorithm(here.batch())
    expected = gradient(whole.loss, here.theta)
    draw = random.Random(seed)
    mixed = replace(here, rows=draw.sample(here.rows, len(here.rows)))
    copies = [replace(row, group=row.group + 100) for row in mixed.rows]
    doubled = replace(here, rows=[replace(row, weight=0.5) for row in mixed.rows + copies])
    for other in (mixed, doubled):
        batch = algorithm.prepare(other.batch())
        parts: dict[int, list[int]] = {}
        for index in algorithm.active(batch).nonzero().squeeze(1).tolist():
            parts.setdefault(other.rows[index].group % 3, []).append(index)
        losses, found = [], []
        for rows in parts.values():
            totals, figures = algorithm.totals(batch.take(torch.tensor(rows)))
            losses.append(reduce(totals, algorithm.counts(batch)))
            found.append(figures)
        ours = gradient(torch.stack(losses).sum(), here.theta)
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-14)
        assert means(merge(found)) == pytest.approx(whole.metrics, rel=1e-9, abs=1e-12)


def test_diagnostics_of_the_implicit_reward(world: Any) -> None:
    here = world(4, sources=PREFERENCES, drift=1.0, num_groups=9)
    flat = torch.cat(here.logprobs()).detach()
    found = padded(here, flat, lambda p, r, m, _: 0.1 * margins(p, r, m))
    metrics = load("dpo")(here.batch(flat)).metrics
    assert metrics["preference/margin"] == pytest.approx(float(found.mean()), rel=1e-12)
    assert metrics["preference/accuracy"] == pytest.approx(float((found > 0).double().mean()), rel=1e-12)
    difference = metrics["preference/chosen_reward"] - metrics["preference/rejected_reward"]
    assert difference == pytest.approx(metrics["preference/margin"], rel=1e-9)
    backwards = replace(here, rows=here.rows[::-1])  # the chosen side is the one with the higher reward, not the first
    again = load("dpo")(backwards.batch(torch.cat(backwards.logprobs()).detach())).metrics
    assert again["preference/margin"] == pytest.approx(metrics["preference/margin"], rel=1e-12)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [-20.0, 20.0])
def test_finite_at_extreme_ratios(
    name: str, settings: dict[str, Any], loss: Loss, dtype: torch.dtype, sign: float, world: Any
) -> None:
    del loss
    here = world(0, sources=PREFERENCES, lengths=(0, 3))
    rows = [
        replace(row, reference=[old + sign * (1 if row.reward else -1) for old in row.old])
        for row in here.rows
    ]  # fmt: skip
    for logprob in (-1e-9, -1.0, -40.0):
        far = replace(here, rows=rows)
        flat = torch.full_like(torch.cat(here.logprobs()), logprob).detach().to(dtype).requires_grad_()
        result = load(name, **settings)(far.batch(flat))
        result.loss.backward()
        assert flat.grad is not None
        assert torch.isfinite(flat.grad).all()
        assert all(math.isfinite(value) for value in result.metrics.values())


@NAMES
def test_an_empty_side_still_pulls_the_other(name: str, row_type: Any, world_of: Any, gradient: Any) -> None:
    sides = [
        row_type(Source.PREFERENCES, 0, [0] * n, [1] * n, [-1.0] * n, [-1.0] * n, reward)
        for n, reward in ((0, 1.0), (3, 0.0))
    ]
    here = world_of(sides)
    algorithm = load(name)
    assert algorithm.active(algorithm.prepare(here.batch())).all(), "the partner must be in the same micro-batch"
    flat = torch.cat(here.logprobs()).detach().requires_grad_()
    found = gradient(algorithm(here.batch(flat)).loss, flat)
    assert (found > 0).all(), "the rejected side becomes less likely"


@NAMES
def test_a_batch_without_a_pair_has_no_gradient(name: str, world: Any, gradient: Any) -> None:
    here, none = world(0, sources=[Source.ROLLOUTS]), torch.zeros(0)
    for batch in (here.batch(), TokenBatch.from_sequences([]).replace(logprobs=none, reference_logprobs=none)):
        algorithm = load(name)
        assert not algorithm.active(algorithm.prepare(batch)).any()
        assert algorithm.counts(algorithm.prepare(batch)).sum() == 0
        assert not gradient(algorithm(batch).loss, here.theta).any()


@NAMES
def test_a_pair_with_an_ungraded_side_neither_acts_nor_counts(name: str, world: Any, gradient: Any) -> None:
    here = world(1, sources=PREFERENCES)
    settings = {"sft_weight": 0.0}
    ungraded = [replace(row, reward=None) if i in (1, 2, 3) else row for i, row in enumerate(here.rows)]
    kept = [row for row in here.rows if row.group > 1]
    ours, expected = (
        gradient(load(name, **settings)(replace(here, rows=rows).batch()).loss, here.theta) for rows in (ungraded, kept)
    )
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)
    none = replace(here, rows=[replace(row, reward=None) for row in here.rows])
    assert not gradient(load(name)(none.batch()).loss, here.theta).any()


@pytest.mark.parametrize("name", ["grpo", "reinforce"])
def test_the_rewards_of_preferences_are_no_grades_among_rollouts(name: str, world: Any, gradient: Any) -> None:
    here = world(2, sources=[Source.ROLLOUTS, Source.PREFERENCES])
    rollouts = replace(here, rows=[row for row in here.rows if row.source is Source.ROLLOUTS])
    ours, expected = (gradient(load(name)(w.batch()).loss, here.theta) for w in (here, rollouts))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)


@NAMES
def test_half_a_pair_is_an_error(name: str, world: Any) -> None:
    here = world(0, sources=PREFERENCES)
    algorithm = load(name)
    batch = here.batch()
    with pytest.raises(ValueError, match=r"pair 3 has 1 side"):
        algorithm(batch.take(torch.arange(7)))
    with pytest.raises(ValueError, match=r"pair 0 has 4 side"):
        algorithm(batch.replace(pair_index=batch.pair_index.clamp(max=2) * (batch.pair_index > 1)))
    with pytest.raises(ValueError, match="has pair -1"):
        algorithm(batch.replace(pair_index=torch.full_like(batch.pair_index, -1)))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dpo", {"beta": 0.0}, r"beta is 0.0; allowed: above 0"),
        (
            "dpo",
            {"loss_constant": 0.5},
            r"constant is 0.5, and loss 'sigmoid' has none; allowed: with exo and discopop",
        ),
        ("dpo", {"loss": "exo", "loss_constant": 1.0}, r"constant is 1.0; allowed: above 0, below 1"),
        ("dpo", {"label_smoothing": 0.5}, r"label_smoothing is 0.5; allowed: at least 0, below 0.5"),
        ("simpo", {"beta": -1.0}, r"beta is -1.0; allowed: above 0"),
        ("orpo", {"odds_weight": -1.0}, r"weight is -1.0; allowed: at least 0"),
    ],
)
def test_settings_out_of_range(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(name, **settings)


def test_an_unknown_loss_names_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="hinge"):
        load("dpo", loss="sigmod")
