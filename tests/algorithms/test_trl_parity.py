"""Promise 1: gradients with respect to the logprobs equal those of TRL's GRPO and RLOO, to 1e-6 relative in float32.

`_compute_loss` runs as it is, on a bare object with the attributes that it reads; advantages and sampler weights, which
TRL makes elsewhere, are written out here.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.estimator import Source


def advantages(world: Any, std: bool = True, epsilon: float = 1e-4) -> Tensor:
    """`_generate_and_score_completions`: by rows of one group."""
    rewards = torch.tensor([row.reward for row in world.rows], dtype=torch.float64)
    grouped = rewards.view(len(world.of(Source.ROLLOUTS)), -1)
    centred = grouped - grouped.mean(1, keepdim=True)
    scaled = centred / (grouped.std(1, keepdim=True) + epsilon) if std else centred
    return scaled.flatten().float()


def namespace(logprobs: Tensor, **settings: Any) -> SimpleNamespace:
    """What both trainers' `_compute_loss` reads of self."""
    keep = lambda values, **_: values  # noqa: E731
    entropy = torch.zeros_like(logprobs).detach()
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(num_processes=1, gather=keep, reduce=keep, sync_gradients=True),
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, entropy, None),
        **({"epsilon_low": 0.2, "epsilon_high": 0.2} | settings),
    )


def completions(world: Any) -> dict[str, Tensor]:
    mask = world.mask()
    prompt = torch.zeros(len(mask), 1)
    return {"prompt_ids": prompt, "prompt_mask": prompt, "completion_ids": mask, "completion_mask": mask}


def trl_grpo(
    world: Any,
    flat: Tensor,
    advantage: Tensor,
    *,
    delta: float | None = None,
    weights: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """GRPOTrainer's loss of one batch."""
    from trl import GRPOTrainer

    defaults: dict[str, Any] = {
        "loss_type": "dapo",
        "importance_sampling_level": "token",
        "beta": 0.0,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": weights is not None,
        "vllm_importance_sampling_correction": weights is not None,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": 16,
        "_entropy_bonus_enabled": False,
        "args": SimpleNamespace(
            delta=delta,
            use_bias_correction_kl=False,
            steps_per_generation=1,
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
            vespo_k_pos=2.0,
            vespo_lambda_pos=3.0,
            vespo_k_neg=3.0,
            vespo_lambda_neg=2.0,
        ),
        "get_gamma_weights": GRPOTrainer.get_gamma_weights,
    }
    inputs = completions(world) | {
        "advantages": advantage,
        "old_per_token_logps": world.recorded("old"),
        "ref_per_token_logps": world.recorded("reference"),
        "num_items_in_batch": world.mask().sum(),
        "importance_sampling_ratio": weights,
    }
    trainer = namespace(world.padded(flat), **(defaults | settings))
    loss: Tensor = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss


def trl_rloo(world: Any, flat: Tensor, beta: float) -> Tensor:
    """RLOOTrainer's loss at the policy that sampled (later, TRL has a sequence ratio that the paper has not)."""
    from trl import RLOOTrainer

    mask = world.mask()
    penalty = ((world.recorded("old") - world.recorded("reference")) * mask).sum(1)
    rewards = torch.tensor([row.reward for row in world.rows]) - beta * penalty
    grouped = rewards.view(len(world.of(Source.ROLLOUTS)), -1)
    baselines = (grouped.sum(1, keepdim=True) - grouped) / (grouped.shape[1] - 1)
    logprobs = world.padded(flat)
    inputs = completions(world) | {
        "advantages": (grouped - baselines).flatten(),
        "old_logps": (logprobs.detach() * mask).sum(1),
    }
    loss: Tensor = RLOOTrainer._compute_loss(namespace(logprobs), None, inputs)
    return loss


SEQUENCE = {"preset": "trl", "aggregation": "sequence_mean"}
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("grpo", "grpo", SEQUENCE, {"loss_type": "grpo"}, {}),
    ("grpo, KL", "grpo", SEQUENCE | {"kl_weight": 0.3}, {"loss_type": "grpo", "beta": 0.3}, {}),
    ("grpo, delta", "grpo", SEQUENCE | {"dual_clip": 1.4}, {"loss_type": "grpo", "delta": 1.4}, {}),
    ("bnpo", "grpo", {"preset": "trl"}, {"loss_type": "bnpo"}, {}),
    ("dapo", "grpo", {"preset": "trl"}, {}, {}),
    ("dapo, KL", "grpo", {"preset": "trl", "kl_weight": 0.1}, {"beta": 0.1}, {}),
    ("dapo, clip-higher", "dapo", {"mixed_only": False}, {"epsilon_high": 0.28}, {"epsilon": 1e-6}),
    ("dr_grpo", "dr_grpo", {"length": 16}, {"loss_type": "dr_grpo"}, {"std": False}),
    ("cispo", "cispo", {"cap": 1.3}, {"loss_type": "cispo", "epsilon_high": 1.3}, {"epsilon": 1e-6}),
    (
        "gspo",
        "gspo",
        {"clip_low": 0.05, "clip_high": 0.1},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.1},
        {"epsilon": 1e-6},
    ),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("what", "name", "ours", "theirs", "advantage"), CASES, ids=[case[0] for case in CASES])
