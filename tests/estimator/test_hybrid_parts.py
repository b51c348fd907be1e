"""Parts of the hybrids of demonstrations and rollouts, with known numbers."""

from __future__ import annotations

import math
from typing import Any

import torch

from posttrain.estimator import Source
from posttrain.estimator.guidance import GuidedGroupRelative
from posttrain.estimator.likelihoods import Shaped
from posttrain.estimator.weights import SolvedTable

PROMPT = [Source.ROLLOUTS, Source.ROLLOUTS, Source.DEMONSTRATIONS]


def test_solved_table(batch_of: Any) -> None:
    rewards = [0.0, 0.0, None, 1.0, None, None, 1.0, 1.0, None, None, None, None]
    batch = batch_of(
        [1] * 12,
        groups=[0] * 3 + [1] * 3 + [2] * 3 + [3] * 3,
        sources=PROMPT * 4,
        rewards=rewards,
        solved=[reward == 1.0 for reward in rewards],
    )
    # none solved; one solved, one ungraded; two solved; nothing graded
    assert SolvedTable((0.25, 0.5), value=2.0)(batch).tolist() == [0.5] * 3 + [1.0] * 6 + [0.0] * 3


def test_guided_group_relative(batch_of: Any) -> None:
    batch = batch_of([1, 2, 3], sources=PROMPT, rewards=[0.0, None, None])
    assert GuidedGroupRelative(std=False)(batch).tolist() == [-0.5, 0.0, 0.5]
    assert GuidedGroupRelative(reward=0.0)(batch).tolist() == [0.0, 0.0, 0.0]


def test_shaped() -> None:
    logprobs = torch.tensor([-30.0, math.log(0.1), 0.0, 30.0], dtype=torch.float64, requires_grad=True)
    value = Shaped()(logprobs, torch.zeros_like(logprobs))
    value.sum().backward()
    x = logprobs.detach().exp()
    torch.testing.assert_close(value.detach(), x / (x + 0.1), rtol=1e-12, atol=0)
    torch.testing.assert_close(logprobs.grad, 0.1 * x / (x + 0.1) ** 2, rtol=1e-6, atol=1e-15)
