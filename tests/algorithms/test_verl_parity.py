"""Promise 1: gradients equal those of verl's pure functions, its advantages fed to its losses, to 1e-6 in float32."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from tests.algorithms.verl_losses import advantages, loss, outcome, rollouts


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
        config = SimpleNamespace(global_batch_info={})
        value: Tensor = verl.compute_policy_loss_reinforce(
            here.recorded("old"), here.padded(flat), held, here.mask(), "seq-mean-token-sum", config
        )[0]
        return value

    parity.gradients(load("reinforce", baseline=0.5), "verl", "remax at a constant baseline, reinforce", here, theirs)


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
