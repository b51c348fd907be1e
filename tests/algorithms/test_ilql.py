"""ILQL: its loss written out step by step, and its values against dynamic programming on a small decision process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain import catalog
from posttrain.estimator import Source, TokenBatch, TokenSequence
from posttrain.estimator.action_values import Bellman, Expectile, StepTerm, ValueWeights

SETTINGS = [{}, {"per": "turn", "beta": 1.5, "gamma": 0.9}, {"tau": 0.9, "beta": 3.0, "cap": 1.2, "value_weight": 0.3}]


def rows_of(world: Any) -> Iterator[tuple[Any, int, list[list[int]]]]:
    """The graded recorded rows of a world, where their tokens begin, and the tokens of each turn."""
    start = 0
    for row in world.rows:
        if row.source is Source.TRAJECTORIES and row.reward is not None:
            gap = row.gap if 0 < row.gap < len(row.tokens) else 0
            cuts = [0, gap, len(row.tokens)] if gap else [0, len(row.tokens)]
            yield row, start, [list(range(a, b)) for a, b in pairwise(cuts)]
        start += len(row.tokens)


def written_out(world: Any, logprobs: Tensor, values: Tensor, own: dict[str, Any]) -> Tensor:
    """The docstring's formula, one step after the other."""
    state, action, said, target = values
    policy, q, v, conservative, num_tokens, num_steps = [torch.zeros((), dtype=torch.float64)] * 4 + [0.0, 0.0]
    for row, start, turns in rows_of(world):
        steps = turns if own["per"] == "turn" else [[token] for turn in turns for token in turn]
        for number, step in enumerate(steps):
            first, last = start + step[0], start + step[-1]
            final = number == len(steps) - 1
            reward = row.reward if final else 0.0
            after = 0.0 if final else own["gamma"] * state[start + steps[number + 1][0]].detach()
            q = q + row.weight * 0.5 * (reward + after - action[last]) ** 2
            apart = target[last].detach() - state[first]
            v = v + row.weight * (own["tau"] if apart >= 0 else 1 - own["tau"]) * apart**2
            conservative = conservative - row.weight * said[last]
            num_steps += row.weight
            weight = min(float(torch.exp(own["beta"] * apart.detach())), own["cap"])
            for token in step:
                policy = policy - row.weight * weight * logprobs[start + token]
                num_tokens += row.weight
    total = q + own["value_weight"] * v + own["conservative_weight"] * conservative
    return policy / num_tokens + total / num_steps


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_gradient_is_the_formulas(world_for: Callable[..., Any], settings: dict[str, Any], seed: int) -> None:
    algorithm = catalog.build("algorithms", "ilql", settings)
    defaults = {"per": "token", "beta": 0.0, "gamma": 0.99, "tau": 0.7, "cap": 20.0}
    own = defaults | {"value_weight": 1.0, "conservative_weight": 0.1} | settings
    world = world_for(algorithm, seed, ungraded=0.3)
    batch = world.batch()
    leaves = batch.logprobs.detach().requires_grad_(), batch.values.detach().clone().requires_grad_()
    found = algorithm(batch.replace(logprobs=leaves[0], values=leaves[1])).loss
    expected = written_out(world, *leaves, own)
    ours, theirs = (torch.autograd.grad(one, leaves) for one in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


# Three states in a row: action 0 ends it and pays PAYS[state], action 1 goes on (after the last it pays 1).
PAYS = (0.3, 0.2, 0.1)
BEST = [1.0, 1.0, 1.0]


def episodes() -> list[tuple[list[int], float]]:
    """Every course: actions, reward; going on is done rarely."""
    return [([0], PAYS[0])] * 12 + [([1, 0], PAYS[1])] * 6 + [([1, 1, 0], PAYS[2])] * 3 + [([1, 1, 1], 1.0)]


def fitted(tau: float, num_updates: int = 1000) -> tuple[Tensor, Tensor]:
    """V [3] and Q [3, 2] of tables that minimise ILQL's Q and V losses on the episodes."""
    played = episodes()
    sequences = [
        TokenSequence((9, *actions), (False, *(True,) * len(actions)), Source.TRAJECTORIES, group, reward=reward)
        for group, (actions, reward) in enumerate(played)
    ]
    batch = TokenBatch.from_sequences(sequences, dtype=torch.float64)
    states = torch.tensor([t for actions, _ in played for t in range(len(actions))])
    done = torch.tensor([a for actions, _ in played for a in actions])
    v = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    q = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    terms = StepTerm(error=Bellman(gamma=1.0)), StepTerm(error=Expectile(tau))
    optimizer = torch.optim.Adam([v, q], lr=0.05)
    prepared = [term.prepare(batch) for term in terms]
    for _ in range(num_updates):
        chosen = q[states, done]
        made = batch.replace(values=torch.stack([v[states], chosen, chosen, chosen.detach()]))
        loss = sum(term.total(made, *own)[0] for term, own in zip(terms, prepared, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return v.detach(), q.detach()


def test_towards_expectile_one_the_values_are_the_best_in_the_data() -> None:
    v, q = fitted(0.999)
    assert torch.allclose(v, torch.tensor(BEST, dtype=torch.float64), atol=0.02)
    assert torch.allclose(q[:, 0], torch.tensor(PAYS, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(q[:, 1], torch.ones(3, dtype=torch.float64), atol=0.02)


def test_at_expectile_one_half_the_values_are_those_of_what_was_done() -> None:
    v, _ = fitted(0.5)
    played = episodes()
    for state in range(3):
        seen = [reward for actions, reward in played if len(actions) > state]
        assert float(v[state]) == pytest.approx(sum(seen) / len(seen), abs=2e-3)


def test_weights_are_one_at_beta_zero_and_capped() -> None:
    sequence = TokenSequence((9, 1, 1), (False, True, True), Source.TRAJECTORIES, 0, reward=1.0)
    values = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.5, 9.0]], dtype=torch.float64)
    batch = TokenBatch.from_sequences([sequence], dtype=torch.float64).replace(values=values)
    assert ValueWeights()(batch).tolist() == [1.0, 1.0]
    assert ValueWeights(beta=2.0, cap=5.0)(batch).tolist() == pytest.approx([2.718281828, 5.0])
    assert ValueWeights(beta=2.0, cap=1e9, per="turn")(batch).tolist() == pytest.approx([6.5659969e7] * 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 1.0}, "tau is 1.0; allowed: above 0, below 1"),
        ({"gamma": 1.5}, "gamma is 1.5; allowed: 0 to 1"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"target_rate": 0.0}, "target_rate is 0.0; allowed: above 0, at most 1"),
    ],
)
def test_mistakes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalog.build("algorithms", "ilql", settings)
