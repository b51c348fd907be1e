"""A check at load time that `Policy` computes what the model itself computes: head, logit shape, padding, packing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from posttrain.errors import UserError
from posttrain.images import png
from posttrain.models.policy import Policy
from posttrain.models.shared_rows import takes
from posttrain.models.vision import TOKENS, is_vision
from posttrain.picture import Context, moved
from posttrain.rows import Branch, Rows, rotary_positions

_LENGTHS = (9, 5)
_SPREAD = 30.0
_WINDOW = 3
_FAILURES = (RuntimeError, TypeError, AttributeError, ValueError, IndexError, KeyError)


@torch.no_grad()
def check_policy(model: Any) -> None:
    """Compare Policy's logprobs on two padded rows with softmax of the model's own logits on each row alone.

    Hidden states are scaled up on both sides until logits spread over about 30 nats, so that a cap or a factor shows
    even in a freshly initialised model. Where it reads images, so around one. UserError naming the architecture where
    half of the digits do not agree. Sets `model.row_layout` to the rows that the model computes as they are (see
    `posttrain.rows`).
    """
    training = model.training
    model.eval()
    model.row_layout = "padded"
    most = takes(model.get_decoder().config)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (len(_LENGTHS), max(_LENGTHS)), generator=generator).to(model.device)
    try:
        with _as_sdpa(model), _spread_out(model, ids[:1]):
            difference, scale = _difference(model, ids)
            if most != "padded" and _packs(model, scale):
                model.row_layout = most
            if is_vision(model.config):
                difference = max(difference, _picture_difference(model))
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
        "last hidden state, that ignore padding on the right, and whose images are grids of patches"
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
    scored = Policy(model)(_rows(ids, torch.cat(predictors), actions))
    logits = torch.cat(alone).to(scored.logprobs.dtype)
    expected = torch.log_softmax(logits, -1).gather(1, actions[:, None]).squeeze(1)
    return float((scored.logprobs - expected).abs().max()), float(logits.abs().max())


def _picture_difference(model: Any) -> float:
    """The largest difference of logprobs around an image between Policy and the model given ids and pixels.

    Twice the same text with the image in another place, in rows as the model takes them.
    """
    from PIL import Image

    noise = torch.randint(256, (64, 96, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    image = png(Image.fromarray(noise.numpy()))
    text = _text_ids(model, 12)
    parts: list[Context] = [
        model.images.place((*text[:n], model.images.placeholder, *text[n:]), [image]) for n in (3, 7)
    ]
    pixels, grid = (one.to(model.device) for one in model.images.pixels(image))
    logits = []
    for part in parts:
        ids = torch.tensor([part.token_ids], device=model.device)
        kinds = (ids == model.images.placeholder).int()
        found = model(ids, pixel_values=pixels, image_grid_thw=grid[None], mm_token_type_ids=kinds, use_cache=False)
        logits.append(found.logits[0, :-1])
    model.base_model.rope_deltas = None  # what it remembers of that pass
    rows = _pictured_rows(parts).to(model.device)
    scored = Policy(model)(rows).logprobs
    expected = torch.log_softmax(torch.cat(logits).to(scored.dtype), -1).gather(1, rows.action_ids[:, None])
    return float((scored - expected.squeeze(1)).abs().max())


def _text_ids(model: Any, number: int) -> list[int]:
    """Token ids that stand for no picture or video."""
    special = {getattr(model.config, name, None) for name in TOKENS}
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (4 * number,), generator=torch.Generator().manual_seed(3)).tolist()
    return [one for one in ids if one not in special][:number]


def _pictured_rows(parts: Sequence[Context]) -> Rows:
    """Sequences behind each other in one row, every token but their first an action."""
    sizes = [len(one.token_ids) for one in parts]
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    ids = torch.cat([torch.tensor(one.token_ids) for one in parts])
    predictors = torch.cat([torch.arange(n - 1) + start for n, start in zip(sizes, starts, strict=True)])
    return Rows(
        ids[None],
        torch.cat([torch.arange(n) for n in sizes])[None],
        predictors,
        ids[predictors + 1],
        torch.ones(len(predictors)),
        tuple(Branch(start, start + n) for n, start in zip(sizes, starts, strict=True)),
        pictures=tuple(one for part, start in zip(parts, starts, strict=True) for one in moved(part.pictures, start)),
        rotary_ids=torch.cat([rotary_positions(n, one.pictures) for n, one in zip(sizes, parts, strict=True)], 1)[
            :, None
        ],
    )


def _packs(model: Any, scale: float) -> bool:
    """Whether packed rows agree with padded ones, far better than where every token sees all that are before it.

    Nor may positions be ignored. A sliding window is made so short that it shows in rows this small.
    """
    rows = _packed_rows(model)
    policy = Policy(model)
    policy.layout = "shared"
    with _short_window(model.get_decoder()):
        try:
            expected = policy(rows.unpacked()).logprobs
            packed = policy(rows).logprobs
            wrong = policy(replace(rows, branches=(Branch(0, rows.input_ids.shape[1]),))).logprobs
            moved = policy(replace(rows, position_ids=2 * rows.position_ids)).logprobs
        except _FAILURES:  # whatever the architecture makes of its arguments: it cannot take them
            return False
    difference, unmasked = (float((found - expected).abs().mean()) for found in (packed, wrong))
    tolerance: float = torch.finfo(model.dtype).eps ** 0.5 * scale
    return difference <= tolerance and difference < unmasked / 10 and not torch.equal(packed, moved)


@contextmanager
def _as_sdpa(model: Any) -> Iterator[None]:
    """Within it a model with flash attention, which needs a GPU, computes the same by SDPA."""
    name = model.config._attn_implementation
    flash = str(name).startswith("flash_attention")
    if flash:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if flash:
            model.config._attn_implementation = name


@contextmanager
def _short_window(decoder: Any) -> Iterator[None]:
    """Within it layers that look back only so far look back less."""
    holders = [one for one in (decoder.config, *decoder.modules()) if getattr(one, "sliding_window", None) is not None]
    windows = [one.sliding_window for one in holders]
    try:
        for one in holders:
            one.sliding_window = _WINDOW
        yield
    finally:
        for one, window in zip(holders, windows, strict=True):
            one.sliding_window = window


def _packed_rows(model: Any) -> Rows:
    """Two trees: 5 tokens and then 6, 4 and 5; 5 tokens and then 7 and 2."""
    branches = (
        Branch(0, 11),
        Branch(11, 15, ((0, 5),)),
        Branch(15, 20, ((0, 5),)),
        Branch(20, 32),
        Branch(32, 34, ((20, 25),)),
    )
    positions = torch.cat([torch.arange(one.depth, one.depth + one.stop - one.start) for one in branches])
    width = len(positions)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids, actions = torch.randint(vocabulary, (2, width), generator=torch.Generator().manual_seed(1))
    rows = Rows(ids[None], positions[None], torch.arange(width), actions, torch.ones(width), branches)
    return rows.to(model.device)


def _rows(ids: Tensor, predictors: Tensor, actions: Tensor) -> Rows:
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return Rows(ids, positions, predictors, actions, torch.ones(len(actions), device=ids.device))
