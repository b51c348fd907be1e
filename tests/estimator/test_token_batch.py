"""TokenBatch: what it takes from sequences, its sums, and its splits."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.batch import Source, TokenBatch, TokenSequence


def test_from_sequences() -> None:
    sequences = [
        TokenSequence((5, 6, 7), (False, True, True), Source.ROLLOUTS, 7, reward=1.0, behavior_logprobs=(-1.0, -2.0)),
        TokenSequence((5, 6), (False, False), Source.DEMONSTRATIONS, 7),
        TokenSequence((5, 6), (False, True), Source.PREFERENCES, 3, pair=4, weight=2.0),
    ]
    batch = TokenBatch.from_sequences(sequences)
    assert batch.sequence_index.tolist() == [0, 0, 2]
    assert batch.group_index.tolist() == [1, 1, 0]
    assert batch.pair_index.tolist() == [-1, -1, 4]
    assert batch.graded.tolist() == [True, False, False]
    assert batch.weight.tolist() == [1.0, 1.0, 2.0]
    assert batch.lengths.tolist() == [2, 0, 1]
    assert (batch.num_sequences, batch.num_groups) == (3, 2)
    assert batch.behavior_logprobs is not None
    assert batch.behavior_logprobs.tolist() == [-1.0, -2.0, 0.0]
    assert batch.old_logprobs is None
    assert batch.is_from(Source.PREFERENCES).tolist() == [False, False, True]


def test_sums(batch_of: Any) -> None:
    batch = batch_of([2, 0, 1], groups=[1, 0, 1])
    values = torch.tensor([1.0, 2.0, 4.0])
    assert batch.sequence_sum(values).tolist() == [3.0, 0.0, 4.0]
    assert batch.sequence_mean(values).tolist() == [1.5, 0.0, 4.0]
    assert batch.group_sum(torch.tensor([1.0, 2.0, 4.0])).tolist() == [2.0, 5.0]
    assert batch.broadcast(torch.tensor([1.0, 2.0, 4.0])).tolist() == [1.0, 1.0, 4.0]


def test_empty() -> None:
    batch = TokenBatch.from_sequences([])
    assert (batch.num_sequences, batch.num_groups) == (0, 0)
    assert batch.lengths.tolist() == []


@settings(max_examples=50, deadline=None)
@given(data=st.data(), lengths=st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_take(data: st.DataObject, lengths: list[int], batch_of: Any) -> None:
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), unique=True))
    groups = data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths)))
    marks = [float(100 * i + t) for i, length in enumerate(lengths) for t in range(length)]
    batch = batch_of(lengths, groups=groups, rewards=[float(i) for i in range(len(lengths))], logprobs=marks)
    batch = batch.replace(advantages=torch.tensor([marks, marks]), coefficients=torch.ones(2, len(lengths)))
    taken = batch.take(torch.tensor(rows, dtype=torch.long))
    expected = [float(100 * i + t) for i in rows for t in range(lengths[i])]
    assert taken.logprobs is not None
    assert taken.advantages is not None
    assert taken.coefficients is not None
    assert taken.logprobs.tolist() == expected
    assert taken.advantages.tolist() == [expected, expected]
    assert taken.coefficients.shape == (2, len(rows))
    assert taken.reward.tolist() == [float(i) for i in rows]
    assert taken.lengths.tolist() == [lengths[i] for i in rows]
    for a, first in enumerate(rows):
        for b, second in enumerate(rows):
            same = bool(taken.group_index[a] == taken.group_index[b])
            assert same == (groups[first] == groups[second])
