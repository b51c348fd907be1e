"""Batches written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from posttrain.estimator import Source, TokenBatch, TokenSequence


def make_batch(
    lengths: list[int],
    *,
    rewards: list[float | None] | None = None,
    groups: list[int] | None = None,
    sources: list[Source] | None = None,
    solved: list[bool] | None = None,
    weights: list[float] | None = None,
    **per_token: list[float],
) -> TokenBatch:
    """Sequences of `lengths` actions; rollouts of one group unless said otherwise; per-token values as float64."""
    count = len(lengths)
    sequences = [
        TokenSequence(
            token_ids=(0,) * (length + 1),
            action_mask=(False, *(True,) * length),
            source=(sources or [Source.ROLLOUTS] * count)[i],
            group=(groups or [0] * count)[i],
            reward=(rewards or [None] * count)[i],
            solved=(solved or [False] * count)[i],
            weight=(weights or [1.0] * count)[i],
        )
        for i, length in enumerate(lengths)
    ]
    values: dict[str, Any] = {name: torch.tensor(x, dtype=torch.float64) for name, x in per_token.items()}
    return TokenBatch.from_sequences(sequences, dtype=torch.float64).replace(**values)


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., TokenBatch]:
    """`make_batch`."""
    return make_batch
