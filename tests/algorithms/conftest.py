"""A tiny world to differentiate in: a categorical policy, completions of known rewards, and their TokenBatch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from posttrain.estimator import Source, TokenBatch, TokenSequence

CONTEXTS, VOCABULARY = 6, 5


@dataclass(frozen=True)
class Row:
    """A completion: its tokens are drawn from softmax(theta[contexts])."""

    source: Source
    group: int
    contexts: list[int]
    tokens: list[int]
    old: list[float]
    reference: list[float]
    reward: float | None = None
    solved: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class World:
    """Completions, and the parameters theta [contexts, vocabulary] of the policy that scores them."""

    theta: Tensor
    rows: list[Row]

    def logprobs(self, theta: Tensor | None = None) -> list[Tensor]:
        """log pi of each completion's tokens."""
        table = torch.log_softmax(self.theta if theta is None else theta, -1)
        return [table[row.contexts, row.tokens] for row in self.rows]

    def entropies(self) -> list[Tensor]:
        """The policy's entropy where each completion's tokens are drawn, in nats."""
        table = torch.log_softmax(self.theta, -1)
        return [-(table.exp() * table).sum(-1)[row.contexts] for row in self.rows]

    def batch(self, logprobs: Tensor | None = None) -> TokenBatch:
        """What the estimator sees, at `logprobs` [A] (default: the policy's)."""
        sequences = [
            TokenSequence(
                token_ids=(0, *row.tokens),
                action_mask=(False, *(True,) * len(row.tokens)),
                source=row.source,
                group=row.group,
                pair=row.group if row.source is Source.PREFERENCES else -1,
                reward=row.reward,
                solved=row.solved,
                behavior_logprobs=tuple(row.old),
                old_logprobs=tuple(row.old),
                reference_logprobs=tuple(row.reference),
                weight=row.weight,
            )
            for row in self.rows
        ]
        flat = torch.cat(self.logprobs()) if logprobs is None else logprobs
        entropy = torch.cat(self.entropies()).to(flat.dtype)
        return TokenBatch.from_sequences(sequences, dtype=flat.dtype).replace(logprobs=flat, entropy=entropy)

    def of(self, source: Source) -> list[list[int]]:
        """Indices of the source's rows, by group."""
        groups: dict[int, list[int]] = {}
        for index, row in enumerate(self.rows):
            if row.source == source:
                groups.setdefault(row.group, []).append(index)
        return list(groups.values())


def make_world(
    seed: int = 0,
    *,
    num_groups: int = 4,
    group_size: int = 5,
    sources: Sequence[Source] = (Source.ROLLOUTS, Source.DEMONSTRATIONS),
    lengths: tuple[int, int] = (1, 7),
    drift: float = 0.4,
    ungraded: float = 0.0,
    binary: bool = True,
) -> World:
    """A random world; the first group solves nothing, the second everything; `drift` moves old and reference away.

    Each group has one pair of preferences, the chosen side (reward 1) first.
    """
    draw = random.Random(seed)
    theta = torch.randn(CONTEXTS, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    table = torch.log_softmax(theta, -1)

    def row(source: Source, group: int) -> Row:
        length = draw.randint(*lengths)
        contexts = [draw.randrange(CONTEXTS) for _ in range(length)]
        tokens = [draw.randrange(VOCABULARY) for _ in range(length)]
        here = table[contexts, tokens].tolist()
        solved = draw.random() < {0: -1.0, 1: 2.0}.get(group, 0.5)
        value = float(solved) if binary else float(solved) + draw.random()
        return Row(
            source,
            group,
            contexts,
            tokens,
            old=[x + draw.gauss(0, drift) for x in here],
            reference=[x + draw.gauss(0, drift) for x in here],
            reward=value if source is Source.ROLLOUTS and draw.random() >= ungraded else None,
            solved=solved and source is Source.ROLLOUTS,
        )

    rows = []
    sizes = {Source.ROLLOUTS: group_size, Source.PREFERENCES: 2}
    for group in range(num_groups):
        for source in sources:
            made = [row(source, group) for _ in range(sizes.get(source, 1))]
            if source is Source.PREFERENCES:
                made = [replace(one, reward=reward) for one, reward in zip(made, (1.0, 0.0), strict=True)]
            rows += made
    return World(theta.requires_grad_(), rows)


def gradient_of(loss: Tensor, at: Tensor) -> Tensor:
    """d loss / d at, zeros where the loss does not depend on it."""
    if not loss.requires_grad:
        return torch.zeros_like(at)
    (found,) = torch.autograd.grad(loss, at, allow_unused=True)
    return torch.zeros_like(at) if found is None else found


@pytest.fixture(scope="session")
def world() -> Callable[..., World]:
    """`make_world`."""
    return make_world


@pytest.fixture(scope="session")
def gradient() -> Callable[[Tensor, Tensor], Tensor]:
    """`gradient_of`."""
    return gradient_of


@pytest.fixture(scope="session")
def world_of() -> Callable[[list[Row]], World]:
    """A world of given rows, its policy uniform."""
    return lambda rows: World(torch.zeros(CONTEXTS, VOCABULARY, dtype=torch.float64, requires_grad=True), rows)


@pytest.fixture(scope="session")
def row_type() -> type[Row]:
    """`Row`."""
    return Row
