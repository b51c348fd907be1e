"""Promise 1: gradients with respect to the logprobs equal those of TRL's own loss code, to 1e-6 relative in float32."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.estimator import Source

PAIRS = 6


def padded(world: Any, values: list[Tensor]) -> Tensor:
    """[2 * pairs, T], the chosen sides first, as TRL lays them out; zeros after a side's end."""
    width = max(len(row.tokens) for row in world.rows)
    rows = [torch.cat([value, value.new_zeros(width - len(value))]) for value in values]
    return torch.stack(rows[0::2] + rows[1::2])


def pieces(world: Any, flat: Tensor) -> list[Tensor]:
    return list(flat.split([len(row.tokens) for row in world.rows]))


def trl_dpo(world: Any, flat: Tensor, loss_type: str, weights: dict[str, float], **settings: Any) -> Tensor:
    """`DPOTrainer._compute_loss` with a model that returns `flat`; the reference's sums are handed over."""
    from trl import DPOTrainer

    logprobs = padded(world, pieces(world, flat))
    fill = torch.zeros_like(logprobs).detach()
    outputs = SimpleNamespace(log_probs=logprobs, entropy=fill, mean_logits=fill, is_top1=fill.bool())
    completion = padded(world, [torch.ones(len(row.tokens)) for row in world.rows])
    mask = torch.cat([torch.zeros(len(world.rows), 1), completion], 1).long()
    reference = torch.tensor([sum(row.reference) for row in world.rows], dtype=flat.dtype)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference[0::2],
        "ref_rejected_logps": reference[1::2],
    }
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device=flat.device, gather=lambda x: x, gather_for_metrics=lambda x: x),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        ld_alpha=None,
        args=SimpleNamespace(discopop_tau=0.5),  # at its usual 0.05, TRL's float32 is 2e-6 from its own float64
        use_weighting=False,
        loss_types=[loss_type, *weights],
        loss_weights=[1.0, *weights.values()],
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **({"label_smoothing": 0.0, "f_divergence_type": "reverse_kl"} | settings),
    )
    loss: Tensor = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)
    return loss


def sums(world: Any, flat: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
    """Summed or mean logprobs of the chosen and of the rejected sides."""
    totals = torch.stack([piece.mean() if mean else piece.sum() for piece in pieces(world, flat)])
    return totals[0::2], totals[1::2]


def trl_cpo(world: Any, flat: Tensor, mean: bool, **settings: Any) -> Tensor:
    """`CPOTrainer.cpo_loss`."""
    from trl.experimental.cpo import CPOTrainer

    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device=flat.device), alpha=0.0, label_smoothing=0.0, **settings
    )
    loss: Tensor = CPOTrainer.cpo_loss(trainer, *sums(world, flat, mean))[0].mean()
    return loss


def trl_orpo(world: Any, flat: Tensor, beta: float) -> Tensor:
    """`ORPOTrainer.odds_ratio_loss`, which TRL subtracts."""
    from trl.experimental.orpo import ORPOTrainer

    trainer = SimpleNamespace(accelerator=SimpleNamespace(device=flat.device), beta=beta)
    loss: Tensor = -ORPOTrainer.odds_ratio_loss(trainer, *sums(world, flat, mean=True))[0].mean()
    return loss


def preferences(world: Any, seed: int, lengths: tuple[int, int] = (1, 7)) -> Any:
    return world(seed, sources=[Source.PREFERENCES], num_groups=PAIRS, drift=1.0, lengths=lengths)


DPO: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({}, "sigmoid", {"beta": 0.1}),
    ({"beta": 0.5}, "sigmoid", {"beta": 0.5}),
    ({"loss": "hinge", "beta": 0.4}, "hinge", {"beta": 0.4}),
    ({"loss": "ipo", "length_normalised": True}, "ipo", {"beta": 0.1}),
    ({"label_smoothing": 0.2, "robust": True}, "robust", {"beta": 0.1, "label_smoothing": 0.2}),
    ({"length_normalised": True, "beta": 2.0}, "sigmoid_norm", {"beta": 2.0}),
    ({"loss": "exo", "beta": 0.5}, "exo_pair", {"beta": 0.5, "label_smoothing": 1e-3}),
    ({"loss": "exo", "loss_constant": 0.1}, "exo_pair", {"beta": 0.1, "label_smoothing": 0.1}),
    ({"loss": "nca", "beta": 0.3}, "nca_pair", {"beta": 0.3}),
    ({"loss": "bco"}, "bco_pair", {"beta": 0.1}),
    ({"loss": "sppo", "beta": 0.4}, "sppo_hard", {"beta": 0.4}),
    ({"loss": "apo_zero"}, "apo_zero", {"beta": 0.1}),
    ({"loss": "apo_down", "beta": 0.6}, "apo_down", {"beta": 0.6}),
    ({"loss": "discopop", "loss_constant": 0.5}, "discopop", {"beta": 0.1}),
    ({"divergence": "forward_kl"}, "sigmoid", {"beta": 0.1, "f_divergence_type": "forward_kl"}),
    ({"divergence": "js", "loss": "hinge"}, "hinge", {"beta": 0.1, "f_divergence_type": "js_divergence"}),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("ours", "loss_type", "theirs"), DPO, ids=[loss for _, loss, _ in DPO])
def test_dpo(ours: dict[str, Any], loss_type: str, theirs: dict[str, Any], seed: int, world: Any, parity: Any) -> None:
    here = preferences(world, seed)
    what = ", ".join([f"loss {loss_type}", *filter(None, [theirs.get("f_divergence_type")])])
    parity.gradients(load("dpo", **ours), "trl", what, here, lambda flat: trl_dpo(here, flat, loss_type, {}, **theirs))


def test_dpo_with_an_sft_term_where_chosen_lengths_are_equal(world: Any, parity: Any) -> None:
    """TRL's sft term is a mean over the batch's tokens, ours (as RPO's) over pairs of their token means."""
    here = preferences(world, 0, lengths=(5, 5))
    parity.gradients(
        load("dpo", sft_weight=0.7),
        "trl",
        "loss sigmoid with an SFT term (equal lengths)",
        here,
        lambda flat: trl_dpo(here, flat, "sigmoid", {"sft": 0.7}, beta=0.1),
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("what", "ours", "mean", "theirs"),
    [
        ("simpo", {}, True, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0}),
        (
            "simpo of Mistral",
            {"beta": 2.5, "gamma": 0.3},
            True,
            {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 0.3},
        ),
        ("cpo", {"beta": 0.1, "gamma": 0.0, "length_normalised": False}, False, {"loss_type": "sigmoid", "beta": 0.1}),
        (
            "cpo hinge",
            {"loss": "hinge", "beta": 0.1, "gamma": 0.0, "length_normalised": False},
            False,
            {"loss_type": "hinge", "beta": 0.1},
        ),
        ("cpo ipo", {"loss": "ipo", "beta": 0.1, "gamma": 0.0}, True, {"loss_type": "ipo", "beta": 0.1}),
    ],
)
def test_simpo_and_cpo(
    what: str, ours: dict[str, Any], mean: bool, theirs: dict[str, Any], seed: int, world: Any, parity: Any
) -> None:
    here = preferences(world, seed)
    parity.gradients(load("simpo", **ours), "trl", what, here, lambda flat: trl_cpo(here, flat, mean, **theirs))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_orpo(weight: float, seed: int, world: Any, parity: Any) -> None:
    here = preferences(world, seed)
    algorithm = load("orpo", odds_weight=weight, sft_weight=0.0)
    parity.gradients(algorithm, "trl", "odds-ratio loss", here, lambda flat: trl_orpo(here, flat, weight))
