"""OREAL against eq. 10-12 of arXiv 2502.06781 and its code's form, written out; a token model finds the decision."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.estimator import Source, TokenBatch, TokenSequence
from posttrain.estimator.filters import MixedOutcome
from posttrain.estimator.outcomes import Outcome, TokenScored
from posttrain.estimator.scores import ScoreTerm
from tests.algorithms.names import label

DOUBLE = torch.float64


def groups(world: Any) -> list[list[int]]:
    """The graded rollouts of prompts with 0 < p < 1."""
    found = [[i for i in group if world.rows[i].reward is not None] for group in world.of(Source.ROLLOUTS)]
    return [group for group in found if 0 < sum(world.rows[i].solved for i in group) < len(group)]


def kept(world: Any, one_each: bool) -> list[tuple[int, list[int]]]:
    """Rollouts with their groups; of each outcome the one whose draw is lowest."""
    found = []
    for group in groups(world):
        for solved in (True, False):
            rows = [i for i in group if world.rows[i].solved is solved]
            draw = {i: abs(1000 * sum(world.rows[i].old)) % 1 for i in rows}
            found += [(i, group) for i in rows if not one_each or draw[i] == min(draw.values())]
    return found


def weights(world: Any, i: int, prefix: bool) -> tuple[Tensor, Tensor]:
    """Eq. 10: w+ and w- of every token."""
    scores = torch.tensor(world.rows[i].old_values, dtype=DOUBLE)
    if prefix:
        scores = torch.stack([scores[: t + 1].mean() for t in range(len(scores))])
    probability = torch.sigmoid(scores)
    return (2 * probability - 1).clamp(min=0), (1 - 2 * probability).clamp(min=0)


def paper(world: Any, logprobs: list[Tensor], values: list[Tensor], c: dict[str, Any]) -> Tensor:
    """Eq. 11 and 12, expectations over the kept rollouts."""
    rows = kept(world, c["one_each"])
    total = torch.zeros((), dtype=DOUBLE)
    for i, group in rows:
        row = world.rows[i]
        old = torch.tensor(row.old, dtype=DOUBLE)
        positive, negative = weights(world, i, c["prefix"]) if c["token_model"] else (torch.ones_like(old),) * 2
        rate = sum(world.rows[j].solved for j in group) / len(group)
        shaped = {"failure_rate": 1 - rate, "none": 1.0}[c["shaping"]]
        if row.solved:
            total = total - (positive * logprobs[i]).sum()
        else:
            total = total + c["negative_weight"] * shaped * (negative * (logprobs[i] - old)).sum()
        anchor = old if c["kl_anchor"] == "old" else torch.tensor(row.reference, dtype=DOUBLE)
        difference = anchor - logprobs[i]
        total = total + c["kl_weight"] * (difference.exp() - difference - 1).sum()
        if c["token_model"]:
            probability = torch.sigmoid(values[i].mean())
            total = total - (probability.log() if row.solved else (1 - probability).log())
    return total / len(rows)


def code(world: Any, logprobs: list[Tensor], values: list[Tensor], c: dict[str, Any]) -> Tensor:
    """The authors' train_oreal.py in the form of methods: +1 and -1 rewards, leave-one-out, means over tokens."""
    rows = kept(world, c["one_each"])
    sides = {side: [(i, group) for i, group in rows if world.rows[i].solved is side] for side in (True, False)}
    total = torch.zeros((), dtype=DOUBLE)
    for side, chosen in sides.items():
        num_tokens = sum(len(world.rows[i].tokens) for i, _ in chosen)
        for i, group in chosen:
            others = [1.0 if world.rows[j].solved else -1.0 for j in group if j != i]
            advantage = (1.0 if side else -1.0) - sum(others) / len(others)
            weight = weights(world, i, True)[0 if side else 1]
            if side:
                total = total - advantage * (weight * logprobs[i]).sum() / num_tokens
            else:
                surrogate = (logprobs[i] - logprobs[i].detach()).exp() * advantage
                total = total - c["negative_weight"] * (surrogate * weight).sum() / num_tokens
    num_tokens = sum(len(world.rows[i].tokens) for i, _ in rows)
    for i, _ in rows:
        difference = torch.tensor(world.rows[i].reference, dtype=DOUBLE) - logprobs[i]
        total = total + c["kl_weight"] * (difference.exp() - difference - 1).sum() / num_tokens
        solved = torch.tensor(float(world.rows[i].solved), dtype=DOUBLE)
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(values[i].mean(), solved)
        total = total + entropy / len(rows)
    return total


