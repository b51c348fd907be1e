"""The papers' losses of the policy-gradient family, on padded tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from posttrain.estimator import Source


@dataclass(frozen=True)
class Padded:
    """The rollouts of a world: logprobs, old, reference, mask, entropy [S, T]; rewards [S]; rows of each prompt."""

    logprobs: Tensor
    old: Tensor
    reference: Tensor
    mask: Tensor
    rewards: Tensor
    groups: list[list[int]]
    entropy: Tensor

    def group_stat(self, stat: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """A statistic of the values [S] of each one's group [S]."""
        found = torch.zeros_like(values)
        for rows in self.groups:
            found[rows] = stat(values[rows])
        return found

    def standard(self, values: Tensor, epsilon: float = 1e-6) -> Tensor:
        """verl's GRPO advantage, 0 in a group whose rewards are equal."""
        centred = values - self.group_stat(torch.mean, values)
        return centred / (self.group_stat(torch.std, values) + epsilon)

    @property
    def ratio(self) -> Tensor:
        """pi / pi_old."""
        return (self.logprobs - self.old).exp()

    @property
    def k1(self) -> Tensor:
        """log pi_old - log pi_ref."""
        return (self.old - self.reference) * self.mask


Loss = Callable[[Padded], Tensor]


def padded(world: Any, logprobs: list[Tensor]) -> Padded:
    groups = world.of(Source.ROLLOUTS)
    order = [row for group in groups for row in group]
    place = {row: index for index, row in enumerate(order)}
    pad = lambda values: pad_sequence(values, batch_first=True)  # noqa: E731
    double = torch.float64
    table = torch.log_softmax(world.theta, -1)
    entropies = -(table.exp() * table).sum(-1)
    return Padded(
        logprobs=pad([logprobs[row] for row in order]),
        old=pad([torch.tensor(world.rows[row].old, dtype=double) for row in order]),
        reference=pad([torch.tensor(world.rows[row].reference, dtype=double) for row in order]),
        mask=pad([torch.ones(len(world.rows[row].tokens), dtype=double) for row in order]),
        rewards=torch.tensor([world.rows[row].reward for row in order], dtype=double),
        groups=[[place[row] for row in group] for group in groups],
        entropy=pad([entropies[world.rows[row].contexts] for row in order]),
    )


def surrogate(ratio: Tensor, advantage: Tensor, low: float = 0.2, high: float = 0.2) -> Tensor:
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def token_mean(p: Padded, values: Tensor) -> Tensor:
    return (values * p.mask).sum() / p.mask.sum()


def sequence_mean(p: Padded, values: Tensor) -> Tensor:
    return ((values * p.mask).sum(1) / p.mask.sum(1)).mean()


def leave_one_out(p: Padded, rewards: Tensor) -> Tensor:
    """2402.14740 sec. 2.2, one completion at a time."""
    advantage = torch.zeros_like(rewards)
    for rows in p.groups:
        for i in rows:
            others = [rewards[j] for j in rows if j != i]
            advantage[i] = rewards[i] - sum(others) / len(others)
    return advantage


def rloo(kl_weight: float) -> Loss:
    def loss(p: Padded) -> Tensor:
        advantage = leave_one_out(p, p.rewards - kl_weight * p.k1.sum(1))
        return -(advantage * (p.logprobs * p.mask).sum(1)).mean()

    return loss


def dr_grpo(length: float, low: float = 0.2, high: float = 0.2) -> Loss:
    def loss(p: Padded) -> Tensor:
        advantage = p.rewards - p.group_stat(torch.mean, p.rewards)
        return -(surrogate(p.ratio, advantage[:, None], low, high) * p.mask).sum() / length / len(p.rewards)

    return loss


def dapo(low: float = 0.2, high: float = 0.28, mixed_only: bool = True) -> Loss:
    """2503.14476 eq. 8, subject to eq. 11: some of a prompt's rewards differ."""

    def loss(p: Padded) -> Tensor:
        spread = p.group_stat(lambda rewards: rewards.max() - rewards.min(), p.rewards)
        counted = p.mask * (spread > 0)[:, None] if mixed_only else p.mask
        value = surrogate(p.ratio, p.standard(p.rewards)[:, None], low, high)
        return -(value * counted).sum() / counted.sum()

    return loss


