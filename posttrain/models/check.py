"""A check at load time that `Policy` computes what the model itself computes: head, logit shape, padding, sharing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from posttrain.errors import UserError
from posttrain.models.policy import Policy
from posttrain.models.shared_rows import PlainRows, may_share

_LENGTHS = (9, 5)
_SPREAD = 30.0
_WINDOW = 3
_FAILURES = (RuntimeError, TypeError, AttributeError, ValueError, IndexError, KeyError)


@torch.no_grad()
def check_policy(model: Any) -> None:
    """Compare Policy's logprobs on two padded rows with softmax of the model's own logits on each row alone.

    Hidden states are scaled up on both sides until logits spread over about 30 nats, so that a cap or a factor shows
    even in a freshly initialised model. UserError naming the architecture where half of the digits do not agree.
    Sets `model.shares_prompts` to whether rows that several sequences share give what plain rows give.
    """
    training = model.training
    model.eval()
    model.shares_prompts = False
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (len(_LENGTHS), max(_LENGTHS)), generator=generator).to(model.device)
    try:
        with _spread_out(model, ids[:1]):
            difference, scale = _difference(model, ids)
            model.shares_prompts = _shares(model, scale)
    except _FAILURES as error:
        raise _refusal(model, f"a forward pass fails: {error}") from error
    finally:
        model.train(training)
    if not difference <= torch.finfo(model.dtype).eps ** 0.5 * scale:
        raise _refusal(model, f"its logprobs differ from the model's own by up to {difference:.3g} nats")


def _refusal(model: Any, cause: str) -> UserError:
    return UserError(
        f"model: {type(model).__name__} (model_type {model.config.model_type!r}) cannot be trained here: {cause}. "
        "Allowed: causal language models whose logits are a linear head, maybe scaled or soft-capped, of the decoder's "
        "last hidden state, and that ignore padding on the right"
    )


@contextmanager
def _spread_out(model: Any, ids: Tensor) -> Iterator[None]:
    spread = float(model(input_ids=ids, use_cache=False).logits.float().std())
    factor = max(1.0, _SPREAD / spread) if spread > 0 else 1.0

    def amplify(_module: Any, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = factor * output.last_hidden_state
        return output

    hook = model.get_decoder().register_forward_hook(amplify)
    try:
        yield
    finally:
        hook.remove()


def _difference(model: Any, ids: Tensor) -> tuple[float, float]:
    """Largest difference of logprobs, and the largest logit."""
    alone = [model(input_ids=ids[i : i + 1, :n], use_cache=False).logits[0, :-1] for i, n in enumerate(_LENGTHS)]
    predictors = [i * ids.shape[1] + torch.arange(n - 1, device=ids.device) for i, n in enumerate(_LENGTHS)]
    actions = torch.cat([ids[i, 1:n] for i, n in enumerate(_LENGTHS)])
    scored = Policy(model)(_rows(ids, torch.ones_like(ids), torch.cat(predictors), actions))
    logits = torch.cat(alone).to(scored.logprobs.dtype)
    expected = torch.log_softmax(logits, -1).gather(1, actions[:, None]).squeeze(1)
    return float((scored.logprobs - expected).abs().max()), float(logits.abs().max())


def _shares(model: Any, scale: float) -> bool:
    """Whether shared rows agree with plain rows, far better than without their mask, and positions are not ignored.

    A sliding window is made so short that it shows in rows this small.
    """
    config = model.get_decoder().config
    if not may_share(config):
        return False
    rows = _shared_rows(model)
    window = getattr(config, "sliding_window", None)
    policy = Policy(model)
    try:
        if window is not None:
            config.sliding_window = _WINDOW
        expected = policy(rows).logprobs
        wrong = policy(rows._replace(seen_until=None)).logprobs
        policy.shares_prompts = True
        shared = policy(rows).logprobs
        moved = policy(rows._replace(position_ids=2 * rows.position_ids)).logprobs
    except _FAILURES:  # whatever the architecture makes of a mask: it cannot take one
        return False
    finally:
        if window is not None:
            config.sliding_window = window
    difference, unmasked = (float((found - expected).abs().mean()) for found in (shared, wrong))
    tolerance: float = torch.finfo(model.dtype).eps ** 0.5 * scale
    return difference <= tolerance and difference < unmasked / 10 and not torch.equal(shared, moved)


def _shared_rows(model: Any) -> PlainRows:
    """Two trees: 5 tokens and then 6, 4 and 5; 5 tokens and then 7 and 2, and padding."""
    prompt, width = 5, 20
    position_ids = torch.zeros(2, width, dtype=torch.long)
    seen_until = torch.arange(1, width + 1).repeat(2, 1)
    mask = torch.zeros_like(position_ids)
    for tree, lengths in enumerate([(6, 4, 5), (7, 2)]):
        start = prompt
        position_ids[tree, :prompt] = torch.arange(prompt)
        seen_until[tree, :prompt] = prompt + sum(lengths)
        mask[tree, : prompt + sum(lengths)] = 1
        for length in lengths:
            position_ids[tree, start : start + length] = torch.arange(prompt, prompt + length)
            seen_until[tree, start : start + length] = start + length
            start += length
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(vocabulary, (2, width), generator=generator)
    predictors = mask.flatten().nonzero().squeeze(1)
    actions = torch.randint(vocabulary, (len(predictors),), generator=generator)
    fields = ids, mask, position_ids, predictors, actions, torch.ones(len(actions)), seen_until
    return PlainRows(*(value.to(model.device) for value in fields))


def _rows(ids: Tensor, mask: Tensor, predictors: Tensor, actions: Tensor) -> PlainRows:
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return PlainRows(ids, mask, positions, predictors, actions, torch.ones(len(actions), device=ids.device))
