"""SOP's progress, by hand."""

from __future__ import annotations

import pytest

from posttrain import catalog
from posttrain.errors import DataError


@pytest.mark.parametrize(
    ("places", "off_path", "share"),
    [
        ([1, 2, 3, 4], [False] * 4, 1.0),
        ([1, 2], [False, True], 0.25),
        ([1], [True], 0.0),
        ([1, 2, 3], [False] * 3, 0.75),  # a limit ended it
        ([1, 2, 2, 3, 4], [False, True, False, False, False], 0.25),  # patched, and asked for a thought
    ],
)
def test_progress(places: list[int], off_path: list[bool], share: float) -> None:
    reward = catalog.find("rewards", "recorded_steps")
    found = reward([f"step {place} of 4" for place in places], off_path)
    assert found == share
    assert found.counts["PG"] == (share * 1_000_000, 1_000_000)
    assert found.counts["TSR"] == (int(share == 1), 1)
    assert found.counts["score"][0] / 1_000_000 == (share + (share == 1)) / 2


def test_other_environments() -> None:
    with pytest.raises(DataError, match="name no recorded steps"):
        catalog.find("rewards", "recorded_steps")(["room"], [False])
