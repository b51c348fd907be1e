"""Weights of recorded trajectories against the algorithm's, and draws against their probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from posttrain.curation.returns import draw, return_weights
from posttrain.errors import RecipeError


def test_weights_are_those_of_return_weighted_imitation() -> None:
    rewards, groups = [1.0, 0.0, 4.0, 4.0, 0.0], ["a", "a", "b", "c", "c"]
    found = return_weights(rewards, groups, beta=0.5, cap=20.0)
    assert found.tolist() == pytest.approx([math.exp(1), math.exp(-1), 1.0, 20.0, math.exp(-4)])
    plain = return_weights(rewards, groups, baseline="none", cap=50.0)
    assert plain.tolist() == pytest.approx([math.e, 1.0, 50.0, 50.0, 1.0])
    assert np.isfinite(return_weights([1e6, -1e6], ["a", "a"])).all()


def test_draws_follow_the_weights_and_the_seed() -> None:
    weights = np.array([1.0, 2.0, 5.0, 0.0])
    first = [draw(weights, 1, seed)[0] for seed in range(4000)]
    assert np.bincount(first, minlength=4) / 4000 == pytest.approx(weights / 8, abs=0.03)
    # Of two draws without replacement {0, 1} come out with 1/8 * 2/7 + 2/8 * 1/6.
    both = np.mean([draw(weights, 2, seed) == [0, 1] for seed in range(4000)])
    assert both == pytest.approx(1 / 8 * 2 / 7 + 2 / 8 * 1 / 6, abs=0.02)
    assert draw(weights, 3, 9) == [0, 1, 2]


def test_mistakes() -> None:
    with pytest.raises(RecipeError, match="a sample of 4 from 3 rows"):
        draw(np.array([1.0, 2.0, 5.0, 0.0]), 4, 0)
    with pytest.raises(RecipeError, match="beta is 0"):
        return_weights([1.0], ["a"], beta=0.0)