DEFAULTS: dict[str, Any] = {
    "token_model": True,
    "prefix": True,
    "one_each": True,
    "negative_weight": 0.5,
    "shaping": "failure_rate",
    "kl_weight": 0.01,
    "kl_anchor": "old",
}
AS_CODE = {"shaping": "leave_one_out", "kl_anchor": "reference", "aggregation": "token_mean"}
CASES: list[tuple[dict[str, Any], Any]] = [
    ({}, paper),
    ({"prefix": False, "negative_weight": 1.0}, paper),
    ({"one_each": False, "shaping": "none", "kl_weight": 0.0}, paper),
    ({"token_model": False, "one_each": False, "kl_anchor": "reference", "kl_weight": 0.3}, paper),
    (AS_CODE, code),
    (AS_CODE | {"one_each": False, "kl_weight": 0.2}, code),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("settings", "loss"), CASES, ids=label)
def test_the_papers_loss(settings: dict[str, Any], loss: Any, seed: int, world: Any, gradient: Any) -> None:
    here = world(seed, num_groups=6, ungraded=0.1)
    lengths = [len(row.tokens) for row in here.rows]
    algorithm = load("oreal", **settings)
    flat = torch.cat([*here.logprobs(), *here.values()]).detach().requires_grad_()
    logprobs, values = flat.split(sum(lengths))
    ours = gradient(algorithm(here.batch(logprobs).replace(values=values)).loss, flat)
    expected = gradient(
        loss(here, list(logprobs.split(lengths)), list(values.split(lengths)), DEFAULTS | settings), flat
    )
    assert expected[: sum(lengths)].any()
    assert expected[sum(lengths) :].any() == DEFAULTS["token_model"] if settings.get("token_model", True) else True
    assert (ours - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_best_of_n_is_a_distribution(world: Any) -> None:
    """Eq. 5, which makes positives count 1 and negatives by their failure rate, sums to 1."""
    probability = torch.softmax(torch.randn(6, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)), 0)
    right = torch.tensor([1, 0, 1, 0, 0, 0], dtype=DOUBLE)
    rate = (probability * right).sum()
    for n in (1, 2, 5):
        best = probability * (right * (1 - (1 - rate) ** n) / rate + (1 - right) * (1 - rate) ** (n - 1))
        torch.testing.assert_close(best.sum(), torch.ones((), dtype=DOUBLE))


@pytest.mark.parametrize("seed", range(5))
def test_one_of_each_outcome_whatever_the_order(seed: int, world: Any) -> None:
    here = world(seed, num_groups=8, ungraded=0.1)
    chosen = MixedOutcome(one_each=True)(here.batch()).tolist()
    picked = [row for row, on in zip(here.rows, chosen, strict=True) if on]
    mixed = {here.rows[group[0]].group for group in groups(here)}
    assert sorted((row.group, row.solved) for row in picked) == sorted((g, s) for g in mixed for s in (False, True))
    shuffled = replace(here, rows=random.Random(seed).sample(here.rows, len(here.rows)))
    again = MixedOutcome(one_each=True)(shuffled.batch()).tolist()
    same = [row for row, on in zip(shuffled.rows, again, strict=True) if on]
    assert sorted(map(repr, same)) == sorted(map(repr, picked))
    alike = replace(here, rows=[replace(row, old=[-1.0] * len(row.tokens)) for row in here.rows])
    assert sum(MixedOutcome(one_each=True)(alike.batch()).tolist()) == 2 * len(mixed)


