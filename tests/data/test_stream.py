import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.examples import Example
from posttrain.data.stream import Stream
from posttrain.errors import CheckpointError, DataError

Sizes = st.lists(st.integers(1, 7), min_size=1, max_size=4)


def source(name: str, size: int) -> list[Example]:
    return [Example(id=f"{name}#{row}", prompt="x") for row in range(size)]


def stream(sizes: list[int], seed: int = 0, weights: list[float] | None = None) -> Stream:
    sources = [source(str(index), size) for index, size in enumerate(sizes)]
    return Stream(sources, weights or [1.0 + index for index in range(len(sizes))], seed)


def ids(examples: list[Example]) -> list[str]:
    return [example.id for example in examples]


@given(Sizes, st.integers(0, 2**63), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_resuming_anywhere_equals_not_stopping(sizes: list[int], seed: int, before: int, after: int) -> None:
    whole = ids(stream(sizes, seed).take(before + after))
    stopped = stream(sizes, seed)
    assert ids(stopped.take(before)) == whole[:before]
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = stream(sizes, seed)
    resumed.take(3)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert resumed.epoch == stopped.epoch
    assert ids(resumed.take(after)) == whole[before:]
    assert resumed.state_dict() == {**state, **resumed.state_dict()}


@given(Sizes, st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_each_epoch_of_each_source_has_every_example_once(sizes: list[int], seed: int) -> None:
    drawn = ids(stream(sizes, seed).take(40 * len(sizes)))
    for index, size in enumerate(sizes):
        mine = [name for name in drawn if name.startswith(f"{index}#")]
        epochs = [mine[start : start + size] for start in range(0, len(mine) - size + 1, size)]
        assert all(len(set(epoch)) == size for epoch in epochs)


def test_epochs_are_shuffled_and_counted() -> None:
    one = stream([50])
    first, second = ids(one.take(50)), ids(one.take(50))
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != ids(stream([50], seed=1).take(50))
    assert first != [f"0#{row}" for row in range(50)]
    assert one.epoch == 2.0
    one.take(25)
    assert one.epoch == 2.5
    assert one.epochs == [2.5]


def test_shares_follow_weights_and_sources_have_their_own_epochs() -> None:
    mixture = stream([10, 1000], weights=[1.0, 3.0])
    counts = Counter(example.id.split("#")[0] for example in mixture.take(8000))
    assert counts["0"] / 8000 == pytest.approx(0.25, abs=0.02)
    assert mixture.epochs == pytest.approx([counts["0"] / 10, counts["1"] / 1000])
    assert mixture.epoch == pytest.approx(8000 / 1010)


def test_state_is_small_and_checked() -> None:
    big = stream([100_000])
    big.take(10)
    assert len(json.dumps(big.state_dict())) < 200
    with pytest.raises(CheckpointError, match=r"the data changed since the checkpoint: sizes \[100000\], now \[9\]"):
        stream([9]).load_state_dict(big.state_dict())
    with pytest.raises(CheckpointError, match="seed 0, now 1"):
        stream([100_000], seed=1).load_state_dict(big.state_dict())


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ([], [], "0 sources"),
        ([1, 2], [1.0], "2 sources, 1 weights"),
        ([1, 0], [1.0, 1.0], "source 1 of the mixture is empty"),
        ([1], [0.0], "positive and finite"),
        ([1], [float("inf")], "positive and finite"),
    ],
)
def test_mixtures_that_cannot_be_drawn_from(sizes: list[int], weights: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Stream([source("s", size) for size in sizes], weights, 0)
