"""RED: its loss, the weight that follows the entropies, and that the weight's memory is one number a run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.batch import Source
from posttrain.estimator.balance import AccuracyShift, EntropyBalance
from tests.algorithms.test_hybrids import clipped, prompts, ratios, relative, rewards

CHANGES = {"imitation/entropy_change": 0.06, "policy/entropy_change": 0.02}


def red(weight: float, cap: float | None = None) -> Callable[[Any, list[Tensor]], Tensor]:
    """2508.16677 sec. 3: GRPO without KL + weight * length-normalised imitation."""

    def loss(world: Any, logprobs: list[Tensor]) -> Tensor:
        own, shown_terms = [], []
        for group, shown in prompts(world):
            accuracy = sum(world.rows[i].solved for i in group) / len(group) if group else 0.5
            shift = 1.0 if cap is None else cap ** (1 - 2 * accuracy)
            shown_terms.append(-shift * logprobs[shown].mean())
            for i, advantage in zip(group, relative(rewards(world, group), std=True), strict=True):
                own.append(-clipped(ratios(world, logprobs, i), advantage).mean())
        return torch.stack(own).mean() + weight * torch.stack(shown_terms).mean()

    return loss


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ungraded", [0.0, 0.3])
@pytest.mark.parametrize(
    ("settings", "memory", "loss"),
    [
        ({}, {}, red(1.0)),
        ({}, CHANGES, red(3.0)),
        ({"cap": 2.0}, CHANGES, red(2.0)),
        ({"cap": 4.0, "accuracy_shift": True}, CHANGES, red(3.0, 4.0)),
    ],
)
def test_gradient_is_the_papers(
    settings: dict[str, Any], memory: dict[str, float], loss: Any, ungraded: float, seed: int, world: Any, gradient: Any
) -> None:
    here = world(seed, ungraded=ungraded)
    batch = here.batch().replace(memory=memory)
    ours, expected = (
        gradient(one, here.theta) for one in (load("red", **settings)(batch).loss, loss(here, here.logprobs()))
    )
    assert expected.abs().max() > 0
    assert (ours - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_the_weight_follows_the_changes(world: Any) -> None:
    part = EntropyBalance(decay=0.5, cap=5.0)
    batch, memory = world().batch(), {}
    entropies = [(2.0, 1.0), (1.9, 0.9), (1.5, 0.9), (1.5, 0.2)]  # imitation, policy
    changes, expected = [0.0, 0.0], []
    for before, now in pairwise(entropies):
        changes = [0.5 * c + 0.5 * abs(a - b) for c, a, b in zip(changes, before, now, strict=True)]
        expected.append(min(max(changes[0] / changes[1], 1.0), 5.0))
    found = []
    for imitation, policy in entropies:
        memory = part.remember(memory, {"imitation/entropy": imitation, "policy/entropy": policy, "other": 3.0})
        found.append(float(part(batch.replace(memory=memory))[0]))
    assert found[0] == 1.0, "no change is known yet"
    assert found[1:] == pytest.approx(expected)
    assert part.remember(memory, {"policy/entropy": 9.0}) == memory, "a step that imitates nothing says nothing"


@pytest.mark.parametrize(
    ("imitation", "policy", "weight"), [(0.1, 0.0, 5.0), (0.0, 0.0, 1.0), (0.0, 0.1, 1.0), (1e9, 1e-9, 5.0)]
)
def test_the_weight_is_bounded(imitation: float, policy: float, weight: float, world: Any) -> None:
    memory = {"imitation/entropy_change": imitation, "policy/entropy_change": policy}
    assert EntropyBalance()(world().batch().replace(memory=memory)).unique().tolist() == [weight]


def test_the_terms_report_what_the_weight_reads(world: Any) -> None:
    algorithm = load("red")
    metrics = algorithm(world().batch()).metrics
    kept = algorithm.remember({}, metrics)
    assert kept == {name: metrics[name] for name in ("imitation/entropy", "policy/entropy")}


def test_a_prompt_without_a_graded_rollout_is_not_shifted(world: Any) -> None:
    batch = world(1, ungraded=1.0).batch()
    assert AccuracyShift()(batch)[batch.is_from(Source.DEMONSTRATIONS)].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("settings", "message"), [({"cap": 0.5}, "cap 0.5; allowed"), ({"decay": 1.0}, "decay is 1.0, cap")]
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("red", **settings)
