from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.batch import Source, TokenBatch, TokenSequence
from posttrain.data.collate import collate
from posttrain.rows import Branch, Rows


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
    rows = collate(sequences, layout="padded")
    assert rows.input_ids.tolist() == [[5, 6, 7, 0], [1, 2, 3, 4]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3]] * 2
    assert rows.predictor_index.tolist() == [0, 1, 5]
    assert rows.action_ids.tolist() == [6, 7, 3]
    assert rows.temperatures.tolist() == [0.5, 0.5, 1.0]
    assert rows.to("cpu").input_ids.equal(rows.input_ids)
    assert rows.branches is None


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 8)), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_order_of_actions_is_the_batchs(shapes: list[tuple[int, int]]) -> None:
    sequences = [sequence(length, actions=min(actions, length - 1)) for length, actions in shapes]
    rows = collate(sequences)
    assert len(rows.action_ids) == len(TokenBatch.from_sequences(sequences).sequence_index)
    expected = [token for s in sequences for token, action in zip(s.token_ids, s.action_mask, strict=True) if action]
    assert rows.action_ids.tolist() == expected
    assert rows.predictor_index.max() < rows.input_ids.numel() if expected else True


def test_what_cannot_be_collated() -> None:
    with pytest.raises(ValueError, match="at least one sequence"):
        collate([])
    with pytest.raises(ValueError, match="position 0"):
        collate([sequence(2, actions=2)])


def seen(rows: Rows, column: int) -> list[int]:
    """The tokens that a column of a packed row sees."""
    assert rows.branches is not None
    branch = next(branch for branch in rows.branches if branch.start <= column < branch.stop)
    columns = [k for span in (*branch.context, (branch.start, column + 1)) for k in range(*span)]
    return rows.input_ids[0, columns].tolist()


def test_a_shared_row_is_a_prefix_tree() -> None:
    sequences = [branch(1, 2), branch(1, 3, first=4), branch(1, 0), branch(1, 3, first=4)]
    rows = collate(sequences)
    prompt = list(range(20, 32))
    assert rows.input_ids.tolist() == [[*prompt, 3, 7, 4, 7, 8]]
    assert rows.position_ids.tolist() == [[*range(12), 12, 13, 12, 13, 14]]
    assert rows.branches == (Branch(0, 14), Branch(14, 17, ((0, 12),)))
    assert rows.predictor_index.tolist() == [11, 12, 13, 11, 14, 15, 16, 11, 11, 14, 15, 16]
    assert seen(rows, 16) == [*prompt, 4, 7, 8]


def test_a_packed_row_is_one_sequence_after_the_other() -> None:
    rows = collate([branch(1, 2), branch(1, 1, first=4)], layout="packed")
    prompt = list(range(20, 32))
    assert rows.input_ids.tolist() == [[*prompt, 3, 7, *prompt, 4]]
    assert rows.position_ids.tolist() == [[*range(14), *range(13)]]
    assert rows.branches == (Branch(0, 14), Branch(14, 27))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=9),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_a_predictor_sees_its_own_sequence(shapes: list[tuple[int, int, int]], share: bool, whole: bool) -> None:
    sequences = [branch(prompt, own, first=first) for prompt, own, first in shapes]
    rows = collate(sequences, layout="shared" if share else "packed", whole=whole)
    expected = [list(s.token_ids[:t]) for s in sequences for t in range(s.num_tokens) if s.action_mask[t]]
    assert [seen(rows, column) for column in rows.predictor_index.tolist()] == expected
    padded = rows.unpacked()
    width = padded.input_ids.shape[1]
    assert [padded.input_ids[p // width, : p % width + 1].tolist() for p in padded.predictor_index] == expected
    if whole:
        assert rows.action_index is not None
        assert rows.input_ids[0, rows.action_index].equal(rows.action_ids)


def test_beginnings_are_shared_where_it_pays() -> None:
    def num_tokens(prompt: int, completion: int) -> int:
        """Of a group of 8 that has nothing in common but its prompt."""
        ids = [(*range(prompt), *range(place, place + completion)) for place in range(10_000, 18_000, 1000)]
        mask = (False,) * prompt + (True,) * completion
        sequences = [TokenSequence(one, mask, Source.ROLLOUTS, 0) for one in ids]
        return collate(sequences).input_ids.numel()

    assert num_tokens(prompt=500, completion=51) == 500 + 8 * 50
    assert num_tokens(prompt=50, completion=11) == 50 + 8 * 10
    assert num_tokens(prompt=50, completion=301) == 50 + 8 * 300
    assert num_tokens(prompt=50, completion=401) == 8 * (50 + 400)
    assert num_tokens(prompt=2, completion=11) == 8 * (2 + 10)


def test_different_prompts_share_what_they_have_in_common() -> None:
    system = tuple(range(30))
    sequences = [
        TokenSequence((*system, question, question, answer, 9), (False,) * 32 + (True,) * 2, Source.DEMONSTRATIONS, 0)
        for question in (40, 50)
        for answer in (6, 7)
    ]
    assert collate(sequences).input_ids.numel() == 30 + 2 * (2 + 2)
