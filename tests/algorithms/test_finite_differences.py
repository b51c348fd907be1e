"""Autograd's gradient of every surrogate is the slope that finite differences see, its detached parts held fixed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from posttrain.algorithms import load
from tests.algorithms.names import EACH

STEP = 1e-5


class Held(TorchFunctionMode):
    """Remembers what is detached or computed without gradient; entered again, it gives the same values, in order.

    So the second evaluation, elsewhere, differs from the first only in what autograd differentiates.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Any] = []
        self.recorded = False
        self.position = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        held = func is Tensor.detach or not torch.is_grad_enabled()
        if not held or func is torch._C._set_grad_enabled:
            return func(*args, **(kwargs or {}))
        if not self.recorded:
            self.values.append(func(*args, **(kwargs or {})))
        self.position += 1
        return self.values[self.position - 1]

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)
        assert self.position == len(self.values)
        self.recorded, self.position = True, 0


@EACH
@pytest.mark.parametrize("seed", range(2))
def test_finite_differences(name: str, seed: int, world_for: Any, gradient: Any) -> None:
    algorithm = load(name)
    here = world_for(algorithm, seed, num_groups=3, group_size=4, ungraded=0.1)
    held = Held()

    def loss(theta: Tensor) -> Tensor:
        batch = replace(here, theta=theta).batch()
        with held:
            value: Tensor = algorithm(batch).loss
        return value

    found = gradient(loss(here.theta), here.theta)
    assert found.abs().max() > 0
    directions = torch.randn(5, *found.shape, generator=torch.Generator().manual_seed(seed), dtype=found.dtype)
    for direction in directions:
        above, below = ((here.theta + sign * STEP * direction).detach().requires_grad_() for sign in (1, -1))
        slope = (loss(above) - loss(below)).detach() / (2 * STEP)
        assert abs(slope - (found * direction).sum()) <= 1e-5 * found.norm() * direction.norm()
