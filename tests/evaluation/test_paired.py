"""Paired tests against counting every case."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest

from posttrain.evaluation.paired import NUM_EXACT, Comparison, mcnemar, sign_flips


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (3, 9), (6, 6), (0, 14), (70, 47)])
def test_mcnemar_counts_every_way_in_which_discordant_items_could_fall(only_first: int, only_second: int) -> None:
    ways = Counter({0: 1})  # of the first's wins, item by item
    for _ in range(only_first + only_second):
        ways = Counter({wins: ways[wins] + ways[wins - 1] for wins in range(len(ways) + 1)})
    gap = abs(only_first - only_second)
    extreme = sum(count for wins, count in ways.items() if abs(2 * wins - only_first - only_second) >= gap)
    assert mcnemar(only_first, only_second) == pytest.approx(extreme / ways.total(), rel=1e-12)


def test_few_differences_count_every_sign() -> None:
    values = [0.25, -0.5, 0.0, 1.0, 0.75, 0.25]
    flips = [abs(np.dot(signs, values)) for signs in product((1, -1), repeat=len(values))]
    assert sign_flips(values) == pytest.approx(np.mean(np.array(flips) >= abs(sum(values)) - 1e-12))


def test_many_differences_draw_signs() -> None:
    tenths = np.random.default_rng(3).integers(-9, 11, 200)
    assert np.count_nonzero(tenths) > NUM_EXACT
    sums = Counter({0: 1.0})  # the exact distribution, item by item
    for value in map(int, tenths):
        sums = Counter(
            {
                total: (sums[total - value] + sums[total + value]) / 2
                for old in sums
                for total in (old - value, old + value)
            }
        )
    exact = sum(share for total, share in sums.items() if abs(total) >= abs(tenths.sum()))
    p = sign_flips([value / 10 for value in tenths])
    assert 0.01 < exact < 0.9
    assert p == pytest.approx(exact, abs=3 * (exact / 20_000) ** 0.5)
    assert p == sign_flips([value / 10 for value in tenths])


def test_no_difference_and_mistakes() -> None:
    assert sign_flips([0.0, 0.0]) == 1.0
    with pytest.raises(ValueError, match="allowed: 0 or more"):
        mcnemar(-1, 2)


def test_a_comparison_reads_only_common_items() -> None:
    one = Comparison({"a": 1, "b": 0, "c": 1, "d": 0, "x": 1}, {"d": 1, "c": 1, "b": 1, "a": 0, "y": 0})
    assert one.common == ["a", "b", "c", "d"]
    assert one.rates == (0.5, 0.75)
    assert (one.only_first, one.only_second) == (["a"], ["b", "d"])
    assert (one.difference, one.test, one.p_value) == (0.25, "McNemar, exact", 1.0)
    low, high = one.interval
    assert low < 0.25 < high


def test_several_samples_are_compared_by_their_shares() -> None:
    one = Comparison({"a": 0.25, "b": 0.5}, {"a": 0.5, "b": 1.0})
    assert (one.test, one.p_value) == ("sign flips", 0.5)
    assert (one.only_first, one.only_second) == ([], [])
