"""Calibration figures against numbers worked out by hand and by brute force."""

from __future__ import annotations

import math
import random

import pytest

from posttrain.evaluation.calibration import calibration


def test_by_hand() -> None:
    """Two bins of [0, 1]: (0.2, 0.4) of which one is so, (0.9,) which is so."""
    found = calibration([0.2, 0.4, 0.9], [0.0, 1.0, 1.0], num_bins=2)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.calibration_error == pytest.approx((abs(0.6 - 1.0) + abs(0.9 - 1.0)) / 3)
    assert found.log_loss == pytest.approx(-(math.log(0.8) + math.log(0.4) + math.log(0.9)) / 3)
    assert found.brier == pytest.approx((0.04 + 0.36 + 0.01) / 3)
    assert [(one.n, one.predicted, one.observed) for one in found.bins] == [
        (2, pytest.approx(0.3), 0.5),
        (1, pytest.approx(0.9), 1.0),
    ]
    low, high = found.accuracy_interval
    assert low < found.accuracy < high


def test_pairs_count_in_both_orders() -> None:
    """Chances 0.8 and 0.4 of the preferred side: confident 0.8 and right, confident 0.6 and wrong."""
    found = calibration([0.8, 0.4, 0.5], [1.0, 1.0, 1.0], mirrored=True, num_bins=5)
    assert found.accuracy == pytest.approx((1 + 0 + 0.5) / 3)
    assert found.num_ties == 1
    assert found.calibration_error == pytest.approx((0.2 + 0.6 + 0.0) / 3)
    assert all(one.low >= 0.5 for one in found.bins)
    sure = calibration([1.0] * 20, [1.0] * 20, mirrored=True)
    assert (sure.calibration_error, sure.log_loss, sure.brier) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("pairs", [True, False])
def test_chances_that_come_true_as_often_as_they_say_are_calibrated(pairs: bool) -> None:
    draw = random.Random(0)
    chances = [draw.random() for _ in range(4000)]
    so = [draw.random() < p for p in chances]
    if pairs:  # the preferred side's chance is p where it was drawn so, else 1 - p
        chances = [p if won else 1 - p for p, won in zip(chances, so, strict=True)]
        so = [True] * len(chances)
    found = calibration(chances, [float(one) for one in so], mirrored=pairs)
    assert found.calibration_error < 2 * found.floor
    assert found.floor < 0.02
    low, high = found.calibration_interval
    assert low < high < 0.05
    stretched = [min(1.0, max(0.0, 1.8 * (p - 0.5) + 0.5)) for p in chances]
    boasting = calibration(stretched, [float(one) for one in so], mirrored=pairs)
    assert boasting.calibration_error > 3 * boasting.floor
    assert boasting.log_loss > found.log_loss


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0 probabilities"):
        calibration([], [])
