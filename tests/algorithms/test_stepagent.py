"""StepAgent against its losses written down from sums over states, in float64, to 1e-9."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.algorithms import load
from posttrain.estimator import Source
from tests.algorithms.oracle import same_gradient


def states(world: Any) -> list[tuple[int, list[int]]]:
    """The expert's row and the policy's own, of each state."""
    return [(e, own) for (e,), own in zip(world.of(Source.DEMONSTRATIONS), world.of(Source.ROLLOUTS), strict=True)]


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_the_experts_action_over_the_policys_own(beta: float, world: Any) -> None:
    def loss(here: Any, logprobs: list[Tensor]) -> Tensor:
        references = [torch.tensor(row.reference, dtype=torch.float64) for row in here.rows]
        d = [(new - reference).sum() for new, reference in zip(logprobs, references, strict=True)]
        terms = [-logsigmoid(beta * (d[e] - d[j])) for e, own in states(here) for j in own]
        return torch.stack(terms).mean()

    same_gradient(world(3, ungraded=1.0), load("stepagent", beta=beta), loss)


def test_the_discriminator_and_its_reward(world: Any, gradient: Any) -> None:
    """The critic learns by cross-entropy; the policy by the clipped gradient of log D/(1 - D) against its group's."""
    here = world(4, ungraded=1.0)
    batch, leaf = here.leaf_batch()
    algorithm = load("stepagent", reward="inverse")
    found = gradient(algorithm(batch).loss, leaf)

    sizes = [len(row.tokens) for row in here.rows]
    logprobs, scores = batch.logprobs.split(sizes), batch.values.split(sizes)
    experts = torch.stack([logsigmoid(scores[e].mean()) for e, _ in states(here)]).mean()
    owns = torch.stack([logsigmoid(-scores[j].mean()) for _, own in states(here) for j in own]).mean()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for _, own in states(here):
        rewards = torch.stack([torch.tensor(here.rows[j].old_values, dtype=torch.float64).mean() for j in own])
        relative = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        for j, advantage in zip(own, relative, strict=True):
            ratio = (logprobs[j] - torch.tensor(here.rows[j].old, dtype=torch.float64)).exp()
            total = total + torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum()
            count += sizes[j]
    expected = gradient(-total / count - experts - owns, leaf)
    assert expected.abs().max() > 0
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_an_action_that_is_the_experts_has_no_pull(world_of: Any, row_type: Any, gradient: Any) -> None:
    """Where the policy says what the expert says, the two sides cancel."""
    same = [
        row_type(source, 0, [0, 1], [2, 3], old=[-1.0, -1.0], reference=[-1.0, -1.0])
        for source in (Source.DEMONSTRATIONS, Source.ROLLOUTS)
    ]
    here = world_of(same)
    assert gradient(load("stepagent")(here.batch()).loss, here.theta).abs().max() <= 1e-12


def test_beta_is_above_zero() -> None:
    with pytest.raises(ValueError, match=r"beta is 0\.0; allowed: above 0"):
        load("stepagent", beta=0)
