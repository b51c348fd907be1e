"""Reward models against their losses written down from papers and peers; float64 unless a peer computes in float32."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, cross_entropy, mse_loss

from posttrain.algorithms import load
from posttrain.estimator import Algorithm, Source
from posttrain.estimator.goal_contrast import GoalCosine


def preferences(world: Any, seed: int) -> Any:
    """Pairs with margins, some of them the other way round."""
    here = world(seed, num_groups=6, sources=[Source.PREFERENCES, Source.ROLLOUTS])
    draw = random.Random(seed)
    flipped = {row.group for row in here.rows if draw.random() < 0.3}
    rows = [replace(r, margin=0.1 * r.group) for r in here.rows]
    return replace(here, rows=[replace(r, reward=1 - r.reward) if r.group in flipped else r for r in rows if
                               r.source is Source.PREFERENCES])  # fmt: skip


def gradients(
    here: Any, algorithm: Algorithm, loss: Any, gradient: Any, name: str, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Of the field `name`: ours, and that of `loss(pieces)`, which takes it as a list, a tensor a completion."""
    flat = torch.cat(getattr(here, name)(), -1).detach().to(dtype).requires_grad_()
    lengths = [len(row.tokens) for row in here.rows]
    batch = here.batch(torch.cat(here.logprobs()).detach().to(dtype)).replace(**{name: flat})
    return gradient(algorithm(batch).loss, flat), gradient(loss(list(flat.split(lengths, -1))), flat)


def sides(here: Any) -> list[tuple[int, int]]:
    """Indices of each pair's preferred side and the other."""
    return [tuple(sorted(pair, key=lambda i: -here.rows[i].reward)) for pair in here.of(Source.PREFERENCES)]  # type: ignore[misc]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("margins", "centre"), [(False, None), (True, None), (True, 0.3), (False, 0.01)])
def test_trls_reward_trainer(
    seed: int, margins: bool, centre: float | None, world: Any, gradient: Any, parity: Any
) -> None:
    """`RewardTrainer.compute_loss` itself, in float32, on the scores of the last tokens."""
    from trl import RewardTrainer

    here = preferences(world, seed)
    pairs = sides(here)

    def loss(values: list[Tensor]) -> Tensor:
        logits = torch.stack([values[i][-1] for side in (0, 1) for i in (pair[side] for pair in pairs)])[:, None]
        inputs: dict[str, Any] = {"attention_mask": torch.ones(1)}
        if margins:
            inputs["margin"] = torch.tensor([here.rows[pair[0]].margin for pair in pairs])
        gather = SimpleNamespace(gather_for_metrics=lambda one: one, gather=lambda one: one)
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True), args=SimpleNamespace(center_rewards_coefficient=centre),
            accelerator=gather, _total_train_tokens=0, _tp_size=1, _metrics={"train": defaultdict(list)},
        )  # fmt: skip
        found: Tensor = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=logits), inputs)
        return found

    algorithm = load("bradley_terry", margin=float(margins), centre=centre or 0.0)
    ours, theirs = gradients(here, algorithm, loss, gradient, "values", torch.float32)
    parity("bradley_terry", "trl", f"reward trainer{', margin' * margins}{', centred' * bool(centre)}", ours, theirs)


