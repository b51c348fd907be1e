"""Best-of-n: its distribution and divergence by enumeration, and BOND and J-BOND against the paper's own gradients."""

from __future__ import annotations

import itertools
import math
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.batch import Source, TokenBatch, TokenSequence
from posttrain.estimator import PolicyTerm
from posttrain.estimator.best_of_n import BestOfN, BestOfNDivergence, best_of_n_probabilities, kl_bound, kl_estimate

REWARDS = [[0.0, 1.0, 0.5, 2.0], [0.0, 1.0, 1.0, 0.0], [3.0, 3.0, 3.0, 3.0]]


def drawn(probabilities: Tensor, rewards: list[float], n: int) -> Tensor:
    """pi_BoN by drawing every n-tuple and breaking ties evenly."""
    found = torch.zeros_like(probabilities)
    for choice in itertools.product(range(len(rewards)), repeat=n):
        best = [i for i in choice if rewards[i] == max(rewards[j] for j in choice)]
        for i in best:
            found[i] += probabilities[list(choice)].prod() / len(best)
    return found


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("rewards", REWARDS)
def test_the_distribution_is_that_of_theorem_1(rewards: list[float], n: int) -> None:
    base = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)
    values = torch.tensor(rewards, dtype=torch.float64)
    found = best_of_n_probabilities(base, values, n)
    torch.testing.assert_close(found, drawn(base, rewards, n), rtol=1e-12, atol=1e-15)
    at_most = torch.stack([base[values <= value].sum() for value in values])
    below = torch.stack([base[values < value].sum() for value in values])
    powers = torch.stack([(below / at_most) ** (i - 1) for i in range(1, n + 1)]).sum(0)
    torch.testing.assert_close(found, base * at_most ** (n - 1) * powers, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("size", [2, 10, 100])
@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_the_estimate_lies_between_the_divergence_and_its_bound(size: int, n: int) -> None:
    base = torch.full((size,), 1 / size, dtype=torch.float64)
    best = best_of_n_probabilities(base, torch.arange(size, dtype=torch.float64), n)
    exact = float((best * (best / base).log().nan_to_num(neginf=0.0)).sum())
    estimate = float((best * kl_estimate(base.log(), n)).sum())
    bound = float(kl_bound(n))
    assert bound == pytest.approx(math.log(n) - (n - 1) / n)
    assert exact <= estimate + 1e-12
    assert estimate <= bound + 1e-12


@pytest.mark.parametrize("log_probability", [0.0, 0.5, -1e-20, -1.0, -50.0, -1e4])
@pytest.mark.parametrize("n", [1, 2, 1000])
def test_the_estimate_is_finite(log_probability: float, n: int) -> None:
    found = float(kl_estimate(torch.tensor(log_probability), n))
    assert -1e-9 <= found <= float(kl_bound(n)) + 1e-9
    if log_probability == -1.0:
        e, rest = math.exp(-1), (1 - math.exp(-1)) ** n
        far = math.log(n) + (n - 1) * math.log(1 - e) - (n - 1) / n
        assert found == pytest.approx(rest * far + (1 - rest) * math.log((1 - rest) / e))


def samples(source: Source, rewards: list[float | None], group: int = 0) -> list[TokenSequence]:
    """One token each, whose id is its place."""
    return [
        TokenSequence((0, i), (False, True), source, group, reward=reward, behavior_logprobs=(-1.0,))
        for i, reward in enumerate(rewards)
    ]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("rewards", [[0.0, 2.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.5]])
def test_shares_are_those_of_subsets(n: int, rewards: list[float]) -> None:
    size = min(n or len(rewards), len(rewards))
    expected = [0.0] * len(rewards)
    subsets = list(itertools.combinations(range(len(rewards)), size))
    for subset in subsets:
        best = [i for i in subset if rewards[i] == max(rewards[j] for j in subset)]
        for i in best:
            expected[i] += len(rewards) / len(best) / len(subsets)
    # Neither the policy's rollouts nor an ungraded sample compare with them.
    shown = samples(Source.DEMONSTRATIONS, [*rewards, None])
    batch = TokenBatch.from_sequences(shown + samples(Source.ROLLOUTS, [9.0]), torch.float64)
    assert BestOfN(n)(batch).tolist() == pytest.approx([*expected, 0.0, 1.0], rel=1e-12)


def outcomes(logits: Tensor, rewards: list[float]) -> list[TokenSequence]:
    """Every outcome once, as often as the policy draws it: the estimator's expectation, exactly."""
    return [
        TokenSequence((0, i), (False, True), Source.ROLLOUTS, 0, reward=rewards[i], weight=float(weight))
        for i, weight in enumerate(logits.detach().softmax(0))
    ]


def held(sequences: list[TokenSequence], logits: Tensor, base: Tensor) -> TokenBatch:
    """The batch of one-token sequences, scored by the policy and by the reference."""
    ids = [s.token_ids[1] for s in sequences]
    logprobs = logits.log_softmax(0)[ids]
    return TokenBatch.from_sequences(sequences, torch.float64).replace(
        logprobs=logprobs,
        old_logprobs=logprobs.detach(),
        reference_logprobs=base.log()[ids],
        behavior_logprobs=base.log()[ids],
    )


BASE = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)
LOGITS = torch.tensor([0.3, -0.5, 1.1, 0.2], dtype=torch.float64)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("rewards", REWARDS)
def test_the_backward_gradient_is_that_of_the_divergence(rewards: list[float], n: int, gradient: Any) -> None:
    """With a reference sample for every tenth of its probability, p_le is exact."""
    logits = LOGITS.clone().requires_grad_()
    copies = [i for i, share in enumerate(BASE.tolist()) for _ in range(round(10 * share))]
    anchors = [TokenSequence((0, i), (False, True), Source.DEMONSTRATIONS, 0, reward=rewards[i]) for i in copies]
    batch = held(outcomes(logits, rewards) + anchors, logits, BASE)
    ours = gradient(load("bond", n=n, beta=1.0, ties=True)(batch).loss, logits)
    best, policy = best_of_n_probabilities(BASE, torch.tensor(rewards, dtype=torch.float64), n), logits.softmax(0)
    expected = gradient((policy * (policy / best).log()).sum(), logits)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "samples_drawn"), [(2, 2), (2, 3), (3, 3)])
