"""Distillation's gradients equal those of TRL's GKD loss to 1e-6, in float64: float32 loses digits in the mixture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.estimator import Source
from posttrain.models.divergence import Scores, token_divergence


@pytest.mark.filterwarnings("ignore:You are importing from .trl.experimental")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("off_policy", [False, True])
def test_gkd(beta: float, temperature: float, off_policy: bool, world: Any, parity: Any) -> None:
    from trl.experimental.gkd import GKDTrainer

    here = world(3, sources=[Source.DEMONSTRATIONS if off_policy else Source.ROLLOUTS])
    generator = torch.Generator().manual_seed(1)
    num_tokens = sum(len(row.tokens) for row in here.rows)
    student, teacher = (torch.randn(num_tokens, 50, generator=generator, dtype=torch.float64) for _ in range(2))

    def theirs(logits: Tensor) -> Tensor:
        labels = torch.where(here.mask() > 0, 0, -100)
        padded = here.padded(logits), here.padded(teacher)
        return GKDTrainer.generalized_jsd_loss(*padded, labels=labels, beta=beta, temperature=temperature)

    def ours(logits: Tensor) -> Tensor:
        settings = {"beta": beta, "token_mean": True, "on_policy": 1.0 - off_policy, "off_policy": float(off_policy)}
        algorithm, identity = load("distill", **settings), torch.eye(50, dtype=torch.float64)
        sides = Scores(logits, identity), Scores(teacher, identity)
        temperatures = torch.full((num_tokens,), temperature)
        divergence = token_divergence(algorithm.divergence, *sides, temperatures, chunk_bytes=4000)
        return algorithm(here.batch().replace(divergence=divergence)).loss

    gradients = []
    for loss in (ours, theirs):
        leaf = student.clone().requires_grad_()
        gradients.append(torch.autograd.grad(loss(leaf), leaf)[0])
    parity("distill", "trl", f"GKD, beta {beta:g}", *gradients)
