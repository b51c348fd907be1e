"""Drawing tokens: the processed distribution, its logprobs, and each request's own stream of uniform numbers.

A token is the inverse of the distribution's cumulative sum at one uniform number, so a request's draws depend on its
seed and its logits alone, not on what it is batched with. Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from posttrain.rollout.engine import Sampling

_MAX_ELEMENTS = 1 << 24  # logits processed at once; bounds the float32 and float64 copies of a large vocabulary


def uniforms(seeds: Sequence[int], num_tokens: int) -> Tensor:
    """Numbers in [0, 1), float64 [B, T]: position t of a request's stream depends on (seed, t) only.

    The stream is numpy's counter-based Philox keyed by the seed (modulo 2^128).
    """
    drawn = np.empty((len(seeds), num_tokens))
    for row, seed in enumerate(seeds):
        drawn[row] = np.random.Generator(np.random.Philox(key=seed % (1 << 128))).random(num_tokens)
    return torch.from_numpy(drawn)


def processed_logprobs(logits: Tensor, sampling: Sampling) -> Tensor:
    """Log of the distribution that is sampled from, float32 [B, V]: log_softmax(truncate(logits / temperature)).

    top_k keeps the k largest logits (and those equal to the k-th), then top_p the smallest set of the most likely
    tokens whose probability reaches top_p; what is left is renormalised. Temperature 0 is read as 1, untruncated.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        return torch.log_softmax(logits, -1)
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p < 1:
        ordered, index = torch.sort(logits, dim=-1, descending=True, stable=True)
        likely = ordered.softmax(-1)
        dropped = likely.cumsum(-1) - likely >= sampling.top_p
        dropped[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(-1, index, dropped), -torch.inf)
    return torch.log_softmax(logits, -1)


def sample(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Token ids [B] and their logprobs (nats, float32) [B] from logits [B, V] and uniform numbers [B].

    The token is the first whose cumulative probability exceeds u; with temperature 0 it is the most likely one.
    """
    size = max(1, _MAX_ELEMENTS // logits.shape[-1])
    parts = [slice(start, start + size) for start in range(0, len(logits), size)]
    tokens, logprobs = zip(*(_draw(logits[part], uniform[part], sampling) for part in parts), strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    logprobs = processed_logprobs(logits, sampling)
    if sampling.temperature == 0:
        token = logprobs.argmax(-1, keepdim=True)
    else:
        cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
        total = cumulative[:, -1:]
        target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
        token = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    return token[:, 0], logprobs.gather(-1, token)[:, 0]