def test_every_completion_is_drawn_equally_often() -> None:
    counts = torch.zeros(4)
    draw = random.Random(0)
    for _ in range(400):
        made = [
            TokenSequence((0, 1, 2), (False, True, True), Source.ROLLOUTS, 0, reward=float(i < 4), solved=i < 4,
                          behavior_logprobs=(draw.gauss(-1 - i, 0.3), draw.gauss(-2, 0.3)))
            for i in range(6)
        ]  # fmt: skip
        counts += MixedOutcome(one_each=True, outcome="solved")(TokenBatch.from_sequences(made))[:4]
    assert ((counts - 100) ** 2 / 100).sum() < 16.3  # chi-squared, 3 degrees of freedom, one in a thousand


def test_outcomes(world: Any) -> None:
    here = world(2, num_groups=6, ungraded=0.2)
    batch = here.batch()
    for shaping in ("failure_rate", "none", "leave_one_out"):
        found = Outcome(0.5, shaping)(batch)
        assert not found[~batch.graded].any()
        for group in groups(here):
            size, num = len(group), sum(here.rows[i].solved for i in group)
            solved, unsolved = {
                "failure_rate": (1.0, -0.5 * (1 - num / size)),
                "none": (1.0, -0.5),
                "leave_one_out": (2 * (size - num) / (size - 1), -0.5 * 2 * num / (size - 1)),
            }[shaping]
            expected = [solved if here.rows[i].solved else unsolved for i in group]
            assert found[group].tolist() == pytest.approx(expected, rel=1e-12)
    for wrong in ({"negative": -1.0}, {"shaping": "sharp"}):
        with pytest.raises(ValueError, match="allowed"):
            Outcome(**wrong)
    with pytest.raises(ValueError, match="allowed"):
        MixedOutcome(outcome="right")


def test_the_token_model_finds_the_decisive_token() -> None:
    """Completions of six of eight tokens, solved where token 3 is among them: trained on outcomes alone, by tokens.

    Before training no token counts; after it the decisive ones of solved rollouts weigh all, their others nothing.
    """
    draw = random.Random(0)
    made = []
    for group in range(64):
        for solved in (False, True):
            tokens = [draw.choice([0, 1, 2, 4, 5, 6, 7]) for _ in range(6)]
            if solved:
                tokens[draw.randrange(6)] = 3
            made.append(TokenSequence((9, *tokens), (False, *(True,) * 6), Source.ROLLOUTS, group, reward=float(solved),
                                      solved=solved, behavior_logprobs=(-2.0,) * 6))  # fmt: skip
    batch = TokenBatch.from_sequences(made)
    tokens = torch.tensor([token for one in made for token in one.token_ids[1:]])
    scores = torch.zeros(10, requires_grad=True)
    term, optimizer = ScoreTerm(where=MixedOutcome(one_each=True)), torch.optim.Adam([scores], lr=0.1)
    part = TokenScored(Outcome(), prefix=False)
    assert not part(batch.replace(old_values=scores.detach()[tokens])).any()
    advantage, coefficient = term.prepare(batch)
    for _ in range(300):
        optimizer.zero_grad()
        total, found = term.total(batch.replace(values=scores[tokens]), advantage, coefficient)
        (total / term.count(batch)).backward()
        optimizer.step()
    assert float(found["accuracy"][0] / found["accuracy"][1]) == 1.0
    weighed = part(batch.replace(old_values=scores.detach()[tokens]))
    decisive, solved = tokens == 3, batch.broadcast(batch.solved)
    assert weighed[decisive].min() > 0.99
    assert weighed[solved & ~decisive].max() == 0
    assert -0.25 <= weighed[~solved].min() < weighed[~solved].max() < -0.1  # half fail: eta (1 - p) = 1/4


def test_without_a_token_model_there_is_no_critic() -> None:
    assert load("oreal").plan.critic == "action"
    assert load("oreal", token_model=False).plan.critic is None
    assert not {"values", "old_values"} & load("oreal", token_model=False).needs
