"""A tiny world to differentiate in: a categorical policy, completions of known rewards, and their TokenBatch."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from posttrain.estimator import Algorithm, Plan, Source, TokenBatch, TokenSequence
from posttrain.estimator.action_values import NUM_ROWS
from tests.algorithms.parity import Parity, load_verl

CONTEXTS, VOCABULARY = 6, 5
SAID = {"entropy": "entropies", "values": "values", "hidden": "hidden", "divergence": "divergences"}
"""What a batch holds of its tokens beside their logprobs, with gradient, and who says it."""
_PAIRED = {Source.ROLLOUTS, Source.PREFERENCES}


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
    old_values: list[float] | None = None
    targets: list[tuple[float, ...] | None] | None = None
    margin: float = 0.0
    gap: int = 0  # the action before which another's token stands: a second turn starts there
    pair: int | None = None  # default: a preference's group

    def sequence(self, number: int) -> TokenSequence:
        """The row as the trainer has it; its tokens say which row of its world it is, and no more."""
        before, after = (True,) * self.gap, (True,) * (len(self.tokens) - self.gap)
        mask = (False, *before, *(False,) * bool(self.gap), *after)
        pair = self.group if self.source is Source.PREFERENCES else -1
        return TokenSequence(
            token_ids=(number,) * len(mask),
            action_mask=mask,
            source=self.source,
            group=self.group,
            pair=pair if self.pair is None else self.pair,
            reward=self.reward,
            solved=self.solved,
            behavior_logprobs=tuple(self.old),
            old_logprobs=tuple(self.old),
            reference_logprobs=tuple(self.reference),
            old_values=None if self.old_values is None else tuple(self.old_values),
            targets=None if self.targets is None else tuple(self.targets),
            margin=self.margin,
            weight=self.weight,
        )


@dataclass(frozen=True)
class World:
    """Completions, and the parameters theta [contexts, vocabulary] of the policy that scores them.

    num_scores: a critic's, or a reward model's, for each token.
    """

    theta: Tensor
    rows: list[Row]
    num_scores: int = 1

    def logprobs(self, theta: Tensor | None = None) -> list[Tensor]:
        """log pi of each completion's tokens."""
        table = torch.log_softmax(self.theta if theta is None else theta, -1)
        return [table[row.contexts, row.tokens] for row in self.rows]

    def entropies(self) -> list[Tensor]:
        """The policy's entropy where each completion's tokens are drawn, in nats."""
        table = torch.log_softmax(self.theta, -1)
        return [-(table.exp() * table).sum(-1)[row.contexts] for row in self.rows]

    def values(self) -> list[Tensor]:
        """A critic's values of each completion's tokens; it shares the policy's parameters."""
        tables = torch.tanh(self.theta[:, [k % VOCABULARY for k in range(self.num_scores)]]).T.squeeze(0)
        return [tables[..., row.contexts] for row in self.rows]

    def hidden(self) -> list[Tensor]:
        """A reward model's hidden states at each completion's tokens [3, T]."""
        return [self.theta[row.contexts, :3].T + torch.arange(3)[:, None] for row in self.rows]

    def divergences(self) -> list[Tensor]:
        """KL(pi || teacher) where each completion's tokens are drawn, in nats; the teacher prefers high tokens."""
        table = torch.log_softmax(self.theta, -1)
        teacher = torch.log_softmax(torch.arange(VOCABULARY, dtype=table.dtype), -1)
        return [(table.exp() * (table - teacher)).sum(-1)[row.contexts] for row in self.rows]

    def padded(self, values: Tensor) -> Tensor:
        """Values of tokens [A] as [S, T], zeros after a completion's end, as peers have them."""
        return pad_sequence(values.split([len(row.tokens) for row in self.rows]), batch_first=True)

    def recorded(self, name: str) -> Tensor:
        """The rows' `name` as [S, T], in float32."""
        return self.padded(torch.tensor([value for row in self.rows for value in getattr(row, name)]))

    def mask(self) -> Tensor:
        """1 where a completion has a token, [S, T]."""
        return self.padded(torch.ones(sum(len(row.tokens) for row in self.rows)))

    def batch(self, logprobs: Tensor | None = None) -> TokenBatch:
        """What the estimator sees, at `logprobs` [A] (default: the policy's)."""
        sequences = [row.sequence(number) for number, row in enumerate(self.rows)]
        flat = torch.cat(self.logprobs()) if logprobs is None else logprobs
        more = {name: getattr(self, made)() for name, made in SAID.items()}
        made = {name: torch.cat(pieces, -1).to(flat.dtype) for name, pieces in more.items()}
        return TokenBatch.from_sequences(sequences, dtype=flat.dtype).replace(logprobs=flat, **made)

    def leaf_batch(self) -> tuple[TokenBatch, Tensor]:
        """The batch, and the leaf [N, A] that its logprobs and what else is said of its tokens are."""
        batch = self.batch()
        found = {name: getattr(batch, name) for name in ("logprobs", *SAID)}
        leaf = torch.cat([one.reshape(-1, one.shape[-1]) for one in found.values()]).detach().requires_grad_()
        parts = leaf.split([one.numel() // max(1, one.shape[-1]) if one.ndim > 1 else 1 for one in found.values()])
        own = {name: part.view(one.shape) for (name, one), part in zip(found.items(), parts, strict=True)}
        return batch.replace(**own), leaf

    def planned(self, plan: Plan) -> World:
        """The world after the plan's work on sequences: rollouts in pairs, mismatched preferences."""
        rows = list(self.rows)
        if plan.mismatched:
            chosen = [row for row in rows if row.source is Source.PREFERENCES]
            rows += [replace(row, reward=None, pair=-1) for row in chosen[::2]]
        if plan.pairing is None:
            return replace(self, rows=rows)
        paired = []
        for numbers in self.of(Source.ROLLOUTS):
            rewards = [rows[number].reward or 0.0 for number in numbers]
            chances = [[1 / (1 + math.exp(other - one - 0.1)) for other in rewards] for one in rewards]
            for side in plan.pairing([rows[number].sequence(number) for number in numbers], chances):
                pair = 1000 * side.group + side.pair
                changes = {"source": side.source, "reward": side.reward, "weight": side.weight, "pair": pair}
                paired.append(replace(rows[side.token_ids[0]], **changes))
        return replace(self, rows=[row for row in rows if row.pair is None and row.source not in _PAIRED] + paired)

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
    reference_samples: int = 0,
    num_labels: int = 0,
    num_scores: int = 1,
) -> World:
    """A random world; the first group solves nothing, the second everything; `drift` moves old and reference away.

    Each group has one pair of preferences, the chosen side (reward 1) first; with reference_samples, as many graded
    demonstrations in place of one without a reward.
    """
    draw, more = random.Random(seed), random.Random(-1 - seed)
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
            reward=value if source in played and draw.random() >= ungraded else None,
            solved=solved and source in played,
            old_values=[more.gauss(0, 1) for _ in range(length)],
            targets=[label() for _ in range(length)] if num_labels and source is Source.TRAJECTORIES else None,
            margin=more.random() if source is Source.PREFERENCES else 0.0,
            gap=more.randrange(max(1, length)),
        )

    def label() -> tuple[float, ...] | None:
        drawn = tuple(labels.choice([labels.random(), math.nan]) for _ in range(num_labels))
        return drawn if labels.random() < 0.7 else None

    rows = []
    labels = random.Random(-1_000_003 - seed)
    played = {Source.ROLLOUTS, Source.TRAJECTORIES} | ({Source.DEMONSTRATIONS} if reference_samples else set())
    sizes = {Source.ROLLOUTS: group_size, Source.PREFERENCES: 2, Source.DEMONSTRATIONS: reference_samples or 1}
    for group in range(num_groups):
        for source in sources:
            made = [row(source, group) for _ in range(sizes.get(source, 1))]
            if source is Source.PREFERENCES:
                made = [replace(one, reward=reward) for one, reward in zip(made, (1.0, 0.0), strict=True)]
            rows += made
    return World(theta.requires_grad_(), rows, max(num_scores, num_labels))


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
def world_for() -> Callable[..., World]:
    """A world that has whatever the given algorithm may ask of the run; other arguments as `make_world`'s."""

    def made(algorithm: Algorithm, seed: int = 0, **changes: Any) -> World:
        plan = algorithm.plan
        asked = {"reference_samples": plan.reference_samples, "num_labels": len(plan.scores) if plan.labels else 0}
        asked["num_scores"] = NUM_ROWS if plan.critic == "actions" else 1
        changes = {"sources": list(Source)} | asked | changes
        return make_world(seed, **changes).planned(algorithm.plan)

    return made


@pytest.fixture(scope="session")
def row_type() -> type[Row]:
    """`Row`."""
    return Row


def pytest_addoption(parser: pytest.Parser) -> None:
    """--write-parity: publish the comparisons with peers that this session makes."""
    parser.addoption("--write-parity", action="store_true", help="write posttrain/algorithms/parity.json")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --write-parity, the comparisons only."""
    if config.getoption("--write-parity", default=False):
        items[:] = [item for item in items if "parity" in getattr(item, "fixturenames", ())]


@pytest.fixture(scope="session")
def parity(request: pytest.FixtureRequest) -> Iterator[Parity]:
    """Compares with a peer, and publishes where the option says so."""
    found = Parity(writing=request.config.getoption("--write-parity", default=False))
    yield found
    if found.writing and not request.session.testsfailed:
        found.write()


@pytest.fixture(scope="session")
def verl() -> ModuleType:
    """verl's pure functions."""
    return load_verl("verl.trainer.ppo.core_algos")
