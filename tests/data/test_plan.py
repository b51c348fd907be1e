"""What a micro-batch holds and which rank runs it: everything once, within the budget, about equal costs."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.batch import Source, TokenSequence, Unit
from posttrain.data.collate import collate
from posttrain.data.plan import assign, measure, microbatches
from posttrain.rows import Layout


def sequence(length: int, *, first: int = 0, **fields: Any) -> TokenSequence:
    """One action at the end of a beginning that `length` and `first` decide."""
    ids = tuple(range(100 * length + 1000 * first, 100 * length + 1000 * first + length))
    return TokenSequence(ids, (False,) * (length - 1) + (True,), Source.ROLLOUTS, **({"group": 0} | fields))


def completions(prompt: int, tokens: int, lengths: list[int], **fields: Any) -> list[TokenSequence]:
    """Completions that differ from their first token on, after `tokens` tokens that `prompt` decides."""
    start = tuple(range(1000 * prompt, 1000 * prompt + tokens))
    mask = (False,) * tokens
    return [
        TokenSequence(
            (*start, *range(50_000 + 500 * number, 50_000 + 500 * number + length)),
            mask + (True,) * length,
            Source.ROLLOUTS,
            **({"group": prompt} | fields),
        )
        for number, length in enumerate(lengths)
    ]


def unit(sequence: TokenSequence, index: int, couples: Unit) -> tuple[Any, ...]:
    if couples == "group":
        return ("group", sequence.group)
    if couples == "pair" and sequence.pair >= 0:
        return ("pair", sequence.pair)
    return (couples and sequence.trajectory_key) or ("single", index)


@given(
    st.lists(st.tuples(st.integers(2, 30), st.integers(0, 4), st.integers(-1, 3)), max_size=25),
    st.integers(1, 120),
    st.sampled_from(["", "trajectory", "pair", "group"]),
    st.sampled_from(["padded", "packed", "shared"]),
)
@settings(max_examples=300, deadline=None)
def test_every_sequence_once_within_the_budget(
    shapes: list[tuple[int, int, int]], budget: int, couples: Unit, layout: Layout
) -> None:
    sequences = [
        completions(prompt, 12, [1 + length % 5], pair=pair, trajectory=pair)[0]
        if prompt
        else sequence(length, pair=pair)
        for length, prompt, pair in shapes
    ]
    batches = microbatches(sequences, budget, couples, layout=layout)
    assert sorted(index for batch in batches for index in batch) == list(range(len(sequences)))
    assert batches == microbatches(sequences, budget, couples, layout=layout)
    for batch in batches:
        size = collate([sequences[index] for index in batch], layout=layout).input_ids.numel()
        units = {unit(sequences[index], index, couples) for index in batch}
        assert size <= budget or len(units) == 1
        others = set(range(len(sequences))) - set(batch)
        assert not units & {unit(sequences[index], index, couples) for index in others}


def test_padded_rows_of_similar_length_come_together_longest_first() -> None:
    lengths = [2, 10, 3, 9, 2, 10]
    batches = microbatches([sequence(length) for length in lengths], 30, layout="padded")
    assert batches == [[1, 3, 5], [0, 2, 4]]


def test_packed_rows_fill_the_budget() -> None:
    generator = random.Random(0)
    sequences = [sequence(generator.randint(16, 512), first=index) for index in range(200)]
    total = sum(one.num_tokens - 1 for one in sequences)  # the last token of each is no input
    for budget in (1024, 4096, 16_384):
        assert len(microbatches(sequences, budget)) <= -(-total // budget) + 1


def test_what_begins_alike_stays_together_as_far_as_the_budget_allows() -> None:
    sequences = [one for pair in zip(*(completions(n, 12, [4] * 8) for n in (1, 2)), strict=True) for one in pair]
    assert sorted(microbatches(sequences, 40)) == [list(range(0, 16, 2)), list(range(1, 16, 2))]
    assert len(microbatches(sequences, 80)) == 1
    assert len(microbatches(sequences, 28)) == 4


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 200)), max_size=12), min_size=2, max_size=4),
    st.integers(50, 600),
    st.sampled_from(["padded", "packed", "shared"]),
)
@settings(max_examples=150, deadline=None)
def test_ranks_run_every_unit_once_and_no_longer_than_alone(
    held: list[list[tuple[int, int]]], budget: int, layout: Layout
) -> None:
    units = []
    for rank, shapes in enumerate(held):
        sequences = [completions(prompt, 20, [length])[0] for prompt, length in shapes]
        units += measure(sequences, "", layout=layout, whole=False, rank=rank)[1]
    plan = assign(units, budget, len(held), layout)
    assert len({len(batches) for batches in plan}) == 1
    assert Counter(n for batches in plan for batch in batches for n in batch) == Counter(range(len(units)))
    for batch in (batch for batches in plan for batch in batches if len(batch) > 1):
        assert sum(units[n].added_tokens for n in batch) <= budget
    costs = [[sum(units[n].cost for n in batch) for batch in batches] for batches in plan]
    assert sum(map(max, zip(*costs, strict=True))) <= sum(unit.cost for unit in units) + 1e-9


def test_work_goes_from_a_rank_with_much_to_one_with_little() -> None:
    much = completions(1, 20, [100] * 16)
    little = completions(2, 20, [30, 40])
    units = [
        one
        for rank, own in enumerate((much, little))
        for one in measure(own, "", layout="packed", whole=False, rank=rank)[1]
    ]
    plan = assign(units, 4096, 2, "packed")
    costs = [sum(units[n].cost for batch in batches for n in batch) for batches in plan]
    assert max(costs) < 1.05 * min(costs)
    assert any(units[n].rank == 0 for batch in plan[1] for n in batch)


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
def test_equal_work_stays_where_it_is(layout: Layout) -> None:
    units = [
        one
        for rank in (0, 1)
        for one in measure(completions(rank, 20, [100, 50, 70]), "", layout=layout, whole=False, rank=rank)[1]
    ]
    plan = assign(units, 4096, 2, layout)
    assert all(units[n].rank == rank for rank, batches in enumerate(plan) for batch in batches for n in batch)
