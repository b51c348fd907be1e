"""Hybrids of demonstrations and rollouts, and imitation of chosen rollouts: the papers' losses, in float64, to 1e-9."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.estimator import PolicyTerm, Source
from posttrain.estimator.filters import BestOfGroup, Solved
from posttrain.estimator.guidance import GuidedGroupRelative, Joint
from posttrain.estimator.likelihoods import Shaped
from posttrain.estimator.weights import Annealed, SolvedTable
from tests.algorithms.names import label
from tests.algorithms.oracle import Loss, same_gradient

HYBRIDS = ["raft", "hpt_soft", "luffy", "srft", "chord"]


def prompts(world: Any) -> list[tuple[list[int], int]]:
    """Graded rollouts and demonstration of each prompt."""
    both = zip(world.of(Source.ROLLOUTS), world.of(Source.DEMONSTRATIONS), strict=True)
    return [([i for i in group if world.rows[i].reward is not None], shown) for group, (shown,) in both]


def rewards(world: Any, rows: list[int]) -> list[float]:
    return [world.rows[i].reward for i in rows]


def relative(values: list[float], std: bool) -> list[float]:
    """(R - mean) / (std + 1e-6); 0 where all are equal."""
    if len(set(values)) < 2:
        return [0.0] * len(values)
    return [(value - mean(values)) / (stdev(values) + 1e-6 if std else 1.0) for value in values]


def ratios(world: Any, logprobs: list[Tensor], row: int) -> Tensor:
    return (logprobs[row] - torch.tensor(world.rows[row].old, dtype=torch.float64)).exp()


def clipped(ratio: Tensor, advantage: float) -> Tensor:
    return torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)


def raft(keep: str = "solved", sequence_normalised: bool = False, clip: bool = False) -> Loss:
    """2504.11343 sec. 2; 2304.06767 sec. 3."""

    def loss(world: Any, logprobs: list[Tensor]) -> Tensor:
        kept: list[int] = []
        for group, _ in prompts(world):
            best = max(rewards(world, group), default=0.0)
            kept += [i for i in group if (world.rows[i].solved if keep == "solved" else world.rows[i].reward == best)]
        values = [clipped(ratios(world, logprobs, i), 1.0) if clip else logprobs[i] for i in kept]
        if sequence_normalised:
            return -sum(value.mean() for value in values) / len(kept)
        return -sum(value.sum() for value in values) / sum(len(value) for value in values)

    return loss


def hpt(coefficients: Callable[[int], tuple[float, float, float]], length: float, gamma: float = 0.1) -> Loss:
    """2509.04419 eq. 8-13 with coefficients (rollouts, off-policy, imitation) of the number solved."""

    def loss(world: Any, logprobs: list[Tensor]) -> Tensor:
        own, demonstrated = torch.zeros((2,), dtype=torch.float64)
        for group, shown in prompts(world):
            on, off, imitate = coefficients(sum(world.rows[i].solved for i in group))
            probability = logprobs[shown].exp()
            demonstrated = demonstrated - imitate * logprobs[shown].mean()
            demonstrated = demonstrated - off * (probability / (probability + gamma)).sum() / length
            for i, advantage in zip(group, relative(rewards(world, group), std=False), strict=True):
                own = own - on * clipped(ratios(world, logprobs, i), advantage).sum() / length
        # n is the same for all prompts in the paper; where rollouts are ungraded, every graded one weighs the same
        return own / sum(len(group) for group, _ in prompts(world)) + demonstrated / len(prompts(world))

    return loss


def gates(gate: int, off_gate: int, weight: float = 1.0) -> Callable[[int], tuple[float, float, float]]:
    return lambda n: (float(n > off_gate), float(gate < n <= off_gate), weight * (n <= gate))


def table(n: int) -> tuple[float, float, float]:
    """Type 2 of the code's tables."""
    known = {1: (0, 0, 1), 2: (0.125, 0, 0.5), 3: (0.25, 0, 0.25), 4: (0.5, 0, 0.125)}
    return known.get(max(n, 1), (1, 0, 0))


def luffy(gamma: float = 0.1, std: bool = True, clip: bool = False, length: float | None = None) -> Loss:
    """2504.14945 sec. 3.2 and 3.3: one sum over both kinds, divided by all their tokens."""

    def loss(world: Any, logprobs: list[Tensor]) -> Tensor:
        total, tokens, sequences = torch.zeros((), dtype=torch.float64), 0, 0
        for group, shown in prompts(world):
            *advantages, of_shown = relative([*rewards(world, group), 1.0], std)
            probability = logprobs[shown].exp()
            total = total + (probability / (probability + gamma) * of_shown).sum()
            for i, advantage in zip(group, advantages, strict=True):
                ratio = ratios(world, logprobs, i)
                total = total + (clipped(ratio, advantage) if clip else ratio * advantage).sum()
            tokens += sum(len(logprobs[i]) for i in (*group, shown))
            sequences += len(group) + 1
        return -total / (tokens if length is None else length * sequences)

    return loss


