"""KTO: the paper's loss, TRL's, one reference point for the whole step, and mismatched prompts without a gradient."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.estimator import Source

SETTINGS = [
    {},
    {"beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.4},
    {"loss": "apo_zero", "beta": 0.7},
]
EACH = pytest.mark.parametrize("settings", SETTINGS, ids=str)


def singles(world: Any, seed: int, shift: float = 0.3) -> Any:
    """Twelve labelled completions, and six mismatched ones at the end whose log-ratios are `shift` a token on average.

    Their old policy is the current one, as it is at the start of a step.
    """
    here = world(seed, sources=[Source.PREFERENCES], num_groups=9, drift=1.0)
    draw = random.Random(seed)
    current = [values.tolist() for values in here.logprobs()]
    rows = [replace(row, old=now) for row, now in zip(here.rows, current, strict=True)]
    labelled = [replace(row, reward=float(draw.random() < 0.5), pair=-1) for row in rows[:12]]
    others = [
        replace(row, reward=None, pair=-1, reference=[value - shift + draw.gauss(0, 0.1) for value in row.old])
        for row in rows[12:]
    ]
    return replace(here, rows=labelled + others)


def ratios(world: Any, flat: Tensor) -> Tensor:
    """Summed log pi - log pi_ref of each row."""
    pieces = flat.split([len(row.tokens) for row in world.rows])
    reference = [torch.tensor(row.reference, dtype=flat.dtype) for row in world.rows]
    return torch.stack([(own - other).sum() for own, other in zip(pieces, reference, strict=True)])


def paper(world: Any, flat: Tensor, settings: dict[str, Any]) -> Tensor:
    """2402.01306 eq. 8; 2408.06266's unpaired APO-zero is the same without a reference point."""
    values = {"loss": "kto", "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0} | settings
    found = ratios(world, flat)
    rewards = [row.reward for row in world.rows]
    point = torch.stack([r for r, reward in zip(found, rewards, strict=True) if reward is None]).mean().detach()
    point = point.clamp(min=0) if values["loss"] == "kto" else torch.zeros_like(point)
    total, count = torch.zeros_like(point), 0
    for ratio, reward in zip(found, rewards, strict=True):
        if reward is None:
            continue
        count += 1
        if reward:
            total = total + values["desirable_weight"] * (1 - torch.sigmoid(values["beta"] * (ratio - point)))
        else:
            total = total + values["undesirable_weight"] * (1 - torch.sigmoid(values["beta"] * (point - ratio)))
    return total / count


@EACH
@pytest.mark.parametrize("shift", [0.3, -0.3])
@pytest.mark.parametrize("seed", range(2))
def test_gradient_is_the_papers(settings: dict[str, Any], shift: float, seed: int, world: Any, gradient: Any) -> None:
    here = singles(world, seed, shift)
    flat = torch.cat(here.logprobs()).detach().requires_grad_()
    ours = gradient(load("kto", **settings)(here.batch(flat)).loss, flat)
    expected = gradient(paper(here, flat, settings), flat)
    assert expected.abs().max() > 0
    assert (ours - expected).abs().max() <= 1e-9 * expected.abs().max()
    labelled = sum(len(row.tokens) for row in here.rows[:12])
    assert not ours[labelled:].any(), "mismatched prompts have no gradient"


def test_the_reference_point_is_that_of_all_ranks(world: Any, gradient: Any) -> None:
    here = singles(world, 1)
    algorithm = load("kto")
    whole = algorithm.prepare(here.batch())
    expected = gradient(algorithm(here.batch()).loss, here.theta)
    ranks = [replace(here, rows=rows) for rows in (here.rows[:5], here.rows[5:])]  # the first has no mismatched prompt
    seen: list[Tensor] = []
    for rank in ranks:
        algorithm.prepare(rank.batch(), lambda moments: (seen.append(moments), moments)[1])
    prepared = [algorithm.prepare(rank.batch(), lambda _: torch.stack(seen).sum(0)) for rank in ranks]
    for batch in prepared:
        torch.testing.assert_close(batch.advantages.unique(), whole.advantages.unique(), rtol=1e-12, atol=0)
    count = sum(algorithm.counts(batch) for batch in prepared)
    loss = sum(algorithm.totals(batch)[0].sum() / count for batch in prepared)
    torch.testing.assert_close(gradient(loss.sum(), here.theta), expected, rtol=1e-11, atol=1e-15)


def test_mismatched_prompts_are_pruned_and_the_point_is_reported(world: Any) -> None:
    here = singles(world, 0)
    algorithm = load("kto")
    assert algorithm.active(algorithm.prepare(here.batch())).tolist() == [True] * 12 + [False] * 6
    metrics = algorithm(here.batch()).metrics
    expected = ratios(here, torch.cat(here.logprobs()).detach())[12:].mean()
    assert metrics["prospect/reference_point"] == pytest.approx(float(expected), rel=1e-12)
    assert float(expected) > 0


def test_without_a_mismatched_prompt_the_point_is_0(world: Any, gradient: Any) -> None:
    here = singles(world, 2)
    here = replace(here, rows=here.rows[:12])
    ours, zero = (gradient(load("kto", loss=loss)(here.batch()).loss, here.theta) for loss in ("kto", "apo_zero"))
    torch.testing.assert_close(ours, zero, rtol=0, atol=0)


def test_what_kto_needs() -> None:
    assert load("kto").plan.mismatched
    assert "old_logprobs" in load("kto").prepare_needs
    assert not load("kto", loss="apo_zero").plan.mismatched
    assert load("kto", loss="apo_zero").needs == {"rewards", "reference_logprobs"}
    with pytest.raises(ValueError, match=r"desirable is -1.0, undesirable is 1.0; allowed: weights of at least 0"):
        load("kto", desirable_weight=-1.0)


def trl_kto(world: Any, flat: Tensor, **settings: Any) -> Tensor:
    """`KTOTrainer._compute_loss` with a model that returns the labelled rows of `flat`."""
    from trl import KTOTrainer

    labelled = [row for row in world.rows if row.reward is not None]
    logprobs, mask = (world.padded(values)[: len(labelled)] for values in (flat, torch.ones_like(flat)))
    fill = torch.zeros_like(logprobs).detach()
    mask = torch.cat([torch.zeros(len(labelled), 1), mask], 1).long()
    found = ratios(world, flat).detach()
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": torch.tensor([row.reward == 1.0 for row in labelled]),
        "ref_logps": torch.tensor([sum(row.reference) for row in labelled], dtype=flat.dtype),
        "ref_KL_logps": torch.zeros(len(world.rows) - len(labelled)),
    }
    outputs = SimpleNamespace(log_probs=logprobs, entropy=fill, mean_logits=fill)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device=flat.device, gather_for_metrics=lambda x: x),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=settings["loss_type"] == "kto",
        _compute_kl_logps=lambda model, batch: found[len(labelled) :],
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )
    loss: Tensor = KTOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)
    return loss


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("what", "ours", "theirs"),
    [
        ("kto", {}, (0.1, 1.0, 1.0)),
        ("kto", {"beta": 0.4, "desirable_weight": 1.3, "undesirable_weight": 0.6}, (0.4, 1.3, 0.6)),
        ("apo_zero_unpaired", {"loss": "apo_zero"}, (0.1, 1.0, 1.0)),
    ],
)
def test_trl_kto_parity(
    what: str, ours: dict[str, Any], theirs: tuple[float, ...], seed: int, world: Any, parity: Any
) -> None:
    here = singles(world, seed)
    settings = dict(zip(("beta", "desirable_weight", "undesirable_weight"), theirs, strict=True))
    parity.gradients(
        load("kto", **ours), "trl", f"loss {what}", here, lambda flat: trl_kto(here, flat, loss_type=what, **settings)
    )


def test_written_as_terms(world: Any, gradient: Any) -> None:
    term = {"source": "preferences", "advantage": {"name": "prospect_value", "beta": 0.2}}
    written = load("terms", terms=[term | {"aggregation": "fixed_length"}])
    kto = load("kto", beta=0.2)
    assert written.plan == kto.plan
    here = singles(world, 0)
    ours, expected = (gradient(algorithm(here.batch()).loss, here.theta) for algorithm in (written, kto))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
