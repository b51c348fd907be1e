"""Promise 1 for the policy-gradient family: gradients of the papers' losses, written on padded tensors, to 1e-9."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from posttrain.algorithms import load
from posttrain.estimator import Source
from posttrain.estimator.weights import Always


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


CASES: list[tuple[str, dict[str, Any], Loss]] = [
    ("rloo", {}, rloo(0.05)),
    ("rloo", {"kl_weight": 0.0}, rloo(0.0)),
    ("dr_grpo", {}, dr_grpo(3000)),
    ("dr_grpo", {"length": 7, "clip_low": 0.1, "clip_high": 0.3}, dr_grpo(7, 0.1, 0.3)),
    ("dapo", {}, dapo()),
    ("dapo", {"clip_high": 0.5}, dapo(high=0.5)),
    ("dapo", {"mixed_only": False}, dapo(mixed_only=False)),
    ("reinforce_pp", {}, reinforce_pp()),
    ("reinforce_pp", {"kl_weight": 0.0}, reinforce_pp(0.0)),
    ("reinforce_pp", {"kl_weight": 0.7}, reinforce_pp(0.7)),
    ("reinforce_pp", {"group_baseline": True}, reinforce_pp_baseline()),
    ("gspo", {}, gspo()),
    ("gspo", {"clip_low": 0.05, "clip_high": 0.1}, gspo(0.05, 0.1)),
    ("gspo", {"clip_low": 0.05, "clip_high": 0.1}, gspo_token(0.05, 0.1)),
    ("cispo", {}, cispo()),
    ("cispo", {"cap": 1.2, "floor": 0.8}, cispo(1.2, 0.8)),
    ("grpo", {"dual_clip": 1.5, "kl_weight": 0.0}, dual_clip),
    ("grpo", {"kl_estimator": "k1"}, with_kl("k1", 0.04)),
    ("grpo", {"kl_estimator": "k2", "kl_weight": 0.5}, with_kl("k2", 0.5)),
    ("grpo", {"kl_estimator": "k3", "kl_weight": 0.5}, with_kl("k3", 0.5)),
    ("grpo", {"kl_place": "reward", "kl_weight": 0.3}, kl_in_reward(0.3)),
    ("grpo", {"preset": "openrlhf"}, openrlhf),
    ("grpo", {"preset": "verl"}, verl),
    ("grpo", {"preset": "trl"}, trl),
    ("grpo", {"preset": "verl", "dual_clip": 1.5, "aggregation": "sequence_mean"}, dual_clip),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    ("name", "settings", "loss"),
    CASES,
    ids=lambda value: str(value) if not callable(value) else value.__qualname__.split(".")[0],
)
def test_gradient_is_the_papers(
    name: str, settings: dict[str, Any], loss: Loss, binary: bool, seed: int, world: Any, gradient: Any
) -> None:
    here = world(seed, binary=binary)
    algorithm = load(name, **settings)
    flat = torch.cat(here.logprobs()).detach().requires_grad_()
    pieces = list(flat.split([len(row.tokens) for row in here.rows]))
    for leaf, batch, logprobs in ((flat, here.batch(flat), pieces), (here.theta, here.batch(), here.logprobs())):
        ours = gradient(algorithm(batch).loss, leaf)
        expected = gradient(loss(padded(here, logprobs)), leaf)
        assert expected.abs().max() > 0
        assert (ours - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean"])
def test_entropy_bonus(aggregation: str, world: Any, gradient: Any) -> None:
    here = world(0)
    algorithm = load("grpo", kl_weight=0.0, entropy_weight=0.3, aggregation=aggregation)
    result = algorithm(here.batch())
    p = padded(here, here.logprobs())
    mean = token_mean if aggregation == "token_mean" else sequence_mean
    expected = gradient(-mean(p, surrogate(p.ratio, p.standard(p.rewards)[:, None]) + 0.3 * p.entropy), here.theta)
    assert (gradient(result.loss, here.theta) - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert result.metrics["entropy/nats"] == pytest.approx(float(token_mean(p, p.entropy).detach()))
    with pytest.raises(ValueError, match=r"TokenBatch.entropy"):
        algorithm(replace(here.batch(), entropy=None))


def test_presets_are_starting_points() -> None:
    explicit = {"dual_clip": 0.0, "kl_weight": 0.04, "aggregation": "sequence_mean"}
    assert load("grpo", preset="verl", **explicit) == load("grpo")
    trl = load("grpo", preset="trl")
    assert trl.needs == {"old_logprobs", "behavior_logprobs", "rewards", "groups"}
    penalised = load("grpo", preset="trl", kl_weight=0.5)
    assert penalised.terms[0] == trl.terms[0]
    assert penalised.terms[1].describe()["weight"] == Always(0.5)
    with pytest.raises(ValueError, match="allowed there: k1"):
        load("grpo", preset="openrlhf", kl_estimator="k3")


def test_group_of_one_and_equal_rewards_have_no_baseline_of_their_own(row_type: Any, world_of: Any) -> None:
    uniform = [-1.6094379124341003]

    def row(reward: float | None, group: int) -> Any:
        return row_type(Source.ROLLOUTS, group, [0], [1], uniform, uniform, reward)

    rows = [row(1.0, 0), row(0.1, 1), row(0.1, 1), row(0.1, 1), row(None, 2), row(None, 2)]
    for name in ("rloo", "dr_grpo", "dapo", "gspo", "cispo"):
        algorithm = load(name)
        assert not algorithm.active(algorithm.prepare(world_of(rows).batch())).any()
    algorithm = load("reinforce_pp")  # its baseline is the batch's: the graded ones differ
    assert algorithm.active(algorithm.prepare(world_of(rows).batch())).tolist() == [True] * 4 + [False] * 2
    for equal in ([row(0.1, i) for i in range(7)], [row(0.3, 0)], [row(None, 0)]):
        assert not algorithm.active(algorithm.prepare(world_of(equal).batch())).any()


def test_batch_statistics_are_those_of_all_ranks(world: Any) -> None:
    here = world(4, ungraded=0.2)
    algorithm = load("reinforce_pp")
    halves = [type(here)(here.theta, [row for row in here.rows if row.group % 2 == part]) for part in (0, 1)]
    moments: list[Tensor] = []

    def note(values: Tensor) -> Tensor:
        moments.append(values)
        return values

    for half in halves:
        algorithm.prepare(half.batch(), note)
    together = [algorithm.prepare(half.batch(), lambda _: sum(moments)).advantages for half in halves]
    whole = algorithm.prepare(here.batch())
    assert whole.advantages is not None
    groups = torch.tensor([row.group % 2 for row in here.rows])
    for part, advantages in enumerate(together):
        rows = (whole.broadcast(groups) == part).nonzero().squeeze(1)
        torch.testing.assert_close(advantages, whole.advantages[:, rows], rtol=1e-12, atol=1e-12)
