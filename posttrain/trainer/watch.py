"""Whether an optimiser step changed the weights: a fingerprint before and after."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.errors import RunError
from posttrain.trainer.distributed import largest_over_ranks

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def fingerprint(module: Any) -> Tensor:
    """The sum over the bits of each trained weight, this rank's share of it: int64, one number a weight.

    It reads the weights once, on their device. A step that moves weights and leaves every sum as it was would have to
    balance in every tensor to the last bit.
    """
    sums = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            own = getattr(parameter, "ds_tensor", parameter.detach())  # ZeRO-3 keeps this rank's part there
            own = own.to_local() if hasattr(own, "to_local") else own
            sums.append(own.contiguous().view(_INTEGERS[own.element_size()]).sum(dtype=torch.int64))
    return torch.stack(sums).cpu() if sums else torch.zeros(0, dtype=torch.int64)


class WeightWatch:
    """Compares the weights before and after each step.

    max_idle_steps: so many steps with a gradient and a learning rate that change no weight, without one between them
    that does, stop the run.
    """

    def __init__(self, max_idle_steps: int = 10) -> None:
        self.max_idle_steps = max_idle_steps
        self._last: Tensor | None = None
        self._idle = 0

    def before(self, policy: Any) -> None:
        """Call before the first step; later ones compare with what the step before left."""
        if self._last is None:
            self._last = fingerprint(policy)

    def after(self, policy: Any, accelerator: Any, metrics: dict[str, float]) -> dict[str, float]:
        """`weights_changed`: 1 where any weight of any rank differs. RunError after max_idle_steps steps without."""
        now = fingerprint(policy)
        assert self._last is not None
        changed = largest_over_ranks(accelerator, int(not torch.equal(now, self._last)))
        self._last = now
        moving = not metrics["skipped"] and metrics["learning_rate"] > 0 and metrics["grad_norm"] > 0
        if changed:
            self._idle = 0
        elif moving:
            self._idle += 1
        if self._idle >= self.max_idle_steps:
            raise RunError(
                f"{self._idle} steps with a gradient (norm {metrics['grad_norm']:.3g}) and a learning rate "
                f"({metrics['learning_rate']:.3g}) changed no weight: the updates are below the weights' precision. "
                "Raise training.learning_rate, or keep the weights in float32 (model.dtype)"
            )
        return {"weights_changed": float(changed)}
