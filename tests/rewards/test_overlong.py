"""DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13)."""

from __future__ import annotations

import pytest

from posttrain import catalog
from posttrain.errors import RecipeError


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [(0, 0.0), (16_384, 0.0), (16_384 + 1024, -0.25), (18_432, -0.5), (20_480, -1.0), (20_481, -1.0), (10**9, -1.0)],
)
def test_the_papers_numbers(num_tokens: int, expected: float) -> None:
    assert catalog.find("rewards", "overlong")(num_tokens) == expected


def test_settings() -> None:
    overlong = catalog.find("rewards", "overlong")
    assert overlong(9, max_tokens=10, buffer_tokens=4) == -0.75
    assert overlong(5, max_tokens=10, buffer_tokens=10) == -0.5
    for buffer_tokens in (0, 11, -1):
        with pytest.raises(RecipeError, match="buffer_tokens"):
            overlong(5, max_tokens=10, buffer_tokens=buffer_tokens)