def masked_whiten(values: Tensor, mask: Tensor) -> Tensor:
    """verl's."""
    mean = (values * mask).sum() / mask.sum()
    variance = ((values - mean) ** 2 * mask).sum() / (mask.sum() - 1)
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def reinforce_pp(kl_weight: float = 0.01) -> Loss:
    """2501.03262: per-token rewards, the outcome on the last one; returns backwards; whitened over the batch."""

    def loss(p: Padded) -> Tensor:
        returns = torch.zeros_like(p.old)
        for i, length in enumerate(p.mask.sum(1).long().tolist()):
            running = 0.0
            for t in reversed(range(length)):
                running += float(-kl_weight * p.k1[i, t]) + (float(p.rewards[i]) if t == length - 1 else 0.0)
                returns[i, t] = running
        return -token_mean(p, surrogate(p.ratio, masked_whiten(returns, p.mask)))

    return loss


def reinforce_pp_baseline(kl_weight: float = 0.01) -> Loss:
    def loss(p: Padded) -> Tensor:
        centred = (p.rewards - p.group_stat(torch.mean, p.rewards))[:, None].expand_as(p.mask)
        k2 = (p.logprobs - p.reference) ** 2 / 2
        return -token_mean(p, surrogate(p.ratio, masked_whiten(centred, p.mask)) - kl_weight * k2)

    return loss


def gspo(low: float = 3e-4, high: float = 4e-4) -> Loss:
    """2507.18071 eq. 5-7."""

    def loss(p: Padded) -> Tensor:
        ratio = (((p.logprobs - p.old) * p.mask).sum(1) / p.mask.sum(1)).exp()
        return -surrogate(ratio, p.standard(p.rewards), low, high).mean()

    return loss


def gspo_token(low: float = 3e-4, high: float = 4e-4) -> Loss:
    """2507.18071 eq. 13 and 14."""

    def loss(p: Padded) -> Tensor:
        ratio = (((p.logprobs - p.old) * p.mask).sum(1) / p.mask.sum(1)).exp().detach()
        ratio = ratio[:, None] * (p.logprobs - p.logprobs.detach()).exp()
        return -sequence_mean(p, surrogate(ratio, p.standard(p.rewards)[:, None], low, high))

    return loss


def cispo(cap: float = 5.0, floor: float = 0.0) -> Loss:
    """2506.13585 eq. 4."""
    return lambda p: -token_mean(p, p.ratio.clamp(floor, cap).detach() * p.standard(p.rewards)[:, None] * p.logprobs)


def dual_clip(p: Padded) -> Tensor:
    """1912.09729 with c = 1.5."""
    advantage = p.standard(p.rewards)[:, None]
    plain = surrogate(p.ratio, advantage)
    return -sequence_mean(p, torch.where(advantage < 0, torch.maximum(plain, 1.5 * advantage), plain))


def with_kl(estimator: str, weight: float) -> Loss:
    """GRPO with a KL term; k1's gradient is the score function's."""

    def loss(p: Padded) -> Tensor:
        difference = p.logprobs - p.reference
        divergence = {
            "k1": difference.detach() * p.logprobs,
            "k2": difference**2 / 2,
            "k3": (-difference).exp() + difference - 1,
        }[estimator]
        return -sequence_mean(p, surrogate(p.ratio, p.standard(p.rewards)[:, None]) - weight * divergence)

    return loss


def kl_in_reward(weight: float) -> Loss:
    """verl's use_kl_in_reward."""
    return lambda p: -sequence_mean(p, surrogate(p.ratio, p.standard(p.rewards - weight * p.k1.sum(1))[:, None]))


def openrlhf(p: Padded) -> Tensor:
    """group_norm: returns of the normalised reward at the end and -0.01 k1 at every token."""
    to_go = p.k1.flip(1).cumsum(1).flip(1)
    return -token_mean(p, surrogate(p.ratio, p.standard(p.rewards, 1e-9)[:, None] - 0.01 * to_go))


def verl(p: Padded) -> Tensor:
    advantage = p.standard(p.rewards)[:, None]
    plain = surrogate(p.ratio, advantage)
    return -token_mean(p, torch.where(advantage < 0, torch.maximum(plain, 3 * advantage), plain))


def trl(p: Padded) -> Tensor:
    """old = behavior in these worlds: its correction is 1."""
    return -token_mean(p, surrogate(p.ratio, p.standard(p.rewards, 1e-4)[:, None]))
