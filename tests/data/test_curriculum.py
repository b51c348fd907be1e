"""Prompts drawn by their pass rates: what is drawn, that it repeats exactly, and rates that are known before."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data import pass_rates
from posttrain.data.curriculum import Buckets, Count, Curriculum, Target
from posttrain.data.examples import Example, Examples
from posttrain.data.stream import Stream
from posttrain.errors import CheckpointError, DataError

OREAL = Buckets([0.2, 0.4, 0.6, 0.8], [6, 4, 4, 2, 0])
NEAR_HALF = Target(0.5, 0.1)


def curriculum(sizes: tuple[int, ...] = (10, 10), weights: tuple[float, ...] = (), **changes: Any) -> Curriculum:
    sources = [[Example(f"{s}#{row}", "x") for row in range(size)] for s, size in enumerate(sizes)]
    stream = Stream(sources, weights or [1.0] * len(sizes), seed=3)
    return Curriculum(stream, **{"preference": NEAR_HALF, "exploration": 0.2, "decay": 0.5, "seed": 3} | changes)


def play(one: Curriculum, window: int, n: int, solves: Callable[[str], int], staleness: int = 0) -> list[str]:
    """Draw a window of n prompts and record it, 8 rollouts each; the ids."""
    one.begin(window, window - 1 - staleness)
    drawn = [example.id for example in one.take(n)]
    one.record(window, [(name, 8, solves(name)) for name in drawn])
    return drawn


def by_row(name: str) -> int:
    """Rows 0 to 8 are solved as often as their number says; the others never."""
    row = int(name.split("#")[1])
    return row if row <= 8 else 0


def test_preferences() -> None:
    assert OREAL(np.array([0.0, 0.19, 0.2, 0.5, 0.79, 0.8, 1.0])).tolist() == [6, 6, 4, 4, 2, 0, 0]
    found = NEAR_HALF(np.array([0.5, 0.4, 0.6, 0.0]))
    assert found.tolist() == pytest.approx([1, np.exp(-0.5), np.exp(-0.5), np.exp(-12.5)])


def test_everything_is_explored_once_before_anything_comes_again_by_chance() -> None:
    one = curriculum((7, 5), exploration=1.0)
    drawn = [name for window in range(4) for name in play(one, window, 3, by_row)]
    assert len(set(drawn)) == 12
    plain = Stream([[Example(f"0#{row}", "x") for row in range(7)]], [1.0], seed=3)
    alone = curriculum((7,), exploration=1.0)
    assert play(alone, 0, 7, by_row) == [example.id for example in plain.take(7)], "in the plain stream's order"


def test_what_is_near_the_target_is_drawn_most() -> None:
    one = curriculum((9,), exploration=0.1)
    drawn = Counter(name for window in range(300) for name in play(one, window, 2, by_row))
    assert {name for name, _ in drawn.most_common(3)} == {"0#3", "0#4", "0#5"}
    assert drawn["0#0"] < drawn["0#4"] / 3
    assert min(drawn[f"0#{row}"] for row in range(9)) > 0, "explored again, however it stands"


def test_buckets_draw_in_proportion() -> None:
    known = {(0, row): Count(10, 10 * rate) for row, rate in enumerate([0.1, 0.3, 0.7, 0.9])}
    drawn: Counter[str] = Counter()
    for window in range(4000):  # each the first window of a run of its own
        one = curriculum((4,), preference=OREAL, exploration=0.0, counts=dict(known), seed=window)
        one.begin(0, -1)
        drawn.update(example.id for example in one.take(1))
    assert {name: drawn[name] / 4000 for name in ("0#0", "0#1", "0#2")} == pytest.approx(
        {"0#0": 6 / 12, "0#1": 4 / 12, "0#2": 2 / 12}, abs=0.03
    )
    assert drawn["0#3"] == 0


def test_sources_keep_their_shares() -> None:
    """Of equal rates, an example is drawn in proportion to its source's weight over its size."""
    known = {(source, row): Count(2, 1) for source, size in ((0, 10), (1, 2)) for row in range(size)}
    drawn: Counter[str] = Counter()
    for seed in range(2000):
        one = curriculum((10, 2), (3.0, 1.0), exploration=0.0, counts=dict(known), seed=seed)
        one.begin(0, -1)
        drawn.update(example.id[0] for example in one.take(1))
    assert drawn["0"] / 2000 == pytest.approx(0.75, abs=0.04)


def test_a_prompt_comes_again_only_after_its_rollouts_count() -> None:
    one = curriculum((6,), exploration=0.0)
    windows = [play(one, window, 2, lambda name: 4, staleness=1) for window in range(30)]
    for before, after in pairwise(windows):
        assert not set(before) & set(after)
        assert len(set(after)) == 2
    few = curriculum((2,), exploration=0.0)
    assert len(play(few, 0, 5, by_row)) == 5, "where there are no others, it does"


def test_counts_decay() -> None:
    one = curriculum((1,), exploration=1.0, decay=0.5)
    play(one, 0, 1, lambda name: 8)
    play(one, 1, 1, lambda name: 0)
    one.begin(2, 1)
    assert one.counts == {(0, 0): Count(12, 4)}
    assert one.figures()["curriculum/known_pass_rate"] == pytest.approx(1 / 3)


