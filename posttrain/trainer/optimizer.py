"""AdamW and its learning-rate schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from posttrain.config.schema import CriticSettings, TrainingSettings


def make_optimizer(
    policy: nn.Module, training: TrainingSettings, critic: CriticSettings | None = None
) -> torch.optim.AdamW:
    """Fused AdamW; vectors (norms, biases) are not decayed. The critic's weights have a learning rate of their own."""
    second = getattr(policy, "critic", None)
    of_critic = set() if second is None else set(second.parameters())
    parameters = [p for p in policy.parameters() if p.requires_grad and p not in of_critic]
    groups = _groups(parameters, training.learning_rate, training)
    if of_critic:
        assert critic is not None and second is not None
        groups += _groups(list(second.parameters()), critic.learning_rate, training, critic=True)
    return torch.optim.AdamW(groups, betas=training.betas, eps=training.epsilon, fused=True)


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
