"""Promise 1: gradients equal those of verl's pure functions, its advantages fed to its losses, to 1e-6 in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.estimator import Source
from posttrain.models.head import token_logprobs
from tests.algorithms.parity import load_verl

TERM: dict[str, Any] = {"source": "rollouts", "denominator": "old", "mask": "clip", "advantage": "group_relative"}
ON_POLICY: dict[str, Any] = {"source": "rollouts"}


def rollouts(world: Any, seed: int) -> Any:
    return world(seed, sources=[Source.ROLLOUTS], binary=False)


def outcome(here: Any) -> Tensor:
    """Each reward on its completion's last token, [S, T]."""
    mask = here.mask()
    last = torch.nn.functional.one_hot(mask.sum(1).long() - 1, mask.shape[1])
    return last * torch.tensor([[row.reward] for row in here.rows])


def advantages(verl: Any, here: Any, name: str, rewards: Tensor | None = None, **settings: Any) -> Tensor:
    """[S, T] of verl's estimator, in float64; rewards [S, T]: by default each on its completion's last token."""
    rewards = (outcome(here) if rewards is None else rewards).double()
    groups = np.array([row.group for row in here.rows])
    settings = {"index": groups, "config": load_verl("verl.trainer.config").AlgoConfig()} | settings
    estimator = verl.get_adv_estimator_fn(name)
    found: Tensor = estimator(token_level_rewards=rewards, response_mask=here.mask().double(), **settings)[0]
    return found.float()