def test_a_soft_preference_weighs_both_orders(world: Any, gradient: Any) -> None:
    here = preferences(world, 0)
    here = replace(here, rows=[replace(r, reward=0.8 if r.reward else 0.2, margin=0.0) for r in here.rows])

    def loss(values: list[Tensor]) -> Tensor:
        margins = torch.stack([values[i][-1] - values[j][-1] for i, j in sides(here)])
        return binary_cross_entropy_with_logits(margins, torch.full_like(margins, 0.8))

    ours, expected = gradients(here, load("bradley_terry"), loss, gradient, "values")
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("mean_goal", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_contrast_of_goals(seed: int, mean_goal: bool, world: Any, gradient: Any) -> None:
    """The authors' ContrastiveGoalLoss on one pair at a time, at the places that were drawn."""
    here = preferences(world, seed)
    part = GoalCosine(num_states=5, mean_goal=mean_goal)

    def one(chosen: Tensor, rejected: Tensor) -> Tensor:
        source, goal, other, against = part.places(len(chosen), len(rejected), step=0)
        goals, opposed = chosen[goal], rejected[against]
        if mean_goal:
            goals, opposed = goals.mean(0, keepdim=True), opposed.mean(0, keepdim=True)
        near = cosine_similarity(chosen[source][:, None], goals[None], dim=2)
        far = cosine_similarity(chosen[other][:, None], opposed[None], dim=2)
        return -torch.log(torch.sigmoid(near).mean()) - torch.log(1 - torch.sigmoid(far).mean())

    def loss(states: list[Tensor]) -> Tensor:
        return 0.7 * torch.stack([one(states[i].T, states[j].T) for i, j in sides(here)]).mean()

    algorithm = load("goal_contrastive", contrast_weight=0.7, num_states=5, mean_goal=mean_goal)
    ours, expected = gradients(here, algorithm, loss, gradient, "hidden")
    assert expected.any()
    assert (ours - expected).abs().max() <= 1e-12 * expected.abs().max()
    plain = gradients(here, load("bradley_terry"), lambda values: values[0].sum(), gradient, "values")[0]
    both = gradients(here, algorithm, lambda values: values[0].sum(), gradient, "values")[0]
    torch.testing.assert_close(both, plain, rtol=0, atol=0)


def test_sources_come_before_their_goals_and_places_are_spread() -> None:
    counts = torch.zeros(10)
    for step in range(200):
        source, goal, other, against = GoalCosine().places(10, 3, step)
        assert all(first <= then for first, then in zip(source, goal, strict=True))
        assert set(other) <= set(range(10))
        assert set(against) <= set(range(3))
        counts += torch.bincount(torch.tensor(other), minlength=10)
    assert ((counts - 320) ** 2 / 320).sum() < 27.9  # chi-squared, 9 degrees of freedom, one in a thousand
    assert GoalCosine().places(10, 3, 7) == GoalCosine().places(10, 3, 7)


@pytest.mark.parametrize("seed", range(3))
def test_step_labels_are_a_classification_into_two(seed: int, world_for: Any, gradient: Any) -> None:
    """As process reward trainers have it: cross-entropy of two logits a step, the mean over labelled steps."""
    algorithm = load("process_reward")
    here = world_for(algorithm, seed, sources=[Source.TRAJECTORIES, Source.DEMONSTRATIONS])

    def loss(values: list[Tensor]) -> Tensor:
        found = [
            (score, label[0])
            for row, scores in zip(here.rows, values, strict=True)
            for score, label in zip(scores, row.targets or [None] * len(scores), strict=True)
            if label is not None and not math.isnan(label[0])
        ]
        logits = torch.stack([torch.stack([torch.zeros_like(score), score]) for score, _ in found])
        targets = torch.tensor([[1 - label, label] for _, label in found], dtype=torch.float64)
        return cross_entropy(logits, targets)

    ours, expected = gradients(here, algorithm, loss, gradient, "values")
    assert expected.any()
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_ratings_are_a_regression(seed: int, world_for: Any, gradient: Any) -> None:
    algorithm = load("attribute_regression", attributes=["kind", "short", "true"])
    here = world_for(algorithm, seed, sources=[Source.TRAJECTORIES])

    def loss(values: list[Tensor]) -> Tensor:
        scores, labels = [], []
        for row, own in zip(here.rows, values, strict=True):
            for k in range(3):
                for token, label in enumerate(row.targets):
                    if label is not None and not math.isnan(label[k]):
                        scores.append(own[k, token])
                        labels.append(label[k])
        return mse_loss(torch.stack(scores), torch.tensor(labels, dtype=torch.float64))

    ours, expected = gradients(here, algorithm, loss, gradient, "values")
    assert all(row.any() for row in expected)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_outcomes_are_a_classification_of_mean_scores(seed: int, world: Any, gradient: Any) -> None:
    here = world(seed, sources=[Source.TRAJECTORIES], ungraded=0.2)

    def loss(values: list[Tensor]) -> Tensor:
        graded = [i for i, row in enumerate(here.rows) if row.reward is not None]
        logits = torch.stack([values[i].mean() for i in graded])
        return binary_cross_entropy_with_logits(
            logits, torch.tensor([float(here.rows[i].solved) for i in graded], dtype=torch.float64)
        )

    ours, expected = gradients(here, load("outcome_reward"), loss, gradient, "values")
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)


def test_wrong_constants() -> None:
    for settings, field in (({"margin": -1.0}, "margin"), ({"centre": -0.1}, "centre")):
        with pytest.raises(Exception, match=f"{field} is -"):
            load("bradley_terry", **settings)
    with pytest.raises(Exception, match="num_states is 0"):
        load("goal_contrastive", num_states=0)
    with pytest.raises(Exception, match="each once"):
        load("attribute_regression", attributes=["a", "a"])


def test_labels_and_scores_must_be_as_many(world_for: Any) -> None:
    algorithm = load("attribute_regression", attributes=["a", "b"])
    batch = world_for(algorithm, 0).batch()
    with pytest.raises(ValueError, match="2 labels a token for 1 scores"):
        algorithm(batch.replace(values=batch.values[0]))
