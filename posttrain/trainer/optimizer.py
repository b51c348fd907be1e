"""The optimiser and its learning-rate schedule."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from posttrain.config.schema import CriticSettings, TrainingSettings
from posttrain.errors import RecipeError

_SMALLEST_8BIT_NUMEL = 4096
_BLOCK = 256
"""Of bitsandbytes: smaller tensors keep float32 states; each block of 8-bit states has a float32 scale."""


def make_optimizer(
    policy: nn.Module, training: TrainingSettings, critic: CriticSettings | None = None
) -> torch.optim.Optimizer:
    """`training.optimizer` over what is trained; vectors (norms, biases) are not decayed.

    adamw: torch's, fused. adamw_8bit, paged_adamw_8bit: bitsandbytes', moments in 8 bits a block (arXiv 2110.02861);
    paged: in memory that CUDA moves to the host when it runs out. adafactor: torch's, second moments as a row and a
    column of each matrix (arXiv 1804.04235), no first ones. The critic's weights have a learning rate of their own.
    RecipeError under DeepSpeed for all but adamw: it flattens weights and hands out parts of them.
    """
    second = getattr(policy, "critic", None)
    of_critic = set() if second is None else set(second.parameters())
    parameters = [p for p in policy.parameters() if p.requires_grad and p not in of_critic]
    groups = _groups(parameters, training.learning_rate, training)
    if of_critic:
        assert critic is not None and second is not None
        groups += _groups(list(second.parameters()), critic.learning_rate, training, critic=True)
    name = training.optimizer
    if name != "adamw" and os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise RecipeError(f"training.optimizer is {name!r}, and the launch file says DeepSpeed; allowed there: adamw")
    moments: dict[str, Any] = {"betas": training.betas, "eps": training.epsilon}
    if name == "adamw":
        return torch.optim.AdamW(groups, **moments, fused=True)
    if name == "adafactor":
        return torch.optim.Adafactor(groups, foreach=False)  # foreach holds an update of all weights at once
    import bitsandbytes

    kind = bitsandbytes.optim.PagedAdamW8bit if name == "paged_adamw_8bit" else bitsandbytes.optim.AdamW8bit
    optimizer: torch.optim.Optimizer = kind(groups, **moments)
    return optimizer


def state_bytes(name: str, parameters: Iterable[nn.Parameter]) -> int:
    """What the optimiser `name` keeps for `parameters` from step to step, in bytes."""
    found = 0
    for parameter in parameters:
        numel, size = parameter.numel(), parameter.element_size()
        if name == "adamw":
            found += 2 * numel * size
        elif name == "adafactor":
            shape = parameter.shape
            found += size * (numel // shape[-1] + numel // shape[-2] if parameter.ndim >= 2 else numel)
        else:
            found += 8 * numel if numel < _SMALLEST_8BIT_NUMEL else 2 * (numel + 4 * -(-numel // _BLOCK))
    return found


def _groups(parameters: Sequence[nn.Parameter], rate: float, training: TrainingSettings, **mark: bool) -> list[Any]:
    """Matrices and vectors; DeepSpeed takes no empty group."""
    matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "lr": rate, "weight_decay": training.weight_decay, **mark},
        {"params": vectors, "lr": rate, "weight_decay": 0.0, **mark},
    ]
    return [group for group in groups if group["params"]]


def make_schedule(optimizer: Any, training: TrainingSettings, critic: CriticSettings | None = None) -> LRScheduler:
    """transformers' schedule of that name over `training.steps` optimiser steps; 0 for the policy in critic warm-up."""
    from transformers import get_scheduler

    name = "constant_with_warmup" if training.schedule == "constant" else training.schedule
    schedule: LRScheduler = get_scheduler(name, optimizer, training.warmup_steps, training.steps)
    if critic is None or not critic.warmup_steps:
        return schedule
    (shape, *_) = schedule.lr_lambdas  # type: ignore[attr-defined]

    def frozen(step: int) -> float:
        return 0.0 if step < critic.warmup_steps else shape(step)

    return LambdaLR(optimizer, [shape if group.get("critic") else frozen for group in optimizer.param_groups])


def learning_rates(optimizer: Any) -> dict[str, float]:
    """`learning_rate` of the policy, and `critic_learning_rate` where there is a critic."""
    names = {"critic_" * bool(group.get("critic")) + "learning_rate": group["lr"] for group in optimizer.param_groups}
    return {name: float(rate) for name, rate in names.items()}
