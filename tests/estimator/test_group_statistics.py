"""Advantages over groups and batches against verl's formulas, written out on padded tensors."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest
import torch

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import GroupRelative, LeaveOneOut, Reward
from posttrain.estimator.filters import MixedGroup
from posttrain.estimator.reward_kl import ReturnKL, RewardKL
from posttrain.estimator.whitening import Whitened


def draw(seed: int) -> tuple[list[int], list[int], list[float], list[float], list[float]]:
    """Lengths, groups, rewards of 12 sequences (group 3 has one); old and reference logprobs of their tokens."""
    random_ = random.Random(seed)
    groups = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 3]
    lengths = [random_.randint(1, 5) for _ in groups]
    old, reference = ([-3 * random_.random() for _ in range(sum(lengths))] for _ in range(2))
    return lengths, groups, [random_.random() for _ in groups], old, reference


def verl_grpo(scores: list[float], groups: list[int], std: bool, epsilon: float = 1e-6) -> list[float]:
    """compute_grpo_outcome_advantage; a group of one is 0 here, where verl leaves it its raw score."""
    of = defaultdict(list)
    for score, group in zip(scores, groups, strict=True):
        of[group].append(score)
    found = []
    for score, group in zip(scores, groups, strict=True):
        members = torch.tensor(of[group], dtype=torch.float64)
        centred = score - float(members.mean())
        single = len(members) == 1
        found.append(0.0 if single else centred / (float(members.std()) + epsilon) if std else centred)
    return found


def verl_rloo(scores: list[float], groups: list[int]) -> list[float]:
    """compute_rloo_outcome_advantage: score * n/(n-1) - mean * n/(n-1)."""
    found = []
    for score, group in zip(scores, groups, strict=True):
        members = [s for s, g in zip(scores, groups, strict=True) if g == group]
        n = len(members)
        found.append(score * n / (n - 1) - sum(members) / n * n / (n - 1) if n > 1 else 0.0)
    return found


def verl_reinforce_pp(scores: list[float], lengths: list[int], penalties: list[float]) -> list[float]:
    """compute_reinforce_plus_plus_outcome_advantage with gamma 1: returns backwards, then masked_whiten."""
    returns: list[float] = []
    start = 0
    for score, length in zip(scores, lengths, strict=True):
        rewards = [-p for p in penalties[start : start + length]]
        rewards[-1] += score
        start += length
        returns += [sum(rewards[t:]) for t in range(length)]
    values = torch.tensor(returns, dtype=torch.float64)
    return ((values - values.mean()) * torch.rsqrt(values.var() + 1e-8)).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_group_advantages(seed: int, batch_of: Any) -> None:
    lengths, groups, rewards, old, reference = draw(seed)
    batch = batch_of(lengths, groups=groups, rewards=rewards, old_logprobs=old, reference_logprobs=reference)
    assert GroupRelative()(batch).tolist() == pytest.approx(verl_grpo(rewards, groups, std=True))
    assert GroupRelative(std=False)(batch).tolist() == pytest.approx(verl_grpo(rewards, groups, std=False))
    assert LeaveOneOut()(batch).tolist() == pytest.approx(verl_rloo(rewards, groups))
    k1 = iter(o - r for o, r in zip(old, reference, strict=True))
    penalised = [reward - 0.3 * sum(next(k1) for _ in range(n)) for reward, n in zip(rewards, lengths, strict=True)]
    assert RewardKL(GroupRelative(), 0.3)(batch).tolist() == pytest.approx(verl_grpo(penalised, groups, std=True))
    assert RewardKL(LeaveOneOut(), 0.3)(batch).tolist() == pytest.approx(verl_rloo(penalised, groups))


@pytest.mark.parametrize("seed", range(5))
def test_batch_advantages(seed: int, batch_of: Any) -> None:
    lengths, groups, rewards, old, reference = draw(seed)
    batch = batch_of(lengths, groups=groups, rewards=rewards, old_logprobs=old, reference_logprobs=reference)
    term = PolicyTerm(Source.ROLLOUTS, advantage=Whitened(ReturnKL(Reward(), 0.2)))
    prepared = Algorithm("one", (term,)).prepare(batch)
    penalties = [0.2 * (o - r) for o, r in zip(old, reference, strict=True)]
    assert prepared.advantages is not None
    assert prepared.advantages[0].tolist() == pytest.approx(verl_reinforce_pp(rewards, lengths, penalties))


def test_ungraded_sequences_are_in_no_statistic(batch_of: Any) -> None:
    rewards = [1.0, None, 0.0, None]
    batch = batch_of([1, 2, 1, 0], rewards=rewards, old_logprobs=[0.0, 9.0, 9.0, 0.0], reference_logprobs=[0.0] * 4)
    assert LeaveOneOut()(batch).tolist() == [1.0, 0.0, -1.0, 0.0]
    assert RewardKL(LeaveOneOut(), 1.0)(batch).tolist() == [1.0, 0.0, -1.0, 0.0]
    prepared = Algorithm("one", (PolicyTerm(Source.ROLLOUTS, advantage=Whitened(ReturnKL(Reward()))),)).prepare(batch)
    assert prepared.advantages is not None
    assert prepared.advantages[0].tolist() == pytest.approx([0.5**0.5, 0.0, 0.0, -(0.5**0.5)])


def test_what_prepare_reads() -> None:
    kinds = {
        "reward": RewardKL(GroupRelative(), 0.1),
        "return": Whitened(ReturnKL(Reward(), 0.1)),
    }
    for advantage in kinds.values():
        algorithm = Algorithm("one", (PolicyTerm(Source.ROLLOUTS, advantage=advantage),))
        assert {"old_logprobs", "reference_logprobs", "rewards"} <= algorithm.prepare_needs
    assert Algorithm("one", (PolicyTerm(Source.ROLLOUTS),)).prepare_needs == frozenset()


def test_mixed_groups(batch_of: Any) -> None:
    rewards = [1.0, 0.0, None, 0.1, 0.1, None, 1.0, None, None]
    batch = batch_of([1] * 9, groups=[0, 0, 0, 1, 1, 1, 2, 2, 3], rewards=rewards)
    assert MixedGroup()(batch).tolist() == [True, True] + [False] * 7
