"""Algorithm as a library call, its reducer, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from posttrain.estimator import Algorithm, PolicyTerm, Source, reduce
from posttrain.estimator.advantages import GroupRelative, ReferenceKL
from posttrain.estimator.denominators import Behavior
from posttrain.estimator.weights import Always


def test_reduce_divides_once_and_reads_a_count_of_zero_as_one() -> None:
    assert float(reduce(torch.tensor([6.0, 5.0]), torch.tensor([3.0, 0.0]))) == 7.0


def test_sum_of_terms(batch_of: Any) -> None:
    leaf = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64, requires_grad=True)
    sources = [Source.DEMONSTRATIONS, Source.TRAJECTORIES]
    batch = batch_of([2, 1], sources=sources).replace(logprobs=leaf)
    terms = (
        PolicyTerm(Source.DEMONSTRATIONS, name="a"),
        PolicyTerm(Source.TRAJECTORIES, weight=Always(0.5), name="b"),
    )
    algorithm = Algorithm("two", terms)
    algorithm(batch).loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [-0.5, -0.5, -0.5]
    assert algorithm.sources == set(sources)


def test_needs_and_couples() -> None:
    terms = (
        PolicyTerm(Source.ROLLOUTS, denominator=Behavior(), advantage=GroupRelative(), name="a"),
        PolicyTerm(Source.ROLLOUTS, advantage=ReferenceKL(), name="b"),
    )
    algorithm = Algorithm("two", terms)
    assert algorithm.needs == {"behavior_logprobs", "rewards", "groups", "reference_logprobs"}
    assert algorithm.couples == ""


def test_refuses_no_terms_and_equal_names() -> None:
    for terms in ((), (PolicyTerm(Source.ROLLOUTS), PolicyTerm(Source.DEMONSTRATIONS))):
        with pytest.raises(ValueError, match="terms with different names"):
            Algorithm("bad", terms)


def test_an_empty_source_has_no_gradient(batch_of: Any) -> None:
    leaf = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    algorithm = Algorithm("one", (PolicyTerm(Source.PREFERENCES),))
    algorithm(batch_of([1]).replace(logprobs=leaf)).loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [0.0]
