"""The figures of a step's rollouts, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from posttrain.batch import Source, TokenSequence
from posttrain.trainer.distributed import add_over_ranks, largest_over_ranks
from posttrain.trainer.step_data import StepData
from posttrain.trajectory import Dropped, StopReason


def rollout_metrics(
    data: StepData,
    step: int,
    *,
    graded: bool,
    accelerator: Any,
    rewards: Sequence[str] = (),
    reference: bool = False,
) -> dict[str, float]:
    """Counts, reward statistics over the graded trajectories, and how old the policies are that sampled them.

    step: optimiser steps made before this one; a turn's staleness is that minus its policy's version. Groups that were
    dropped as too old are counted (`num_dropped_groups`) and left out of everything else. graded: whether rewards are
    read; otherwise failures are counted. rewards: of which of them the mean is told apart (`rewards/NAME`). reference:
    whether logprobs of a reference are recorded; then kl_to_reference is the mean over completions of sum_t log
    pi_sampler/pi_ref, in nats: KL(pi || pi_ref) where the sampler draws from the whole distribution. turns_mean,
    invalid_actions_share: of episodes of several turns, the latter over all turns. What there is nothing of has no
    figure.
    """
    policys = [one for one in data.played if not one.by_reference]
    stale = {one.group for one in policys if one.trajectory.dropped is Dropped.STALE}
    played = [one for one in policys if one.group not in stale]
    trajectories = [one.trajectory for one in played]
    with_reward = [t for t in trajectories if t.reward is not None]
    ages = [step - turn.policy_version for t in trajectories for turn in t.turns]
    local = [
        len({one.group for one in played}),
        len(stale),
        len(trajectories),
        len(with_reward),
        sum(t.stop_reason is StopReason.LENGTH for t in trajectories),
        sum(t.reward or 0.0 for t in with_reward),
        sum(t.shaping or 0.0 for t in with_reward),
        sum(t.solved is True for t in with_reward),
        sum(t.num_completion_tokens for t in trajectories),
        sum(t.error is not None for t in trajectories),
        len(ages),
        sum(ages),
        sum(t.num_invalid for t in trajectories),
    ]
    sums = add_over_ranks(accelerator, torch.tensor(local, dtype=torch.float64)).tolist()
    groups, dropped, num, num_graded, truncated, reward, shaping, solved, tokens, failed, turns, age, invalid = sums
    oldest = largest_over_ranks(accelerator, max(ages, default=0))
    metrics = {"num_groups": groups, "num_dropped_groups": dropped}
    metrics |= {"num_graded": num_graded, "num_ungraded": num - num_graded} if graded else {"num_failed": failed}
    if num_graded:
        metrics |= {"reward_mean": reward / num_graded, "pass_rate": solved / num_graded}
    if shaping:
        metrics["shaping_mean"] = shaping / num_graded
    if num:
        metrics |= {"num_truncated": truncated, "completion_tokens_mean": tokens / num, "rollout_tokens": tokens}
    if turns > num:
        metrics |= {"turns_mean": turns / num, "invalid_actions_share": invalid / turns}
    if turns:
        metrics |= {"staleness_mean": age / turns, "staleness_max": oldest}
    apart = [[t.rewards.get(name) for t in with_reward] for name in rewards]
    apart += [_divergences(data.sequences)] if reference else []
    means = _means(apart, accelerator)
    names = [f"rewards/{name}" for name in rewards] + ["kl_to_reference"] * reference
    return metrics | {name: mean for name, mean in zip(names, means, strict=True) if mean is not None}


def _divergences(sequences: Sequence[TokenSequence]) -> list[float | None]:
    """sum_t log pi_sampler/pi_ref of each rollout that has both."""
    found: dict[object, float] = {}
    for number, one in enumerate(sequences):
        if one.source is Source.ROLLOUTS and one.behavior_logprobs and one.reference_logprobs:
            own = math.fsum(one.behavior_logprobs) - math.fsum(one.reference_logprobs)
            key = number if one.trajectory_key is None else one.trajectory_key
            found[key] = found.get(key, 0.0) + own
    return list(found.values())


def _means(values: Sequence[Sequence[float | None]], accelerator: Any) -> list[float | None]:
    """The mean of each list over all ranks, without what is None; None where nothing is left."""
    if not values:
        return []
    known = [[value for value in own if value is not None] for own in values]
    sums = torch.tensor([[sum(own), float(len(own))] for own in known], dtype=torch.float64)
    return [total / count if count else None for total, count in add_over_ranks(accelerator, sums).tolist()]


def engine_metrics(counters: Mapping[str, float], accelerator: Any) -> dict[str, float]:
    """The engine's counters, summed over ranks, as engine/NAME; every rank's engine must have the same ones."""
    if not counters:
        return {}
    names = sorted(counters)
    values = torch.tensor([float(counters[name]) for name in names], dtype=torch.float64)
    return {f"engine/{n}": value for n, value in zip(names, add_over_ranks(accelerator, values).tolist(), strict=True)}
