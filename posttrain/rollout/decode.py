"""The generation loop over one batch: prompts are prefilled once each, then every row draws a token a step.

Rows are padded on the left, so that the newest token of every row is in one column. Shapes: B rows, T tokens,
V vocabulary.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from posttrain.models.vision import inputs_of, see
from posttrain.picture import Context, Pictures, moved, shift
from posttrain.rollout.batching import chunks, distinct
from posttrain.rollout.choices import Choices, following
from posttrain.rollout.engine import Sampling
from posttrain.rollout.kv_cache import BufferCache
from posttrain.rollout.sampling import sample
from posttrain.rows import Rows, rotary_positions

_PREFILL_TOKENS = 16_384  # padded prompt tokens in one forward pass; bounds activations and masks
_DROP_SHARE = 0.25  # finished rows leave the batch when they are this share of it: a drop costs one copy of the cache


@dataclass(frozen=True)
class Drawn:
    """What each row of a batch drew: token ids and logprobs [B][tokens]."""

    token_ids: list[list[int]]
    logprobs: list[list[float]]


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Context],
    limits: Sequence[int],
    uniform: Tensor,
    sampling: Sampling,
    guide: Any = None,
    choices: Sequence[Choices] = (),
) -> Drawn:
    """Continue each prompt, with its pictures, until a stop token or its limit; sorted by length, and none empty.

    limits: tokens that each row may draw, at least 1. uniform [B, T]: each row's random numbers, T >= max(limits).
    guide: a second model, whose logits are added to the first's. choices: of each prompt, what it is continued with one
    of (as `Request.choices`); none of any: (). UserError for pictures where one reads none.
    """
    device, num_steps = model.device, max(limits)
    widths = torch.tensor([len(prompt.token_ids) for prompt in prompts], device=device)
    nexts = widths + torch.tensor([shift(prompt.pictures) for prompt in prompts], device=device)
    width = int(widths[-1])
    readers = [(one, BufferCache(len(prompts), width, num_steps)) for one in (model, guide) if one is not None]
    logits = _summed(_prefill(one, prompts, cache, device) for one, cache in readers)
    stops = torch.zeros(logits.shape[-1], dtype=torch.bool, device=device)
    stops[[token for token in sampling.stop_token_ids if token < len(stops)]] = True

    uniform = uniform.to(device)
    tokens = torch.zeros((len(prompts), num_steps), dtype=torch.long, device=device)
    logprobs = torch.zeros((len(prompts), num_steps), device=device)
    counts = torch.zeros(len(prompts), dtype=torch.long, device=device)
    # One entry per row still in the batch:
    rows = torch.arange(len(prompts), device=device)
    limit = torch.tensor(limits, device=device)
    running = torch.ones_like(rows, dtype=torch.bool)
    mask = torch.arange(width + num_steps, device=device) >= width - widths[:, None]
    padded = int(widths[0]) != width

    for step in range(num_steps):
        if any(choices):
            logits = _masked(logits, [choices[row] for row in rows.tolist()], tokens[rows, :step].tolist())
        token, logprob = sample(logits, uniform[rows, step], sampling)
        tokens[rows, step], logprobs[rows, step] = token, logprob
        counts[rows] += running
        running = running & ~stops[token] & (limit > step + 1)
        num_running = int(running.sum())
        if num_running == 0:
            break
        if num_running <= (1 - _DROP_SHARE) * len(rows):
            kept = running.nonzero()[:, 0]
            for _, cache in readers:
                cache.keep(kept)
            rows, limit, running, mask, token = (x[kept] for x in (rows, limit, running, mask, token))
        seen = mask[:, : width + step + 1] if padded else None
        positions = (nexts[rows] + step)[:, None]
        logits = _summed(_forward(one, token[:, None], seen, positions, cache) for one, cache in readers)
    lengths = counts.tolist()
    return Drawn(
        [row[:n] for row, n in zip(tokens.tolist(), lengths, strict=True)],
        [row[:n] for row, n in zip(logprobs.tolist(), lengths, strict=True)],
    )


def _masked(logits: Tensor, choices: Sequence[Choices], drawn: Sequence[Sequence[int]]) -> Tensor:
    """Logits [B, V] with -inf where no choice of a row goes on; a row without choices, or at their end, as it is."""
    logits = logits.clone()
    for row, (own, so_far) in enumerate(zip(choices, drawn, strict=True)):
        allowed = following(own, so_far)
        if allowed:
            kept = logits[row, allowed]
            logits[row] = -torch.inf
            logits[row, allowed] = kept
    return logits


def _summed(logits: Iterator[Tensor]) -> Tensor:
    """The sum; one alone as it is."""
    total = next(logits)
    for more in logits:
        total = total + more
    return total


def _prefill(model: Any, prompts: Sequence[Context], cache: BufferCache, device: torch.device) -> Tensor:
    """Fill the cache with the prompts, each distinct one computed once; the last position's logits [B, V]."""
    found, start = [], 0
    for chunk in chunks(distinct(prompts), _PREFILL_TOKENS):
        width = len(chunk[-1][0].token_ids)
        widths = torch.tensor([len(prompt.token_ids) for prompt, _ in chunk], device=device)
        columns = torch.arange(width, device=device) - (width - widths[:, None])
        mask = columns >= 0 if int(widths[0]) != width else None
        filled = DynamicCache()
        rows = _rows([prompt for prompt, _ in chunk], columns.clamp(min=0))
        if rows.pictures:
            logits = _forward_pictures(model, rows, mask, filled)
        else:
            logits = _forward(model, rows.input_ids, mask, rows.position_ids, filled)
        repeats = torch.tensor([count for _, count in chunk], device=device)
        copies = torch.repeat_interleave(torch.arange(len(chunk), device=device), repeats)
        cache.fill(start, filled, copies)
        found.append(logits[copies])
        start += copies.numel()
    return torch.cat(found)


def _rows(prompts: Sequence[Context], positions: Tensor) -> Rows:
    """Prompts padded on the left, with their pictures; nothing is predicted by them but what comes next."""
    width, device = positions.shape[1], positions.device
    ids = torch.tensor([(0,) * (width - len(one.token_ids)) + one.token_ids for one in prompts], device=device)
    pictures: Pictures = ()
    rotary = None
    if any(one.pictures for one in prompts):
        rotary = torch.zeros(3, *ids.shape, dtype=torch.long)
        for row, one in enumerate(prompts):
            first = width - len(one.token_ids)
            rotary[:, row, first:] = rotary_positions(len(one.token_ids), one.pictures)
            pictures += moved(one.pictures, row * width + first)
        rotary = rotary.to(device)
    nothing = torch.empty(0, dtype=torch.long, device=device)
    return Rows(ids, positions, nothing, nothing, nothing.float(), pictures=pictures, rotary_ids=rotary)


def _forward_pictures(model: Any, rows: Rows, mask: Tensor | None, cache: Any) -> Tensor:
    """Logits [B, V] of the last column of rows with pictures."""
    seen = see(model, rows)
    decoder = model.get_decoder()
    inputs = inputs_of(decoder, seen)
    hidden = decoder(attention_mask=mask, past_key_values=cache, use_cache=True, **inputs).last_hidden_state
    logits: Tensor = model.get_output_embeddings()(hidden[:, -1])
    return logits


def _forward(model: Any, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
    """Logits [B, V] of the last column."""
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **_last_logits_only(type(model).forward),
    )
    logits: Tensor = output.logits[:, -1]
    return logits


@functools.cache
def _last_logits_only(forward: Callable[..., Any]) -> dict[str, int]:
    """The argument that spares the other columns' logits, where the model has it."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(forward).parameters else {}