def test_grpo_trainer(
    what: str,
    name: str,
    ours: dict[str, Any],
    theirs: dict[str, Any],
    advantage: dict[str, Any],
    seed: int,
    world: Any,
    parity: Any,
) -> None:
    here = world(seed, sources=[Source.ROLLOUTS], binary=False)
    scaled = advantages(here, **advantage)
    parity.gradients(
        load(name, **ours), "trl", f"GRPO, {what}", here, lambda flat: trl_grpo(here, flat, scaled, **theirs)
    )


TERM: dict[str, Any] = {"source": "rollouts", "advantage": {"name": "group_relative", "epsilon": 1e-4}}
SEQUENCE_CLIP = {"name": "sequence_clip", "low": 0.05, "high": 0.1}
TERMS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "sapo",
        {"denominator": "old", "mask": "soft_gate", "aggregation": "sequence_mean"},
        {"loss_type": "sapo"},
    ),
    ("vespo", {"mask": "gamma_gate"}, {"loss_type": "vespo"}),
    (
        "luspo",
        {"denominator": "sequence_mean", "mask": SEQUENCE_CLIP, "aggregation": {"name": "fixed_length", "length": 1}},
        {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.1},
    ),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("what", "term", "theirs"), TERMS, ids=[case[0] for case in TERMS])
def test_loss_types_written_as_terms(
    what: str, term: dict[str, Any], theirs: dict[str, Any], seed: int, world: Any, parity: Any
) -> None:
    here = world(seed, sources=[Source.ROLLOUTS], binary=False)
    scaled = advantages(here)
    algorithm = load("terms", terms=[TERM | term])
    parity.gradients(algorithm, "trl", f"GRPO, {what}", here, lambda flat: trl_grpo(here, flat, scaled, **theirs))


@pytest.mark.parametrize("correction", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_sampler_correction(correction: str, world: Any, parity: Any) -> None:
    here = world(1, sources=[Source.ROLLOUTS], binary=False)
    mask = here.mask()
    behavior = here.recorded("old") + 0.5 * here.recorded("reference") * mask
    log_weights = (here.recorded("old") - behavior) * mask
    weights = (log_weights.sum(1, keepdim=True) if correction.startswith("sequence") else log_weights).exp()
    assert (weights > 3).any() and (weights < 3).any()
    inside = weights.clamp(max=3.0)
    weights = torch.where(weights > 3.0, 0.0 * inside, inside) if correction.endswith("mask") else inside
    parity.gradients(
        load("grpo", preset="trl", correction=correction),
        "trl",
        f"GRPO, sampler correction {correction}",
        here,
        lambda flat: trl_grpo(here, flat, advantages(here), weights=weights),
        lambda flat: here.batch(flat).replace(behavior_logprobs=behavior[mask.bool()]),
    )


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_rloo_trainer(beta: float, world: Any, parity: Any) -> None:
    here = world(2, sources=[Source.ROLLOUTS], binary=False)
    what = f"RLOO{', KL in the reward' if beta else ''}"
    parity.gradients(load("rloo", kl_weight=beta), "trl", what, here, lambda flat: trl_rloo(here, flat, beta))