def srft(imitation: float = 0.5, positive: float = 0.1, std: bool = True) -> Loss:
    """2506.19767 sec. 4, each expectation the mean over its tokens."""

    def loss(world: Any, logprobs: list[Tensor]) -> Tensor:
        entropy = [float(values.detach().mean()) for values in world.entropies()]
        shown_terms, own_terms = [], []
        for group, shown in prompts(world):
            of_shown = relative([*rewards(world, group), 1.0], std)[-1]
            shown_terms.append(imitation * math.exp(-entropy[shown]) * logprobs[shown])
            shown_terms[-1] = shown_terms[-1] + of_shown * logprobs[shown].exp()
            for i in group:
                solved = world.rows[i].solved
                own_terms.append((positive * math.exp(entropy[i]) if solved else -1.0) * logprobs[i])
        return -torch.cat(shown_terms).mean() - torch.cat(own_terms).mean()

    return loss


def chord(mu: float = 0.1, phi: bool = True) -> Loss:
    """2508.11408 sec. 3: (1 - mu) GRPO + mu weighted SFT."""

    def loss(world: Any, logprobs: list[Tensor]) -> Tensor:
        own, shown_terms = [], []
        for group, shown in prompts(world):
            probability = logprobs[shown].detach().exp()
            shown_terms.append(logprobs[shown] * (probability * (1 - probability) if phi else 1.0))
            for i, advantage in zip(group, relative(rewards(world, group), std=True), strict=True):
                own.append(clipped(ratios(world, logprobs, i), advantage).mean())
        return -(1 - mu) * torch.stack(own).mean() - mu * torch.cat(shown_terms).mean()

    return loss


