"""Diagnostics with known numbers, and their sums over parts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import Reward
from posttrain.estimator.denominators import Old
from posttrain.estimator.diagnostics import means, merge
from posttrain.estimator.masks import Clip


def test_known_numbers(batch_of: Any) -> None:
    half, double = math.log(0.5), math.log(2.0)
    batch = batch_of(
        [2, 1, 1],
        rewards=[1.0, -1.0, None],
        logprobs=[double - 3, -3.0, half - 3, -1.0],
        old_logprobs=[-3.0, -3.0, -3.0, -9.0],
        entropy=[1.0, 2.0, 3.0, 99.0],
    )
    term = PolicyTerm(Source.ROLLOUTS, denominator=Old(), advantage=Reward(), mask=Clip(), name="p")
    found = Algorithm("one", (term,))(batch).metrics
    assert found == pytest.approx(
        {
            "p/nll": 3.0,
            "p/clip_fraction": 2 / 3,
            "p/kl_k1": 0.0,
            "p/kl_k3": ((2 - 1 - double) + (0.5 - 1 - half)) / 3,
            "p/ratio": 3.5 / 3,
            "p/ess": (3.5 / 3) ** 2 / (5.25 / 3),
            "p/entropy": 2.0,
        },
        abs=1e-12,
    )


def test_merge_adds_sums_and_counts() -> None:
    one = {"a": (torch.tensor(1.0), torch.tensor(2.0)), "b": (torch.tensor(0.0), torch.tensor(0.0))}
    two = {"a": (torch.tensor(3.0), torch.tensor(2.0))}
    assert means(merge([one, two])) == {"a": 1.0}
    assert means(merge([])) == {}
