"""verl's advantages and policy losses on a world of rollouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.estimator import Source
from tests.algorithms.parity import load_verl


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