CASES: list[tuple[str, dict[str, Any], Loss]] = [
    ("raft", {}, raft()),
    ("raft", {"keep": "best"}, raft("best")),
    ("raft", {"sequence_normalised": True}, raft(sequence_normalised=True)),
    ("raft", {"clip": True, "keep": "best", "sequence_normalised": True}, raft("best", True, clip=True)),
    ("hpt", {"off_policy_gate": 2}, hpt(gates(0, 2), 8192)),
    ("hpt", {"gate": 1, "off_policy_gate": 3, "gamma": 0.5, "length": 4}, hpt(gates(1, 3), 4, 0.5)),
    ("hpt", {"off_policy_gate": 0, "demonstration_weight": 0.3}, hpt(gates(0, 0, 0.3), 8192)),
    ("hpt_soft", {}, hpt(table, 8192)),
    (
        "hpt_soft",
        {"rollouts": (0.5,), "demonstrations": (0.0,), "off_policy": (2.0, 1.0, 0.0), "length": 3},
        hpt(lambda n: (0.5, (2.0, 1.0, 0.0)[min(n, 2)], 0.0), 3),
    ),
    ("luffy", {}, luffy()),
    ("luffy", {"std": False, "length": 5.0, "gamma": 1.0}, luffy(1.0, std=False, length=5.0)),
    ("luffy", {"clip": True}, luffy(clip=True)),
    ("srft", {}, srft()),
    ("srft", {"imitation_scale": 2.0, "positive_scale": 1.0, "std": False}, srft(2.0, 1.0, std=False)),
    ("chord", {}, chord()),
    ("chord", {"mu": 0.7, "phi": False}, chord(0.7, phi=False)),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ungraded", [0.0, 0.3])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("name", "settings", "loss"), CASES, ids=label)
def test_gradient_is_the_papers(
    name: str, settings: dict[str, Any], loss: Loss, binary: bool, ungraded: float, seed: int, world: Any
) -> None:
    same_gradient(world(seed, binary=binary, ungraded=ungraded), load(name, **settings), loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_ratio", [-20.0, 20.0])
@pytest.mark.parametrize("name", HYBRIDS)
def test_finite_at_extremes(name: str, log_ratio: float, dtype: torch.dtype, world: Any) -> None:
    here = world(1)
    flat = torch.cat(here.logprobs()).detach().to(dtype)
    batch = here.batch(flat)
    far = batch.replace(old_logprobs=batch.logprobs - log_ratio)
    unlikely = batch.replace(logprobs=torch.full_like(flat, -80.0), old_logprobs=torch.full_like(flat, -80.0))
    for one in (far, unlikely):
        leaf = one.logprobs.detach().requires_grad_()
        result = load(name)(one.replace(logprobs=leaf))
        result.loss.backward()
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
        assert all(math.isfinite(value) for value in result.metrics.values())


@pytest.mark.parametrize("name", HYBRIDS)
@pytest.mark.parametrize(
    "world_settings",
    [{"lengths": (0, 0)}, {"lengths": (0, 2)}, {"lengths": (1, 1)}, {"ungraded": 1.0}, {"group_size": 1}],
    ids=str,
)
def test_degenerate_batches(name: str, world_settings: dict[str, Any], world: Any, gradient: Any) -> None:
    here = world(2, **world_settings)
    result = load(name)(here.batch())
    assert torch.isfinite(gradient(result.loss, here.theta)).all()
    assert all(math.isfinite(value) for value in result.metrics.values())


def test_what_is_filtered_out_is_pruned(world: Any) -> None:
    here = world(3, ungraded=0.2)
    algorithm = load("raft")
    active = algorithm.active(algorithm.prepare(here.batch()))
    assert active.tolist() == [row.solved and row.reward is not None for row in here.rows]


def test_nothing_solved_is_no_gradient(row_type: Any, world_of: Any, gradient: Any) -> None:
    rows = [row_type(Source.ROLLOUTS, 0, [0], [1], [-1.0], [-1.0], reward=0.0) for _ in range(3)]
    here = world_of(rows)
    assert not gradient(load("raft")(here.batch()).loss, here.theta).any()
    assert BestOfGroup()(here.batch()).all()
    assert not Solved()(here.batch()).any()


def test_luffy_learns_from_the_demonstration_only_where_it_adds_something(
    row_type: Any, world_of: Any, gradient: Any
) -> None:
    def found(reward: float) -> list[float]:
        rows = [row_type(Source.ROLLOUTS, 0, [0], [1], [-1.6], [-1.6], reward=reward) for _ in range(3)]
        rows.append(row_type(Source.DEMONSTRATIONS, 0, [0], [2], [0.0], [0.0]))
        here = world_of(rows)
        flat = torch.cat(here.logprobs()).detach().requires_grad_()
        return gradient(load("luffy", std=False)(here.batch(flat)).loss, flat).tolist()

    *rollouts, demonstration = found(0.0)
    assert demonstration == pytest.approx(-0.75 * 0.2 * 0.1 / 0.3**2 / 4)  # A f'(p) p / Z at p = 1/5
    assert all(value > 0 for value in rollouts)
    assert found(1.0) == [0.0] * 4


@pytest.mark.parametrize(("step", "mu"), [(0, 0.9), (10, 0.475), (20, 0.05), (99, 0.05)])
def test_chord_anneals(step: int, mu: float, world: Any, gradient: Any) -> None:
    here = world(1)
    flat = torch.cat(here.logprobs()).detach().requires_grad_()
    batch = here.batch(flat).replace(step=torch.tensor(float(step)))
    algorithm = load("chord", mu=0.9, mu_end=0.05, mu_steps=20, phi=False)
    ours, expected = gradient(algorithm(batch).loss, flat), gradient(load("chord", mu=mu, phi=False)(batch).loss, flat)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    rows = torch.arange(batch.num_sequences - 1, -1, -1)
    assert torch.equal(batch.take(rows).step, batch.step)
    with pytest.raises(ValueError, match=r"TokenBatch.step"):
        algorithm(batch.replace(step=None))


def test_ungraded_rollouts_are_not_counted_with_a_guided_advantage(row_type: Any, world_of: Any) -> None:
    rows = [row_type(Source.ROLLOUTS, 0, [0], [1], [0.0], [0.0], reward=reward) for reward in (1.0, 0.0, None)]
    batch = world_of([*rows, row_type(Source.DEMONSTRATIONS, 0, [0], [1], [0.0], [0.0])]).batch()
    for source, count in ((Source.ROLLOUTS, 2), (Source.DEMONSTRATIONS, 1)):
        assert int(PolicyTerm(source, advantage=GuidedGroupRelative()).count(batch)) == count
        assert int(PolicyTerm(source, advantage=GuidedGroupRelative(), aggregation=Joint()).count(batch)) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shaped(0.0), "gamma is 0.0; allowed: above 0"),
        (lambda: Annealed(steps=0), "allowed: weights of at least 0, and at least 1 step"),
        (lambda: SolvedTable(()), "allowed: one or more numbers"),
        (lambda: SolvedTable((1.0, -1.0)), "allowed: one or more numbers"),
        (lambda: load("chord", mu=1.5), "mu is 1.5, mu_end None; allowed: 0 to 1"),
        (lambda: load("hpt", gate=2, off_policy_gate=1), "off_policy_gate is 1; allowed: at least gate = 2"),
    ],
)
def test_what_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
