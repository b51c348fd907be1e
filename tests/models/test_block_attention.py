"""The block mask of packed rows: the pairs that see each other, in the blocks that have some, by enumeration."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from posttrain.data.prefixes import pack
from posttrain.models.block_attention import BLOCK, Blocks, fits
from posttrain.models.call_attention import Calls
from posttrain.models.call_attention import attend as attend_in_calls
from posttrain.models.shared_rows import filled
from posttrain.rows import Branch, Rows


def tree(seed: int) -> tuple[Branch, ...]:
    """Random branches: prompts with completions, some of which part again, and plain sequences."""
    generator = random.Random(seed)

    def tokens(number: int) -> tuple[int, ...]:
        return tuple(generator.randrange(1000) for _ in range(number))

    sequences = [tokens(generator.randrange(1, 300)) for _ in range(2)]
    for _ in range(3):
        prompt = tokens(generator.randrange(4, 300))
        for _ in range(3):
            begun = prompt + tokens(generator.randrange(1, 60))
            sequences += [begun + tokens(generator.randrange(60)) for _ in range(generator.randrange(1, 3))]
    return pack(sequences, share=seed > 0).branches


def seen(branches: tuple[Branch, ...], window: int | None) -> Tensor:
    """[T, T], query by key, branch by branch."""
    total = branches[-1].stop
    found = torch.zeros(total, total, dtype=torch.bool)
    for start, stop, context in branches:
        keys = torch.cat([torch.arange(*span) for span in (*context, (start, stop))])
        for query in range(start, stop):
            last = len(keys) - (stop - query)
            first = 0 if window is None else max(0, last + 1 - window)
            found[query, keys[first : last + 1]] = True
    return found


@pytest.mark.parametrize("window", [None, 3, 150])
@pytest.mark.parametrize("seed", range(3))
def test_mask_and_blocks(seed: int, window: int | None) -> None:
    branches = tree(seed)
    mask = Blocks.of(branches, torch.device("cpu")).mask(window)
    total = branches[-1].stop
    expected = seen(branches, window)
    assert torch.equal(create_mask(mask.mask_mod, 1, 1, total, total, "cpu")[0, 0], expected)
    exact = create_block_mask(mask.mask_mod, 1, 1, total, total, "cpu", BLOCK)
    touched, needed = mask.to_dense()[0, 0].bool(), exact.to_dense()[0, 0].bool()
    assert bool((touched >= needed).all())
    if window is None:
        assert torch.equal(touched, needed)
        assert torch.equal(mask.full_kv_num_blocks, exact.full_kv_num_blocks)
    for block_row, number in enumerate(mask.full_kv_num_blocks[0, 0].tolist()):
        for block in mask.full_kv_indices[0, 0, block_row, :number].tolist():
            own = slice(block_row * BLOCK, block_row * BLOCK + BLOCK), slice(block * BLOCK, block * BLOCK + BLOCK)
            assert bool(expected[own].all())


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 50])
def test_attention_equals_that_of_the_calls(window: int | None) -> None:
    branches = tree(1)
    generator = torch.Generator().manual_seed(0)
    heads = {"query": 4, "key": 2, "value": 2}
    shapes = {name: (1, number, branches[-1].stop, 16) for name, number in heads.items()}
    given = {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True  # type: ignore[assignment]
    calls = Calls.of(branches, torch.device("cpu"))
    expected = attend_in_calls(module, *given.values(), calls, sliding_window=window)
    mask = Blocks.of(branches, torch.device("cpu")).mask(window)
    found = flex_attention(*given.values(), block_mask=mask, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_filled_row_has_one_sequence_more() -> None:
    ids = torch.arange(150)[None]
    rows = Rows(ids, ids, ids[0, :5], ids[0, :5], torch.ones(5), (Branch(0, 100), Branch(100, 150)))
    more = filled(rows)
    assert more.input_ids.shape == more.position_ids.shape == (1, 2 * BLOCK)
    assert more.branches == (*rows.branches, Branch(150, 2 * BLOCK))  # type: ignore[misc]
    assert more.position_ids[0, 150:].tolist() == list(range(2 * BLOCK - 150))
    assert filled(more) is more


def test_a_processor_computes_in_calls() -> None:
    assert not fits(torch.zeros(1, 2, 8, 64))