def test_ungraded_rollouts_are_no_estimate() -> None:
    one = curriculum((3,), exploration=0.0)
    one.begin(0, -1)
    (example,) = one.take(1)
    one.record(0, [(example.id, 0, 0)])
    one.begin(1, 0)
    assert one.counts == {}
    assert {found.id for found in one.take(3)} == {"0#0", "0#1", "0#2"}


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    before=st.integers(0, 8),
    staleness=st.integers(0, 2),
    exploration=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_resuming_anywhere_equals_not_stopping(
    sizes: list[int], before: int, staleness: int, exploration: float
) -> None:
    how: dict[str, Any] = {"sizes": tuple(sizes), "exploration": exploration}
    whole, stopped, resumed = (curriculum(**how) for _ in range(3))
    expected = [play(whole, window, 3, by_row, staleness) for window in range(14)]
    assert [play(stopped, window, 3, by_row, staleness) for window in range(before)] == expected[:before]
    state = json.loads(json.dumps(stopped.state_dict()))
    play(resumed, 0, 2, by_row)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert [play(resumed, window, 3, by_row, staleness) for window in range(before, 14)] == expected[before:]


def varying(window: int, name: str) -> int:
    """Another number in every window."""
    return by_row(name) * window % 7


def test_figures_after_resuming_are_the_same_bit_for_bit() -> None:
    """A mean depends on the order of what it adds up."""
    whole = curriculum(exploration=0.3, decay=0.7)
    for window in range(40):
        resumed = curriculum(exploration=0.3, decay=0.7)
        resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
        for one in (whole, resumed):
            play(one, window, 4, partial(varying, window))
        assert resumed.figures() == whole.figures()


@settings(max_examples=20, deadline=None)
@given(staleness=st.integers(0, 2), num_ranks=st.integers(1, 3), late=st.booleans())
def test_ranks_and_windows_ahead_draw_the_same(staleness: int, num_ranks: int, late: bool) -> None:
    """However the results are divided among ranks, and whether or not later windows are recorded already."""
    one = curriculum(exploration=0.3)
    expected = [play(one, window, 4, by_row, staleness) for window in range(12)]
    ranks = [curriculum(exploration=0.3) for _ in range(num_ranks)]
    drawn: list[list[str]] = []

    def record(window: int) -> None:
        shares = [[(name, 8, by_row(name)) for name in drawn[window][rank::num_ranks]] for rank in range(num_ranks)]
        parts: list[list[int]] = []

        def collect(own: list[int]) -> list[int]:
            parts.append(own)
            return own

        for rank, share in zip(ranks, shares, strict=True):
            rank.record(window, share, collect)
        together = [number for part in parts for number in part]
        for rank, share in zip(ranks, shares, strict=True):  # now every rank has all numbers
            rank.record(window, share, lambda _: together)

    recorded = 0
    for window in range(12):
        wanted = window if late else max(0, window - staleness)
        for index in range(recorded, wanted):
            record(index)
        recorded = max(recorded, wanted)
        for rank in ranks:
            rank.begin(window, window - 1 - staleness)
        found = [[example.id for example in rank.take(4)] for rank in ranks]
        assert all(names == found[0] for names in found)
        drawn.append(found[0])
    assert drawn == expected


def test_a_state_of_other_data_is_refused() -> None:
    with pytest.raises(CheckpointError, match="the data changed since the checkpoint: sizes"):
        curriculum((3,)).load_state_dict(curriculum((4,)).state_dict())


def examples(**columns: list[Any]) -> Examples:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Examples("data", len(rows), lambda i: Example(f"data#{i}", "x", columns=rows[i]))


def test_rates_of_a_column() -> None:
    data = examples(rate=[0.0, 0.5, None, 1, 0.75])
    rates = pass_rates.of_column("rate", data)
    assert rates == [0.0, 0.5, None, 1.0, 0.75]
    kept, known, line = pass_rates.within(data, rates, 0.1, 0.8)
    assert [kept[i].id for i in range(len(kept))] == ["data#1", "data#2", "data#4"]
    assert known == {0: 0.5, 2: 0.75}
    assert line == "curriculum: 3 of 5 prompts, with recorded pass rates from 0.1 to 0.8 (1 without one)"
    with pytest.raises(DataError, match=r"nothing is left of data; allowed: wider bounds"):
        pass_rates.within(examples(rate=[1.0]), [1.0], 0.0, 0.5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (examples(rates=[0.5]), r"data#0 has no column 'rate'; did you mean 'rates'\?"),
        (examples(rate=[0.5, 50]), r"data#1: column 'rate' is 50; allowed: a pass rate from 0 to 1, or nothing"),
        (examples(rate=[True]), r"data#0: column 'rate' is True"),
        (examples(rate=["0.5"]), r"data#0: column 'rate' is '0.5'"),
    ],
)
def test_what_is_no_rate_is_named(data: Examples, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pass_rates.of_column("rate", data)


def test_rates_of_a_runs_rollouts(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": "data#0", "by": "policy", "reward": 1.0, "solved": True},
        {"prompt_id": "data#0", "by": "policy", "reward": 0.0, "solved": False},
        {"prompt_id": "data#0", "by": "policy", "reward": None, "solved": None},
        {"prompt_id": "data#0", "by": "reference", "reward": 0.0, "solved": False},
        {"prompt_id": "data#2", "by": "policy", "reward": 0.0, "solved": False},
    ]
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "step_1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert pass_rates.of_run(str(tmp_path), examples(x=[1, 2, 3])) == [0.5, None, 0.0]
    other = Examples("others", 1, lambda i: Example(f"others#{i}", "x"))
    with pytest.raises(DataError, match=r"its prompts \(data#0, ...\) are not those of others \(others#0, ...\)"):
        pass_rates.of_run(str(tmp_path), other)
    with pytest.raises(DataError, match=r"no graded rollouts; allowed: the directory of a run"):
        pass_rates.of_run(str(tmp_path / "nowhere"), other)
