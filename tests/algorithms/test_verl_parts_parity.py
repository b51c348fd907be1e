"""Promise 1 for parts, written as terms: verl's aggregations, masks, baselines and penalties, to 1e-6 in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.estimator import Source
from posttrain.models.head import token_logprobs
from tests.algorithms.parity import load_verl
from tests.algorithms.verl_losses import advantages, loss, rollouts

TERM: dict[str, Any] = {"source": "rollouts", "denominator": "old", "mask": "clip", "advantage": "group_relative"}
ON_POLICY: dict[str, Any] = {"source": "rollouts"}
AGGREGATIONS: list[tuple[str, Any]] = [
    ("token-mean", "token_mean"),
    ("token-sum", "sum"),
    ("seq-mean-token-sum", {"name": "fixed_length", "length": 1}),
    ("seq-mean-token-sum-norm", {"name": "fixed_length", "length": 16}),
    ("seq-mean-token-mean", "sequence_mean"),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("mode", "aggregation"), AGGREGATIONS, ids=[mode for mode, _ in AGGREGATIONS])
def test_aggregation(mode: str, aggregation: Any, seed: int, world: Any, verl: Any, parity: Any) -> None:
    here = rollouts(world, seed)
    theirs = loss(verl, here, "vanilla", advantages(verl, here, "grpo"), mode, clip_ratio_c=1e6)
    ours = load("terms", terms=[TERM | {"aggregation": aggregation}])
    parity.gradients(ours, "verl", f"aggregation {mode}", here, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_gpg(seed: int, world: Any, verl: Any, parity: Any) -> None:
    """No reward is 0 here, so that verl's correction for zeros is 1."""
    here = rollouts(world, seed)
    theirs = loss(verl, here, "gpg", advantages(verl, here, "gpg"))
    ours = load("terms", terms=[ON_POLICY | {"advantage": {"name": "group_relative", "std": False}}])
    parity.gradients(ours, "verl", "gpg, gpg", here, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_opo(seed: int, world: Any, verl: Any, parity: Any) -> None:
    here = rollouts(world, seed)
    theirs = loss(verl, here, "gpg", advantages(verl, here, "opo"), "seq-mean-token-sum")
    term = ON_POLICY | {"advantage": "length_baseline", "aggregation": {"name": "fixed_length", "length": 1}}
    parity.gradients(load("terms", terms=[term]), "verl", "opo, log-likelihood loss", here, theirs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("mode", "threshold"), [("truncate", 1.5), ("mask", "0.5_1.5")])
def test_sampler_correction(
    mode: str, threshold: Any, level: str, seed: int, world: Any, verl: Any, parity: Any
) -> None:
    here = rollouts(world, seed)
    mask = here.mask()
    behavior = here.recorded("old") + 0.3 * here.recorded("reference")
    helper = load_verl("verl.trainer.ppo.rollout_corr_helper")
    weights, _ = helper.compute_rollout_correction_weights(here.recorded("old") - behavior, mask, level, threshold)
    theirs = loss(verl, here, "vanilla", advantages(verl, here, "grpo"), weights=weights, clip_ratio_c=1e6)
    correction = {"name": "sampler_correction", "level": level, "mode": mode, "cap": 1.5}
    correction |= {"floor": 0.5} if mode == "mask" else {}
    ours = load("terms", terms=[TERM | {"mask": {"name": "product", "first": "clip", "second": correction}}])
    batch = lambda flat: here.batch(flat).replace(behavior_logprobs=behavior[mask.bool()])  # noqa: E731
    parity.gradients(ours, "verl", f"rollout_is {level}, {mode}", here, theirs, batch)


@pytest.mark.parametrize("seed", range(3))
def test_sapo(seed: int, world: Any, verl: Any, parity: Any) -> None:
    here = rollouts(world, seed)
    theirs = loss(verl, here, "sapo", advantages(verl, here, "grpo"), tau_pos=1.0, tau_neg=1.05)
    ours = load("terms", terms=[TERM | {"mask": "soft_gate", "aggregation": "sequence_mean"}])
    parity.gradients(ours, "verl", "grpo, sapo", here, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_gmpo(seed: int, world: Any, verl: Any, parity: Any) -> None:
    here = rollouts(world, seed)
    bounds = {"clip_ratio_low": 0.3, "clip_ratio_high": 0.4}
    theirs = loss(verl, here, "geo_mean", advantages(verl, here, "grpo"), **bounds)
    mask = {"name": "geometric_clip", "low": 0.3, "high": 0.4}
    term = ON_POLICY | {"advantage": "group_relative", "mask": mask, "aggregation": "sequence_mean"}
    parity.gradients(load("terms", terms=[term]), "verl", "grpo, geo_mean", here, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_dro(seed: int, world: Any, verl: Any, parity: Any) -> None:
    """The penalty beta/2 log(pi/pi_old)^2 is a k2 term whose reference is the old policy."""
    here = rollouts(world, seed)
    theirs = loss(verl, here, "dro", advantages(verl, here, "grpo"), dro_beta=0.3)
    penalty = {"term": "kl", "advantage": {"name": "reference_kl", "estimator": "k2"}, "weight": 0.3}
    ours = load("terms", terms=[ON_POLICY | {"advantage": "group_relative"}, ON_POLICY | penalty])
    old = lambda flat: here.batch(flat).replace(reference_logprobs=here.batch(flat).old_logprobs)  # noqa: E731
    parity.gradients(ours, "verl", "grpo, dro", here, theirs, old)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("ours", "theirs"), [("k2", "k2"), ("k3", "k3"), ("k1", "k1+"), ("k1", "k3+")])
def test_kl_penalty(ours: str, theirs: str, seed: int, world: Any, verl: Any, parity: Any) -> None:
    """verl's k1 and k3 with a "+" have the gradient of k2, which is that of our k1; its plain k1 has a useless one."""
    here = world(seed, sources=[Source.ROLLOUTS], binary=False, drift=0.1)

    def penalty(flat: Tensor) -> Tensor:
        matrix = verl.kl_penalty(here.padded(flat), here.recorded("reference"), theirs)
        value: Tensor = verl.agg_loss(matrix, here.mask(), "token-mean")
        return value

    algorithm = load("terms", terms=[ON_POLICY | {"advantage": {"name": "reference_kl", "estimator": ours}}])
    parity.gradients(algorithm, "verl", f"KL penalty {theirs}", here, penalty)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_entropy(mode: str, seed: int, world: Any, verl: Any, parity: Any) -> None:
    """The bonus through our fused head, against verl's through logits; with respect to the hidden states, in float64:
    in float32, verl's log-sum-exp minus mean logit loses digits."""
    here = rollouts(world, seed)
    generator = torch.Generator().manual_seed(seed)
    num_tokens = sum(len(row.tokens) for row in here.rows)
    hidden = torch.randn(num_tokens, 8, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(11, 8, generator=generator, dtype=torch.float64)
    ids = torch.randint(11, (num_tokens,), generator=generator)
    scored = token_logprobs(hidden, weight, None, ids, torch.ones(num_tokens))
    aggregation = "token_mean" if mode == "token-mean" else "sequence_mean"
    algorithm = load("terms", terms=[ON_POLICY | {"likelihood": "entropy", "aggregation": aggregation}])
    ours = algorithm(here.batch(scored.logprobs).replace(entropy=scored.entropy)).loss
    theirs = -verl.compute_entropy_loss(here.padded(hidden @ weight.T), here.mask(), mode)
    (found,), (expected,) = (torch.autograd.grad(value, hidden) for value in (ours, theirs))
    parity("terms", "verl", f"entropy, {mode}", found, expected)