@pytest.mark.parametrize("rewards", [[0.0, 1.0, 0.5], [0.0, 1.0, 1.0]])
def test_the_forward_gradient_is_that_of_the_divergence(
    rewards: list[float], n: int, samples_drawn: int, gradient: Any
) -> None:
    """Averaged over every draw of the reference's samples."""
    base = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    logits = LOGITS[:3].clone().requires_grad_()
    algorithm = load("bond", n=n, samples=samples_drawn, beta=0.0)
    total = torch.zeros_like(logits)
    for choice in itertools.product(range(3), repeat=samples_drawn):
        anchors = [TokenSequence((0, i), (False, True), Source.DEMONSTRATIONS, 0, reward=rewards[i]) for i in choice]
        loss = algorithm(held(anchors, logits, base)).loss
        total += base[list(choice)].prod() * gradient(loss, logits)
    best = best_of_n_probabilities(base, torch.tensor(rewards, dtype=torch.float64), n)
    expected = gradient(-(best * logits.log_softmax(0)).sum(), logits)
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-12)


def grouped(world: Any) -> list[tuple[list[int], list[int]]]:
    """Graded rollouts and graded reference samples of each prompt that has some."""
    both = zip(world.of(Source.ROLLOUTS), world.of(Source.DEMONSTRATIONS), strict=True)
    graded = [tuple([i for i in rows if world.rows[i].reward is not None] for rows in pair) for pair in both]
    return [(own, shown) for own, shown in graded]


def divergence(world: Any, row: int) -> float:
    """log pi_old(y) - log pi_ref(y)."""
    return sum(world.rows[row].old) - sum(world.rows[row].reference)


