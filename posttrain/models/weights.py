"""A model's weights by name, for samplers to take over, and a digest that tells two sets of weights apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from posttrain.models.lora import has_lora, merged_weights
from posttrain.models.quantised import is_quantised, whole_weights
from posttrain.models.sharded import whole


def named_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers of the Hugging Face model, named as in its state dict; of tied ones the first.

    Under the plain model's names, those of a model with an adapter come merged, quantised ones as what they stand for.
    """
    if has_lora(model):
        yield from merged_weights(model)
        return
    if is_quantised(model):
        yield from whole_weights(model)
        return
    parameters = dict(model.named_parameters())
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - parameters.keys()
    for name, tensor in model.state_dict().items():
        if name not in tied:
            with whole(parameters.get(name, tensor)) as (found,):
                yield name, found


def digest(model: Any) -> str:
    """SHA-256 over names, shapes, types and bytes of the weights: another string where any bit differs."""
    found = hashlib.sha256()
    for name, tensor in named_weights(model):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
