"""Statistics of benchmark scores against exact, enumerated and published values."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.evaluation.statistics import avg_at_k, bootstrap_mean, mean_pass_at_k, pass_at_k, wilson


@pytest.mark.parametrize(
    ("num_solved", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.277533),  # z^2 / (n + z^2)
        (10, 10, 0.722467, 1.0),
        (1, 10, 0.017876, 0.404150),
        (15, 100, 0.093055, 0.232844),
        (81, 263, 0.255315, 0.366181),  # Newcombe 1998, table I: 0.2553 to 0.3662
        (15, 148, 0.062386, 0.160516),  # Newcombe 1998, table I: 0.0624 to 0.1605
    ],
)
def test_wilson_equals_known_values(num_solved: int, n: int, low: float, high: float) -> None:
    assert wilson(num_solved, n) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_bounds_solve_the_score_equation(solved_of: tuple[int, int], confidence: float) -> None:
    num_solved, n = solved_of
    low, high = wilson(num_solved, n, confidence)
    assert 0 <= low <= num_solved / n <= high <= 1
    z = abs(_normal_quantile((1 + confidence) / 2))
    for bound in {low, high} - {0.0, 1.0}:  # |p_hat - p| = z sqrt(p (1-p) / n)
        assert abs(num_solved / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), rel=1e-6)


def test_wilson_covers_the_true_rate() -> None:
    n, p = 50, 0.3
    covered = sum(
        math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1) if wilson(c, n)[0] <= p <= wilson(c, n)[1]
    )
    assert 0.93 < covered < 0.97


def test_wilson_without_items_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("num_solved", "n", "confidence"), [(-1, 3, 0.95), (4, 3, 0.95), (1, 3, 1.0), (1, 3, 0.0)])
def test_wilson_refuses_impossible_numbers(num_solved: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="allowed"):
        wilson(num_solved, n, confidence)


def test_bootstrap_equals_the_enumerated_distribution() -> None:
    values = [0.0, 0.11, 0.29, 0.53, 0.61, 1.0]
    exact = np.quantile([sum(draw) / 6 for draw in itertools.product(values, repeat=6)], [0.05, 0.95])
    assert bootstrap_mean(values, 0.9, num_resamples=200_000) == pytest.approx(tuple(exact), abs=0.005)


def test_bootstrap_approaches_the_normal_interval() -> None:
    values = list(np.random.default_rng(0).normal(0.4, 0.2, size=2000))
    half = 1.96 * float(np.std(values)) / math.sqrt(len(values))
    low, high = bootstrap_mean(values)
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=0.06 * half)


def test_bootstrap_repeats_with_its_seed() -> None:
    values = [math.sqrt(i) for i in range(20)]
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)
    assert bootstrap_mean([0.7]) == (0.7, 0.7)


def test_bootstrap_without_values_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_equals_enumeration(n: int) -> None:
    for c in range(n + 1):
        for k in range(1, n + 1):
            draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
            exact = sum(any(draw) for draw in draws) / len(draws)
            assert pass_at_k(n, c, k) == pytest.approx(exact, abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    n, k, p = 6, 3, 0.2
    expected = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4), (0, 0, 1)])
def test_pass_at_k_refuses_impossible_numbers(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="allowed"):
        pass_at_k(n, c, k)


def test_means_over_items() -> None:
    counts = [(4, 2), (4, 0), (2, 2), (0, 0)]
    assert avg_at_k(counts) == pytest.approx((0.5 + 0 + 1) / 3)
    assert mean_pass_at_k(counts, 1) == pytest.approx((0.5 + 0 + 1) / 3)
    assert mean_pass_at_k(counts, 3) == pytest.approx((1.0 + 0) / 2)  # the item with two samples is left out
    with pytest.raises(ValueError, match="no item has 5 samples"):
        mean_pass_at_k(counts, 5)
    with pytest.raises(ValueError, match="no item has a sample"):
        avg_at_k([(0, 0)])


def _normal_quantile(p: float) -> float:
    """By bisection on erf, independent of the standard library's NormalDist."""
    low, high = -10.0, 10.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 * (1 + math.erf(middle / math.sqrt(2))) < p else (low, middle)
    return (low + high) / 2
