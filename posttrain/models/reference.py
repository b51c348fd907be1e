"""A copy of the policy, for KL penalties, implicit rewards and samples to compare with: frozen, or following slowly."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.models.policy import Policy
from posttrain.models.weights import named_weights


def reference_of(model: Any, device: torch.device | None = None, mixed_precision: str = "no") -> Policy:
    """A policy over a copy of `model`'s weights as they are now: eval mode, no gradients.

    mixed_precision: computed as accelerate has the policy compute on `device`, so that the two differ by their weights
    alone ("no", "bf16" or "fp16").
    """
    reference = Policy(copy.deepcopy(model))
    reference.requires_grad_(False)
    computed_in = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision)
    if computed_in is not None:
        kind = (model.device if device is None else device).type
        reference.forward = torch.autocast(kind, computed_in)(reference.forward)  # type: ignore[method-assign]
    return reference.eval()


@contextmanager
def visiting(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Within it the module is on `device`; then where it was before, so that an offloaded one leaves the room free."""
    home = next(module.parameters()).device
    if home.type == device.type:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


@torch.no_grad()
def follow(reference: Policy, weights: Iterable[tuple[str, Tensor]], rate: float) -> None:
    """theta_ref <- (1 - rate) theta_ref + rate theta, in place; buffers that are not floating point are taken over.

    weights: the policy's, named as in the Hugging Face model. In bfloat16 a small rate is lost to rounding.
    """
    own = dict(named_weights(reference.model))
    for name, tensor in weights:
        target, new = own[name], tensor.to(own[name].device)
        if target.is_floating_point():
            target.lerp_(new.to(target.dtype), rate)
        else:
            target.copy_(new)
