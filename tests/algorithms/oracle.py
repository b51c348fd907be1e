"""An algorithm against a loss that is written down independently from the paper, in float64, to 1e-9."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Loss = Callable[[Any, list[Tensor]], Tensor]
"""Of a world and the logprobs of each of its completions."""


def same_gradient(world: Any, algorithm: Any, loss: Loss) -> None:
    """The gradients with respect to the logprobs and to the policy's parameters are those of `loss`."""
    flat = torch.cat(world.logprobs()).detach().requires_grad_()
    pieces = list(flat.split([len(row.tokens) for row in world.rows]))
    for leaf, batch, logprobs in ((flat, world.batch(flat), pieces), (world.theta, world.batch(), world.logprobs())):
        (ours,) = torch.autograd.grad(algorithm(batch).loss, leaf)
        (expected,) = torch.autograd.grad(loss(world, logprobs), leaf)
        assert expected.abs().max() > 0
        assert (ours - expected).abs().max() <= 1e-9 * expected.abs().max()
