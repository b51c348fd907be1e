"""Reading an optional tensor of a batch, with an error that says what is missing."""

from __future__ import annotations

from torch import Tensor

from posttrain.batch import TokenBatch


def field(batch: TokenBatch, name: str) -> Tensor:
    """`batch.name`; ValueError where the batch was built without it."""
    value = getattr(batch, name)
    if value is None:
        raise ValueError(f"this term reads TokenBatch.{name}, which is None: set it when building the batch")
    assert isinstance(value, Tensor)
    return value
