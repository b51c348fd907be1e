"""HyPO: DPO and a KL penalty whose expected gradient is exact, from rollouts that nobody grades."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.algorithms import load
from posttrain.estimator import Algorithm, Source

BOTH = [Source.PREFERENCES, Source.ROLLOUTS]


def paper(world: Any, flat: Tensor, beta: float = 0.1, kl_weight: float = 0.1) -> Tensor:
    """2406.01462: DPO on pairs, and log pi(y) times the detached log-ratio over the others' mean."""
    pieces = flat.split([len(row.tokens) for row in world.rows])
    reference = [torch.tensor(row.reference, dtype=flat.dtype) for row in world.rows]
    ratios = [(own - other).sum() for own, other in zip(pieces, reference, strict=True)]
    preferences = [
        -logsigmoid(beta * (ratios[chosen] - ratios[rejected])) for chosen, rejected in world.of(Source.PREFERENCES)
    ]
    kl = []
    for group in world.of(Source.ROLLOUTS):
        logs = [sum(world.rows[i].old) - sum(world.rows[i].reference) for i in group]
        for i, log in zip(group, logs, strict=True):
            baseline = (sum(logs) - log) / (len(group) - 1)
            kl.append((log - baseline) * pieces[i].sum())
    return torch.stack(preferences).mean() + kl_weight * torch.stack(kl).mean()


@pytest.mark.parametrize("settings", [{}, {"beta": 0.5, "kl_weight": 0.7}], ids=str)
@pytest.mark.parametrize("ungraded", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_gradient_is_the_papers(
    settings: dict[str, float], ungraded: float, seed: int, world: Any, gradient: Any
) -> None:
    here = world(seed, sources=BOTH, ungraded=ungraded)
    flat = torch.cat(here.logprobs()).detach().requires_grad_()
    ours = gradient(load("hypo", **settings)(here.batch(flat)).loss, flat)
    expected = gradient(paper(here, flat, **settings), flat)
    assert expected.abs().max() > 0
    assert (ours - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_the_expected_gradient_is_that_of_the_kl(row_type: Any, world_of: Any, gradient: Any) -> None:
    """Both samples of every pair of two-token completions, weighted by the policy's own probabilities."""
    generator = torch.Generator().manual_seed(1)
    logits, reference = (torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_()
    ours, theirs = torch.log_softmax(logits, -1), torch.log_softmax(reference, -1)
    completions = list(product(range(3), repeat=2))
    logs = [
        {y: [float(table[place, y[place]]) for place in (0, 1)] for y in completions}
        for table in (ours.detach(), theirs)
    ]
    rows = []
    for number, sides in enumerate(product(completions, repeat=2)):
        chance = math.exp(sum(x for y in sides for x in logs[0][y]))
        rows += [
            row_type(Source.ROLLOUTS, number, [0, 1], list(y), logs[0][y], logs[1][y], weight=chance) for y in sides
        ]
    flat = torch.stack([ours[place, row.tokens[place]] for row in rows for place in (0, 1)])
    term = load("hypo", kl_weight=1.0).terms[1]
    found = gradient(Algorithm("kl", (term,))(world_of(rows).batch(flat)).loss, logits)
    again = torch.log_softmax(logits, -1)
    expected = gradient((again.exp() * (again - theirs)).sum(), logits)
    assert (found - expected).abs().max() <= 1e-12


def test_rollouts_need_no_reward(world: Any) -> None:
    algorithm = load("hypo")
    assert not algorithm.grades_rollouts
    assert load("grpo").grades_rollouts
    assert load("online_dpo").grades_rollouts
    assert not load("osp").grades_rollouts
    assert load("osp", judge="rewards").grades_rollouts
    assert not load("dpo").grades_rollouts
    here = world(0, sources=BOTH)
    without = replace(here, rows=[replace(r, reward=None) if r.source is Source.ROLLOUTS else r for r in here.rows])
    kl = [sum(row.old) - sum(row.reference) for row in here.rows if row.source is Source.ROLLOUTS]
    metrics = algorithm(without.batch()).metrics
    assert metrics == algorithm(here.batch()).metrics
    assert metrics["kl/reference_kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-12)
