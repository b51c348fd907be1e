"""AdamW and its learning-rate schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from posttrain.config.schema import TrainingSettings


def make_optimizer(model: nn.Module, training: TrainingSettings) -> torch.optim.AdamW:
    """Fused AdamW; vectors (norms, biases) are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas, eps=training.epsilon, fused=True)


def make_schedule(optimizer: Any, training: TrainingSettings) -> LRScheduler:
    """transformers' schedule of that name over `training.steps` optimiser steps."""
    from transformers import get_scheduler

    name = "constant_with_warmup" if training.schedule == "constant" else training.schedule
    schedule: LRScheduler = get_scheduler(name, optimizer, training.warmup_steps, training.steps)
    return schedule