def loss(
    verl: Any,
    here: Any,
    name: str,
    advantage: Tensor,
    mode: str = "token-mean",
    weights: Tensor | None = None,
    **settings: Any,
) -> Callable[[Tensor], Tensor]:
    """verl's policy loss as a function of the logprobs [A]."""
    workers = load_verl("verl.workers.config")
    special = {key: settings.pop(key) for key in list(settings) if key == "dro_beta"}
    config = workers.ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        use_dynamic_bsz=True,
        policy_loss=workers.PolicyLossConfig(**special),
        global_batch_info={"loss_scale_factor": 16} if mode.endswith("norm") else {},
        **settings,
    )

    def of(flat: Tensor) -> Tensor:
        arguments = here.recorded("old"), here.padded(flat), advantage, here.mask(), mode, config, weights
        value: Tensor = verl.get_policy_loss_fn(name)(*arguments)[0]
        return value

    return of


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("estimator", ["grpo", "grpo_vectorized"])
def test_grpo(estimator: str, seed: int, world: Any, verl: Any, parity: Any) -> None:
    here = rollouts(world, seed)
    theirs = loss(verl, here, "vanilla", advantages(verl, here, estimator))
    parity.gradients(load("grpo", preset="verl"), "verl", f"{estimator}, vanilla", here, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_dual_clip(seed: int, world: Any, verl: Any, parity: Any) -> None:
    here = rollouts(world, seed)
    theirs = loss(verl, here, "vanilla", advantages(verl, here, "grpo"), clip_ratio_c=1.4)
    ours = load("grpo", preset="verl", dual_clip=1.4)
    parity.gradients(ours, "verl", "grpo, vanilla, clip_ratio_c 1.4", here, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_dapo(seed: int, world: Any, verl: Any, parity: Any) -> None:
    here = rollouts(world, seed)
    # verl's dual clip cannot be turned off; 1e6 is out of reach
    theirs = loss(verl, here, "vanilla", advantages(verl, here, "grpo"), clip_ratio_high=0.28, clip_ratio_c=1e6)
    parity.gradients(load("dapo", mixed_only=False), "verl", "grpo, vanilla, clip-higher", here, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_dr_grpo(seed: int, world: Any, verl: Any, parity: Any) -> None:
    here = rollouts(world, seed)
    centred = advantages(verl, here, "grpo", norm_adv_by_std_in_grpo=False)
    theirs = loss(verl, here, "vanilla", centred, "seq-mean-token-sum-norm", clip_ratio_c=1e6)
    parity.gradients(load("dr_grpo", length=16), "verl", "grpo without std, seq-mean-token-sum-norm", here, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_gspo(seed: int, world: Any, verl: Any, parity: Any) -> None:
    here = rollouts(world, seed)
    bounds = {"clip_ratio_low": 0.05, "clip_ratio_high": 0.1}
    theirs = loss(verl, here, "gspo", advantages(verl, here, "grpo"), "seq-mean-token-mean", **bounds)
    parity.gradients(load("gspo", clip_low=0.05, clip_high=0.1), "verl", "grpo, gspo", here, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_cispo(seed: int, world: Any, verl: Any, parity: Any) -> None:
    here = rollouts(world, seed)
    theirs = loss(verl, here, "cispo", advantages(verl, here, "grpo"), clip_ratio_low=0.2, clip_ratio_high=0.3)
    parity.gradients(load("cispo", cap=1.3, floor=0.8), "verl", "grpo, cispo", here, theirs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("estimator", ["rloo", "rloo_vectorized"])
def test_rloo(estimator: str, seed: int, world: Any, verl: Any, parity: Any) -> None:
    here = rollouts(world, seed)
    theirs = loss(verl, here, "gpg", advantages(verl, here, estimator), "seq-mean-token-sum")
    parity.gradients(load("rloo", kl_weight=0.0), "verl", f"{estimator}, log-likelihood loss", here, theirs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
def test_reinforce_pp(kl_weight: float, seed: int, world: Any, verl: Any, parity: Any) -> None:
    here = rollouts(world, seed)
    rewards = verl.compute_rewards(outcome(here), here.recorded("old"), here.recorded("reference"), kl_weight)
    theirs = loss(verl, here, "vanilla", advantages(verl, here, "reinforce_plus_plus", rewards), clip_ratio_c=1e6)
    what = f"reinforce_plus_plus, vanilla{', KL in the reward' if kl_weight else ''}"
    parity.gradients(load("reinforce_pp", kl_weight=kl_weight), "verl", what, here, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_reinforce_pp_with_a_baseline(seed: int, world: Any, verl: Any, parity: Any) -> None:
    here = rollouts(world, seed)
    theirs = loss(verl, here, "vanilla", advantages(verl, here, "reinforce_plus_plus_baseline"), clip_ratio_c=1e6)
    ours = load("reinforce_pp", group_baseline=True, kl_weight=0.0)
    parity.gradients(ours, "verl", "reinforce_plus_plus_baseline, vanilla", here, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_reinforce(seed: int, world: Any, verl: Any, parity: Any) -> None:
    """ReMax's estimator with a baseline of 0.5 for every prompt."""
    here = rollouts(world, seed)
    held = advantages(verl, here, "remax", reward_baselines=torch.full((len(here.rows),), 0.5))

    def theirs(flat: Tensor) -> Tensor:
        config = load_verl("types").SimpleNamespace(global_batch_info={})
        value: Tensor = verl.compute_policy_loss_reinforce(
            here.recorded("old"), here.padded(flat), held, here.mask(), "seq-mean-token-sum", config
        )[0]
        return value

    parity.gradients(load("reinforce", baseline=0.5), "verl", "remax at a constant baseline, reinforce", here, theirs)


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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("divergence", "threshold"), [("tv", 0.05), ("kl", 0.01)])
def test_dppo(divergence: str, threshold: float, seed: int, world: Any, verl: Any, parity: Any) -> None:
    here = rollouts(world, seed)
    bounds = {"clip_ratio_low": threshold, "clip_ratio_high": threshold, "clip_ratio_c": 1e6}
    theirs = loss(verl, here, f"dppo_{divergence}", advantages(verl, here, "grpo"), **bounds)
    ours = load("dppo", divergence=divergence, threshold=threshold)
    parity.gradients(ours, "verl", f"grpo, dppo_{divergence}", here, theirs)
    flat = torch.cat(here.logprobs()).detach().requires_grad_()
    (found,) = torch.autograd.grad(ours(here.batch(flat)).loss, flat)
    assert 0 < (found == 0).sum() < len(found)  # some actions are beyond the threshold, some are not


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
def test_ppo(kl_weight: float, seed: int, world: Any, verl: Any, parity: Any) -> None:
    here = rollouts(world, seed)
    ours = load("ppo", preset="verl", gamma=0.9, lambda_=0.8, kl_weight=kl_weight, kl_place="reward")
    rewards = verl.compute_rewards(outcome(here), here.recorded("old"), here.recorded("reference"), kl_weight).double()
    mask = here.mask().double()
    gae, returns = verl.compute_gae_advantage_return(
        rewards * mask, here.recorded("old_values").double(), mask, 0.9, 0.8
    )
    what = f"gae, vanilla{', KL in the reward' if kl_weight else ''}"
    parity.gradients(ours, "verl", what, here, loss(verl, here, "vanilla", gae.float()))

    values = torch.cat(here.values()).detach().float().requires_grad_()
    theirs, _ = verl.compute_value_loss(
        here.padded(values), returns.float(), here.recorded("old_values"), here.mask(), cliprange_value=0.5
    )
    mine = ours(here.batch(torch.cat(here.logprobs()).detach().float()).replace(values=values)).loss
    found = (torch.autograd.grad(value, values)[0] for value in (mine, theirs))
    parity("ppo", "verl", f"value loss{', KL in the reward' if kl_weight else ''}", *found)
