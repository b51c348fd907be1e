"""Log-probabilities and entropies where some tokens were chosen among a few, not among the whole vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.models.divergence import Scores
from posttrain.models.head import DEFAULT_CHUNK_BYTES, TokenLogprobs, token_logprobs


def restricted_logprobs(
    scores: Scores, ids: Tensor, temperatures: Tensor, allowed: Tensor, *, chunk_bytes: int = DEFAULT_CHUNK_BYTES
) -> TokenLogprobs:
    """As `token_logprobs`, with p[a] over allowed[a] alone; allowed [A, K]: ids, -1 beyond their number.

    A row of -1 alone is not restricted. log p[a, ids[a]] = x[ids[a]] - log sum_{v in allowed[a]} exp x[v], with
    x = shape(weight hidden[a] + bias) / temperature[a]; only logits of tokens that some row allows are computed.
    """
    bound = (allowed >= 0).any(1)
    free, few = (~bound).nonzero()[:, 0], bound.nonzero()[:, 0]
    hidden, weight, bias, shape = scores
    whole = token_logprobs(
        hidden[free], weight, bias, ids[free], temperatures[free], chunk_bytes=chunk_bytes, shape=shape
    )
    part = _among(scores._replace(hidden=hidden[few]), ids[few], temperatures[few], allowed[few])
    order = torch.cat([free, few]).argsort()
    return TokenLogprobs(*(torch.cat(both)[order] for both in zip(whole, part, strict=True)))


def _among(scores: Scores, ids: Tensor, temperatures: Tensor, allowed: Tensor) -> TokenLogprobs:
    """Of tokens that are all restricted."""
    hidden, weight, bias, shape = scores
    kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    rows, places = (allowed >= 0).nonzero(as_tuple=True)
    columns = torch.unique(allowed[rows, places])
    member = torch.zeros(len(ids), len(columns), dtype=torch.bool, device=ids.device)
    member[rows, torch.searchsorted(columns, allowed[rows, places])] = True
    logits = (hidden @ weight[columns].to(hidden.dtype).T).to(kind)
    if bias is not None:
        logits = logits + bias[columns].to(kind)
    scaled = shape.of(logits) / temperatures[:, None].to(kind)
    logs = scaled.masked_fill(~member, -torch.inf).log_softmax(-1)
    logprobs = logs.gather(1, torch.searchsorted(columns, ids)[:, None])[:, 0]
    return TokenLogprobs(logprobs, -(logs.exp() * logs.masked_fill(~member, 0.0)).sum(-1))
