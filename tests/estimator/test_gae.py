"""Generalised advantage estimation and the critic's loss against plain loops, peers' recursions and autograd."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.estimator import Source, TokenBatch, TokenSequence
from posttrain.estimator.diagnostics import means
from posttrain.estimator.gae import Gae, Per
from posttrain.estimator.value import SquaredError, ValueTerm
from posttrain.estimator.weights import Always


def episodes(seed: int, number: int = 7, longest: int = 40) -> list[TokenSequence]:
    """Several turns each, some empty, one ungraded, with values and logprobs."""
    draw = random.Random(seed)
    found = []
    for index in range(number):
        mask = [False]
        for _ in range(draw.randrange(4) if index else 3):
            mask += [True] * draw.randrange(1, longest // 3) + [False] * draw.randrange(1, 3)
        actions = sum(mask)
        numbers = {name: tuple(draw.gauss(0, 1) for _ in range(actions)) for name in ("old_values", "old_logprobs")}
        found.append(
            TokenSequence(
                tuple(range(len(mask))),
                tuple(mask),
                Source.ROLLOUTS,
                group=index // 2,
                reward=None if index == 3 else draw.gauss(0, 1),
                reference_logprobs=tuple(draw.gauss(0, 1) for _ in range(actions)),
                **numbers,
            )
        )
    return found


def by_loop(sequence: TokenSequence, part: Gae) -> list[float]:
    """Every delta written out, every sum over all later deltas, one sequence at a time."""
    if sequence.reward is None or not sequence.num_actions:
        return [0.0] * sequence.num_actions
    rewards = [0.0] * (sequence.num_actions - 1) + [sequence.reward]
    if part.kl_weight:
        kl = zip(sequence.old_logprobs or (), sequence.reference_logprobs or (), strict=True)
        rewards = [r - part.kl_weight * (old - new) for r, (old, new) in zip(rewards, kl, strict=True)]
    steps = list(range(sequence.num_actions)) if part.per == "token" else sequence.turns
    assert sequence.old_values is not None
    value = dict(reversed(list(zip(steps, sequence.old_values, strict=True))))  # of each step the first
    total: dict[int, float] = {}
    for step, reward in zip(steps, rewards, strict=True):
        total[step] = total.get(step, 0.0) + reward
    last = steps[-1]
    delta = [total[k] + part.gamma * (value[k + 1] if k < last else 0.0) - value[k] for k in range(last + 1)]
    powers = [(part.gamma * part.lambda_) ** k for k in range(last + 1)]
    found = [sum(powers[later - k] * delta[later] for later in range(k, last + 1)) for k in range(last + 1)]
    return [found[step] for step in steps]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("per", ["token", "turn"])
@pytest.mark.parametrize(("gamma", "lambda_"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (1.0, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
def test_a_double_loop(per: Per, gamma: float, lambda_: float, kl_weight: float, seed: int) -> None:
    part = Gae(gamma, lambda_, per, kl_weight)
    sequences = episodes(seed)
    batch = TokenBatch.from_sequences(sequences, dtype=torch.float64)
    expected = torch.tensor([a for sequence in sequences for a in by_loop(sequence, part)], dtype=torch.float64)
    torch.testing.assert_close(part(batch), expected, rtol=1e-12, atol=1e-12)


def backwards(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lambda_: float) -> Tensor:
    """The recursion that TRL and verl publish, from the last column to the first, on padded [S, T]."""
    running, following = torch.zeros(len(values), dtype=values.dtype), torch.zeros(len(values), dtype=values.dtype)
    found = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * lambda_ * running, running)
        following = torch.where(mask[:, t], values[:, t], following)
        found[:, t] = running * mask[:, t]
    return found


@pytest.mark.parametrize("lambda_", [0.95, 1.0])
def test_the_peers_recursion(lambda_: float) -> None:
    sequences = [one for one in episodes(1, number=12) if one.reward is not None and one.num_actions]
    longest = max(one.num_actions for one in sequences)
    values, rewards = torch.zeros(2, len(sequences), longest, dtype=torch.float64)
    mask = torch.zeros_like(values, dtype=torch.bool)
    for row, one in enumerate(sequences):
        values[row, : one.num_actions] = torch.tensor(one.old_values, dtype=torch.float64)
        rewards[row, one.num_actions - 1] = one.reward
        mask[row, : one.num_actions] = True
    expected = backwards(rewards, values, mask, 0.99, lambda_)
    batch = TokenBatch.from_sequences(sequences, dtype=torch.float64)
    part = Gae(0.99, lambda_)
    torch.testing.assert_close(part(batch), expected[mask], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(part.returns(batch), (expected + values)[mask], rtol=1e-12, atol=1e-12)


def test_lambda_one_is_the_reward_less_the_value() -> None:
    batch = TokenBatch.from_sequences(episodes(2), dtype=torch.float64)
    graded = batch.broadcast(batch.graded)
    expected = torch.where(graded, batch.broadcast(batch.reward) - batch.old_values, 0.0)
    torch.testing.assert_close(Gae(lambda_=1.0)(batch), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(Gae(lambda_=1.0).returns(batch)[graded], batch.broadcast(batch.reward)[graded])


@pytest.mark.parametrize("per", ["token", "turn"])
@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_the_value_loss(per: Per, clip: float) -> None:
    sequences = episodes(5)
    batch = TokenBatch.from_sequences(sequences, dtype=torch.float64)
    part = Gae(0.97, 0.9, per)
    noise = torch.randn(len(batch.old_values), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = (batch.old_values + 0.5 * noise).requires_grad_()
    term = ValueTerm(returns=part, error=SquaredError(clip), weight=Always(0.7))
    batch = batch.replace(values=values)
    advantage, coefficient = term.prepare(batch)
    total, found = term.total(batch, advantage, coefficient)
    (ours,) = torch.autograd.grad(total / term.count(batch), values)

    losses = []
    mine = values.split([one.num_actions for one in sequences])
    for one, own in zip(sequences, mine, strict=True):
        at = range(one.num_actions) if per == "token" else [one.turns.index(turn) for turn in sorted(set(one.turns))]
        for t in at if one.reward is not None else ():
            target, old = by_loop(one, part)[t] + one.old_values[t], one.old_values[t]
            loss = (own[t] - target) ** 2
            if clip:
                moved = torch.clamp(own[t], old - clip, old + clip)
                loss = torch.max(loss, (moved - target) ** 2)
            losses.append(0.5 * loss)
    mean = torch.stack(losses).mean()
    (expected,) = torch.autograd.grad(0.7 * mean, values)
    assert expected.any()
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-13)
    assert means(found)["loss"] == pytest.approx(float(mean), rel=1e-12)
    assert (means(found)["clip_fraction"] > 0) == bool(clip)


def test_explained_variance() -> None:
    batch = TokenBatch.from_sequences(episodes(6), dtype=torch.float64)
    term = ValueTerm(returns=Gae(lambda_=0.9))
    batch = batch.replace(values=batch.old_values)
    figures = means(term.total(batch, *term.prepare(batch))[1])
    graded = batch.broadcast(batch.graded)
    returns = term.returns.returns(batch)[graded]
    left = returns - batch.old_values[graded]
    expected = 1 - float(left.var(correction=0) / returns.var(correction=0))
    assert figures["explained_variance"] == pytest.approx(expected, rel=1e-9)
    assert not {"return_squared", "residual", "residual_squared"} & figures.keys()


def test_one_error_names_what_is_wrong() -> None:
    for settings in ({"gamma": 1.1}, {"lambda_": -0.1}, {"per": "step"}, {"kl_weight": -1.0}):
        with pytest.raises(ValueError, match="allowed"):
            Gae(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allowed"):
        SquaredError(-0.1)
    batch = TokenBatch.from_sequences([TokenSequence((1, 2), (False, True), Source.ROLLOUTS, 0, reward=1.0)])
    with pytest.raises(ValueError, match="old_values"):
        Gae()(batch)


def test_nothing_to_do() -> None:
    for sequences in ([], [TokenSequence((1,), (False,), Source.ROLLOUTS, 0, reward=1.0, old_values=())]):
        batch: Any = TokenBatch.from_sequences(sequences).replace(old_values=torch.zeros(0))
        assert Gae()(batch).shape == Gae(per="turn").returns(batch).shape == (0,)
