"""Tokens a second, and on a known GPU the share of its peak that the model's own arithmetic is (MFU)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.machine import peak_flops
from posttrain.batch import TokenSequence


class Taken(NamedTuple):
    """What one call took, in seconds: on the wall's clock, and of all processors."""

    wall: float
    cpu: float


def throughput(sequences: Sequence[TokenSequence], model: Any, ours: Sequence[Taken], peer: Sequence[Taken]) -> str:
    """Both sides' tokens a second, of sequences as they are, however little of them is computed; MFU by `flops`."""
    tokens = sum(sequence.num_tokens for sequence in sequences)
    peak = peak_flops()
    parts = []
    for name, taken in [("ours", ours), ("peer", peer)]:
        needed = statistics.median(one.wall for one in taken)
        mfu = "" if peak is None else f" (MFU {flops(model, tokens) / needed / peak:.1%})"
        parts.append(f"{name} {tokens / needed:,.0f} tokens/s{mfu}")
    return f"{tokens:,} tokens: " + ", ".join(parts)


def flops(model: Any, tokens: int) -> float:
    """6 N a token: 2 N forward, 2 N to the inputs, 2 N to the weights that are trained; N without embeddings.

    A tied output head counts, since it is a product too. Attention is left out.
    """
    embeddings = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embeddings
    all_weights = sum(p.numel() for p in model.parameters()) - (0 if tied else embeddings.numel())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) - (
        0 if tied or not embeddings.requires_grad else embeddings.numel()
    )
    return float(tokens * (4 * all_weights + 2 * trained))
