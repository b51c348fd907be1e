import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.batch import Source, TokenBatch, TokenSequence
from posttrain.data.collate import collate, microbatches


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


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 8)), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_order_of_actions_is_the_batchs(shapes: list[tuple[int, int]]) -> None:
    sequences = [sequence(length, actions=min(actions, length - 1)) for length, actions in shapes]
    rows = collate(sequences)
    batch = TokenBatch.from_sequences(sequences)
    width = rows.input_ids.shape[1]
    assert (rows.predictor_index // width).equal(batch.sequence_index)
    assert rows.input_ids.flatten()[rows.predictor_index + 1].equal(rows.action_ids)
    expected = [token for s in sequences for token, action in zip(s.token_ids, s.action_mask, strict=True) if action]
    assert rows.action_ids.tolist() == expected
    assert torch.all(rows.attention_mask.flatten()[rows.predictor_index] == 1)


def test_what_cannot_be_collated() -> None:
    with pytest.raises(ValueError, match="at least one sequence"):
        collate([])
    with pytest.raises(ValueError, match="position 0"):
        collate([sequence(2, actions=2)])


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3), st.integers(-1, 3)), max_size=25),
    st.integers(1, 90),
    st.sampled_from(["", "pair", "group"]),
)
@settings(max_examples=200, deadline=None)
def test_microbatches(shapes: list[tuple[int, int, int]], budget: int, couples: str) -> None:
    sequences = [sequence(length, group=group, pair=pair) for length, group, pair in shapes]
    batches = microbatches(sequences, budget, couples)
    assert sorted(index for batch in batches for index in batch) == list(range(len(sequences)))
    assert batches == microbatches(sequences, budget, couples)
    for batch in batches:
        size = len(batch) * max(sequences[index].num_tokens for index in batch)
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
    batches = microbatches([sequence(length) for length in lengths], 30)
    assert batches == [[1, 3, 5], [0, 2, 4]]