def forward(world: Any, logprobs: list[Tensor], n: int) -> Tensor:
    """-mean over reference samples of the subset share times log pi: each prompt by its number of samples."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for _, shown in grouped(world):
        count += len(shown)
        subsets = list(itertools.combinations(shown, min(n, len(shown)))) if shown else []
        for subset in subsets:
            top = max(world.rows[i].reward for i in subset)
            best = [i for i in subset if world.rows[i].reward == top]
            chosen = torch.stack([logprobs[i].sum() for i in best]).mean()
            total = total - len(shown) * chosen / len(subsets)
    return total / max(count, 1)


def bond(world: Any, logprobs: list[Tensor], n: int, beta: float, baseline: str) -> Tensor:
    """2407.14622 eq. 11 and 15 with the quantile of eq. 10, at least half a sample."""
    found: list[tuple[int, float]] = []
    for own, shown in grouped(world):
        if not shown:
            continue
        rewards = []
        for i in own:
            count = sum(world.rows[j].reward <= world.rows[i].reward for j in shown)
            rewards.append((n - 1) * math.log(max(count, 0.5) / len(shown)) - divergence(world, i))
        if baseline == "group":
            others = [mean(r for j, r in enumerate(rewards) if j != i) for i in range(len(rewards))]
            rewards = [value - other for value, other in zip(rewards, others, strict=True)]
        found += zip(own, rewards, strict=True)
    middle = mean(value for _, value in found) if baseline == "batch" else 0.0
    backward = -sum((value - middle) * logprobs[i].sum() for i, value in found) / len(found)
    return (1 - beta) * forward(world, logprobs, n) + beta * backward


def j_bond(world: Any, logprobs: list[Tensor], beta: float, gamma: float) -> Tensor:
    """2407.14622 alg. 2, the regulariser with a plus."""
    found, kl = [], []
    for own, shown in grouped(world):
        if shown:
            worst = min(world.rows[j].reward for j in shown)
            found += [(i, -math.log(16) * (world.rows[i].reward < worst) - divergence(world, i)) for i in own]
    for rows in world.of(Source.ROLLOUTS):
        kl += [divergence(world, i) * logprobs[i].sum() for i in rows]
    middle = mean(value for _, value in found)
    backward = -sum((value - middle) * logprobs[i].sum() for i, value in found) / len(found)
    return (1 - beta) * forward(world, logprobs, 99) + beta * backward + gamma * sum(kl) / len(kl)


CASES = [
    ("bond", {"n": 3, "samples": 4}, lambda *at: bond(*at, 3, 0.5, "batch")),
    ("bond", {"n": 5, "samples": 4, "beta": 0.2, "baseline": "group"}, lambda *at: bond(*at, 5, 0.2, "group")),
    ("j_bond", {}, lambda *at: j_bond(*at, 0.5, 0.0)),
    ("j_bond", {"beta": 0.9, "gamma": 2.0}, lambda *at: j_bond(*at, 0.9, 2.0)),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ungraded", [0.0, 0.3])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("name", "settings", "loss"), CASES)
def test_gradient_is_the_papers(
    name: str, settings: dict[str, Any], loss: Any, binary: bool, ungraded: float, seed: int, world: Any, gradient: Any
) -> None:
    algorithm = load(name, **settings)
    here = world(seed, binary=binary, ungraded=ungraded, reference_samples=algorithm.plan.reference_samples)
    ours, expected = (gradient(one, here.theta) for one in (algorithm(here.batch()).loss, loss(here, here.logprobs())))
    assert expected.abs().max() > 0
    assert (ours - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("name", ["bond", "j_bond"])
@pytest.mark.parametrize(
    "settings", [{"lengths": (0, 0)}, {"ungraded": 1.0}, {"group_size": 1}, {"reference_samples": 0}], ids=str
)
def test_degenerate_batches(name: str, settings: dict[str, Any], world: Any, gradient: Any) -> None:
    here = world(2, **{"reference_samples": 2} | settings)
    result = load(name)(here.batch())
    assert torch.isfinite(gradient(result.loss, here.theta)).all()
    assert all(math.isfinite(value) for value in result.metrics.values())


@pytest.mark.parametrize(("name", "settings"), [("bond", {"n": 4}), ("raft", {"keep": "best"})])
def test_how_far_best_of_n_is_comes_with_the_metrics(name: str, settings: dict[str, Any], world: Any) -> None:
    here = world(1, binary=False, reference_samples=4)
    algorithm = load(name, **settings)
    source = Source.ROLLOUTS if name == "raft" else Source.DEMONSTRATIONS
    selected = [max(rows, key=lambda i: here.rows[i].reward) for rows in here.of(source)]
    n = 5 if name == "raft" else 4
    estimates = [float(kl_estimate(torch.tensor(sum(here.rows[i].old)), n)) for i in selected]
    metrics = algorithm(here.batch()).metrics
    assert metrics["best_of_n/kl"] == pytest.approx(mean(estimates), rel=1e-6)
    assert metrics["best_of_n/kl_bound"] == pytest.approx(math.log(n) - (n - 1) / n)
    # The diagnostic adds no forward pass: what is selected is imitated anyway.
    without = type(algorithm)("without", tuple(t for t in algorithm.terms if isinstance(t, PolicyTerm)))
    masks = [one.active(one.prepare(here.batch())) for one in (algorithm, without)]
    assert torch.equal(*masks)


def test_the_figure_is_the_same_under_splits(world: Any) -> None:
    here = world(1, binary=False)
    term = BestOfNDivergence()
    algorithm = type(load("sft"))("figures", (term,))
    prepared = algorithm.prepare(here.batch())
    parts = [algorithm.totals(prepared.take(torch.tensor([row])))[1]["best_of_n/kl"] for row in range(len(here.rows))]
    total, count = (sum(float(part[side]) for part in parts) for side in (0, 1))
    assert total / count == pytest.approx(algorithm(here.batch()).metrics["best_of_n/kl"], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("bond", {"n": 1}, "n is 1"),
        ("bond", {"floor": 0.0}, "floor 0.0; allowed"),
        ("bond", {"beta": 1.5}, "beta 1.5"),
        ("j_bond", {"eta": 1.0}, "eta 1.0"),
        ("j_bond", {"gamma": -1.0}, "gamma -1.0"),
    ],
)
def test_what_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(name, **settings)
