from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.batch import Source, TokenBatch, TokenSequence, Unit
from posttrain.data.collate import Rows, collate, microbatches


def sequence(
    length: int, *, actions: int = 1, group: int = 0, pair: int = -1, temperature: float = 1.0
) -> TokenSequence:
    return TokenSequence(
        token_ids=tuple(range(100 * length, 101 * length)),
        action_mask=(False,) * (length - actions) + (True,) * actions,
        source=Source.ROLLOUTS,
        group=group,
        pair=pair,
        temperature=temperature,
    )


def branch(prompt: int, own: int, *, first: int = 3, **fields: Any) -> TokenSequence:
    """12 prompt tokens that `prompt` decides, and 1 + `own` actions, of which the first is `first`."""
    ids = (*range(20 * prompt, 20 * prompt + 12), first, *range(7, 7 + own))
    mask = (False,) * 12 + (True,) * (1 + own)
    return TokenSequence(ids, mask, Source.ROLLOUTS, **({"group": prompt} | fields))


def test_rows() -> None:
    sequences = [
        TokenSequence((5, 6, 7), (False, True, True), Source.ROLLOUTS, 0, temperature=0.5),
        TokenSequence((1, 2, 3, 4), (False, False, True, False), Source.DEMONSTRATIONS, 1),
    ]
    rows = collate(sequences)
    assert rows.input_ids.tolist() == [[5, 6, 7, 0], [1, 2, 3, 4]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3]] * 2
    assert rows.predictor_index.tolist() == [0, 1, 5]
    assert rows.action_ids.tolist() == [6, 7, 3]
    assert rows.temperatures.tolist() == [0.5, 0.5, 1.0]
    assert rows.to("cpu").input_ids.equal(rows.input_ids)
    assert rows.seen_until is None


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 8)), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_order_of_actions_is_the_batchs(shapes: list[tuple[int, int]]) -> None:
    sequences = [sequence(length, actions=min(actions, length - 1)) for length, actions in shapes]
    rows = collate(sequences)
    assert len(rows.action_ids) == len(TokenBatch.from_sequences(sequences).sequence_index)
    expected = [token for s in sequences for token, action in zip(s.token_ids, s.action_mask, strict=True) if action]
    assert rows.action_ids.tolist() == expected
    assert torch.all(rows.attention_mask.flatten()[rows.predictor_index] == 1)


def test_what_cannot_be_collated() -> None:
    with pytest.raises(ValueError, match="at least one sequence"):
        collate([])
    with pytest.raises(ValueError, match="position 0"):
        collate([sequence(2, actions=2)])


@given(
    st.lists(st.tuples(st.integers(2, 30), st.integers(0, 4), st.integers(-1, 3)), max_size=25),
    st.integers(1, 120),
    st.sampled_from(["", "pair", "group"]),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_microbatches(shapes: list[tuple[int, int, int]], budget: int, couples: Unit, share: bool) -> None:
    sequences = [
        branch(prompt, length % 5, group=prompt % 3, pair=pair)
        if prompt
        else sequence(length, group=prompt % 3, pair=pair)
        for length, prompt, pair in shapes
    ]
    batches = microbatches(sequences, budget, couples, share=share)
    assert sorted(index for batch in batches for index in batch) == list(range(len(sequences)))
    assert batches == microbatches(sequences, budget, couples, share=share)
    for batch in batches:
        size = collate([sequences[index] for index in batch], share=share).input_ids.numel()
        units = {unit(sequences[index], index, couples) for index in batch}
        assert size <= budget or len(units) == 1
        others = set(range(len(sequences))) - set(batch)
        assert not units & {unit(sequences[index], index, couples) for index in others}


def unit(sequence: TokenSequence, index: int, couples: str) -> tuple[str, int]:
    if couples == "group":
        return ("group", sequence.group)
    return ("pair", sequence.pair) if couples == "pair" and sequence.pair >= 0 else ("single", index)


def test_microbatches_put_similar_lengths_together_longest_first() -> None:
    lengths = [2, 10, 3, 9, 2, 10]
    batches = microbatches([sequence(length) for length in lengths], 30, share=False)
    assert batches == [[1, 3, 5], [0, 2, 4]]


def ancestors(rows: Rows, row: int, column: int) -> list[int]:
    """The tokens that a column sees."""
    assert rows.seen_until is not None
    return [int(rows.input_ids[row, k]) for k in range(column + 1) if column < rows.seen_until[row, k]]


def test_a_shared_row_is_a_prefix_tree() -> None:
    sequences = [branch(1, 2), branch(1, 3, first=4), branch(1, 0), branch(1, 3, first=4)]
    rows = collate(sequences)
    prompt = list(range(20, 32))
    assert rows.input_ids.tolist() == [[*prompt, 3, 7, 4, 7, 8]]
    assert rows.position_ids.tolist() == [[*range(12), 12, 13, 12, 13, 14]]
    assert rows.seen_until is not None
    assert rows.seen_until.tolist() == [[17] * 12 + [14, 14, 17, 17, 17]]
    assert rows.attention_mask.all()
    assert rows.predictor_index.tolist() == [11, 12, 13, 11, 14, 15, 16, 11, 11, 14, 15, 16]
    assert ancestors(rows, 0, 16) == [*prompt, 4, 7, 8]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=9))
@settings(max_examples=100, deadline=None)
def test_a_predictor_sees_its_own_sequence(shapes: list[tuple[int, int, int]]) -> None:
    sequences = [branch(prompt, own, first=first) for prompt, own, first in shapes]
    rows = collate(sequences)
    if rows.seen_until is None:
        assert max(Counter(prompt for prompt, _, _ in shapes).values()) == 1
        return
    expected = [list(s.token_ids[:t]) for s in sequences for t in range(s.num_tokens) if s.action_mask[t]]
    width = rows.input_ids.shape[1]
    assert [ancestors(rows, p // width, p % width) for p in rows.predictor_index.tolist()] == expected


def test_sharing_is_chosen_where_it_pays() -> None:
    def group(prompt: int, completion: int) -> list[TokenSequence]:
        ids = [(*range(prompt), *range(place, place + completion)) for place in range(0, 8000, 1000)]
        mask = (False,) * prompt + (True,) * completion
        return [TokenSequence(one, mask, Source.ROLLOUTS, 0) for one in ids]

    def num_rows(sequences: list[TokenSequence]) -> int:
        return collate(sequences).input_ids.shape[0]

    assert num_rows(group(prompt=500, completion=50)) == 1
    assert num_rows(group(prompt=50, completion=10)) == 1
    assert 1 < num_rows(group(prompt=1000, completion=300)) < 8
    assert num_rows(group(prompt=50, completion=300)) == 8
    assert num_rows(group(prompt=1, completion=300)) == 8
    assert collate(group(prompt=50, completion=300)).seen_until is None


def test_a_group_stays_together_as_far_as_the_budget_allows() -> None:
    sequences = [branch(prompt, 3, first=first) for first in range(8) for prompt in (1, 2)]
    assert microbatches(sequences, 48) == [list(range(0, 16, 2)), list(range(1, 16, 2))]
    assert len(microbatches(sequences, 96)) == 1
    divided = microbatches(sequences, 30)
    assert len(divided) == 4
    assert all(len({sequences[index].group for index in batch}) == 1 for batch in divided)
