"""Distillation against the paper's loss, enumerated over the vocabulary and differentiated on padded tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.estimator import Algorithm, Source
from posttrain.estimator.distillation import DivergenceTerm, ForwardKL, ReverseKL
from posttrain.models.divergence import Scores, token_divergence

CASES: list[dict[str, Any]] = [
    {"divergence": "forward_kl"},
    {"divergence": "reverse_kl", "on_policy": 0.0, "off_policy": 1.0},
    {"divergence": "jensen_shannon", "beta": 0.1, "on_policy": 0.3, "off_policy": 0.7},
    {"divergence": "jensen_shannon", "beta": 0.9, "token_mean": True},
    {"divergence": "jensen_shannon", "beta": 0.0, "on_policy": 2.0},
    {"divergence": "jensen_shannon", "beta": 1.0},
    {"divergence": "adaptive", "on_policy": 0.5, "off_policy": 0.5},
    {"divergence": "adaptive", "head": 0.8, "token_mean": True},
]


@pytest.fixture
def teacher() -> Tensor:
    """Logits of a teacher [contexts, vocabulary]."""
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(99), dtype=torch.float64)


def ours(algorithm: Algorithm, world: Any, teacher: Tensor) -> Tensor:
    """The loss on chunked divergences: theta's rows are hidden states under an identity head."""
    contexts = [context for row in world.rows for context in row.contexts]
    identity = torch.eye(5, dtype=torch.float64)
    assert algorithm.divergence is not None
    divergence = token_divergence(
        algorithm.divergence,
        Scores(world.theta[contexts], identity),
        Scores(teacher[contexts], identity),
        torch.ones(len(contexts)),
        chunk_bytes=3 * 5 * 8,
    )
    return algorithm(world.batch().replace(divergence=divergence)).loss


def paper(world: Any, teacher: Tensor, case: dict[str, Any]) -> Tensor:
    """L = on_policy mean_rollouts[D] + off_policy mean_demonstrations[D], token by token and entry by entry."""
    settings = {"beta": 0.5, "head": 0.5, "on_policy": 1.0, "off_policy": 0.0, "token_mean": False} | case
    total = torch.zeros((), dtype=torch.float64)
    for source, weight in ((Source.ROLLOUTS, "on_policy"), (Source.DEMONSTRATIONS, "off_policy")):
        rows = [row for row in world.rows if row.source is source]
        per_row = [
            torch.stack([token(world.theta[c].softmax(0), teacher[c].softmax(0), settings) for c in row.contexts])
            for row in rows
        ]
        mean = torch.cat(per_row).mean() if settings["token_mean"] else torch.stack([d.mean() for d in per_row]).mean()
        total = total + settings[weight] * mean
    return total


def kl(first: Tensor, second: Tensor) -> Tensor:
    return sum((a * torch.log(a / b) for a, b in zip(first, second, strict=True)), torch.zeros((), dtype=first.dtype))


def token(q: Tensor, p: Tensor, settings: dict[str, Any]) -> Tensor:
    """D of the next token, from both distributions."""
    beta = {"forward_kl": 0.0, "reverse_kl": 1.0}.get(settings["divergence"], settings["beta"])
    if settings["divergence"] == "adaptive":
        gaps, mass = [0.0, 0.0], 0.0
        for place, v in enumerate(p.argsort(descending=True).tolist()):
            mass += float(p[v])
            gaps[place > 0 and mass > settings["head"]] += abs(float((p[v] - q[v]).detach()))
        return (gaps[0] * kl(p, q) + gaps[1] * kl(q, p)) / sum(gaps)
    if beta in (0.0, 1.0):
        return kl(q, p) if beta else kl(p, q)
    mixture = beta * p + (1 - beta) * q
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_equal_the_papers(case: dict[str, Any], seed: int, world: Any, teacher: Tensor) -> None:
    here = world(seed, ungraded=0.3)
    found, expected = ours(load("distill", **case), here, teacher), paper(here, teacher, case)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(found, here.theta)
    (wanted,) = torch.autograd.grad(expected, here.theta)
    assert (gradient - wanted).abs().max() <= 1e-9 * wanted.abs().max()


def test_the_divergence_is_reported_by_source(world: Any, teacher: Tensor) -> None:
    here = world(1)
    algorithm = load("distill", on_policy=0.3, off_policy=0.7, divergence="forward_kl")
    batch, _ = here.leaf_batch()
    metrics = algorithm(batch).metrics
    for source in ("rollouts", "demonstrations"):
        tokens = batch.broadcast(batch.is_from(Source(source)))
        assert metrics[f"{source}/divergence"] == pytest.approx(batch.divergence[tokens].mean().item())
        assert metrics[f"{source}/nll"] == pytest.approx(-batch.logprobs[tokens].mean().item())


def test_what_it_reads() -> None:
    assert load("distill").needs == {"divergence"}
    assert load("distill").sources == {Source.ROLLOUTS}
    assert load("distill", on_policy=0.0, off_policy=1.0).sources == {Source.DEMONSTRATIONS}
    assert load("distill", off_policy=1.0).sources == {Source.ROLLOUTS, Source.DEMONSTRATIONS}
    assert load("sft").divergence is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_policy": 0.0}, "on_policy and off_policy are both 0"),
        ({"on_policy": -1.0}, r"weight is -1\.0"),
        ({"beta": 1.5}, r"beta is 1\.5; allowed: 0 to 1"),
        ({"head": 0.0, "divergence": "adaptive"}, r"head is 0\.0; allowed: above 0"),
        ({"divergence": "forward_lk"}, "forward_kl"),
        ({"divergence": "forward_kl", "beta": 0.3}, r"beta is 0\.3, which divergence 'forward_kl' does not read"),
        ({"head": 0.3}, r"head is 0\.3, which divergence 'jensen_shannon' does not read; allowed with adaptive"),
    ],
)
def test_mistakes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("distill", **settings)


def test_terms_with_different_divergences_are_an_error() -> None:
    first = DivergenceTerm(source=Source.ROLLOUTS, divergence=ForwardKL(), name="a")
    second = DivergenceTerm(source=Source.DEMONSTRATIONS, divergence=ReverseKL(), name="b")
    with pytest.raises(ValueError, match=r"different divergences: -KL\(p \|\| q\); -KL\(q \|\| p\); allowed: one"):
        Algorithm("both", (first, second))


def test_a_batch_without_divergences_says_so(world: Any) -> None:
    with pytest.raises(ValueError, match=r"TokenBatch\.divergence"):
        load("distill")(world(0).batch().replace(divergence=None))
