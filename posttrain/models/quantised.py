"""Frozen weights in four bits under an adapter (QLoRA, arXiv 2305.14314), through bitsandbytes.

The linear layers of the decoder are quantised; embeddings, norms, a vision tower and the output head stay as they are.
Whatever leaves the trainer is plain: samplers and `final/` get what the quantised weights stand for, in the model's own
type.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.config.schema import ModelSettings

BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Of a weight in nf4: its own, an 8-bit scale for 64 of them, and a scale of 256 of these scales."""


def quantization_config(settings: ModelSettings, *, sees: bool = False) -> Any:
    """transformers' config for `settings.quantization`; the scales are quantised too. sees: there is a vision tower."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, settings.dtype),
        llm_int8_skip_modules=["model.visual", "lm_head"] if sees else None,
    )


def is_quantised(module: Any) -> bool:
    """Whether a model, or one of its layers, holds quantised weights."""
    if isinstance(module, nn.Linear):
        return hasattr(module.weight, "quant_state")
    return getattr(module, "quantization_method", None) is not None


def keep_exact(model: Any) -> None:
    """Have the layers keep the weights they were loaded with: on some CPUs bitsandbytes would round them when used.

    Their scales stay out of state dicts, which could not take them in again: a run loads them from `model.path`.
    """
    for layer in quantised_layers(model).values():
        layer.support_avx512bf16_for_cpu = False  # scales to bfloat16, in place, in eval mode
        layer.register_state_dict_post_hook(_without_scales)


def _without_scales(_layer: Any, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for name in [name for name in state if name.startswith(prefix + "weight.")]:
        del state[name]


def whole_weight(layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """What the quantised weight of `layer` stands for, [out, in]."""
    from peft.utils.integrations import dequantize_module_weight

    weight: Tensor = dequantize_module_weight(layer)
    return weight.detach().to(dtype)


def quantised_layers(model: Any) -> dict[str, Any]:
    """The quantised layers of a model by name."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: layer for name, layer in linear.items() if is_quantised(layer)}


def whole_tensor(name: str, tensor: Tensor, layers: Mapping[str, nn.Linear], dtype: torch.dtype) -> Tensor:
    """An entry of a state dict as in the plain model."""
    owner, _, field = name.rpartition(".")
    return whole_weight(layers[owner], dtype) if field == "weight" and owner in layers else tensor


def whole_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Weights of a quantised model without an adapter, as in the plain model; of tied ones the first."""
    layers = quantised_layers(model)
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, whole_tensor(name, tensor, layers, model.dtype).detach()


def plain(model: Any) -> Any:
    """`model` itself, or for a quantised one a model with plain weights that computes what it stands for."""
    if not is_quantised(model):
        return model
    made = plain_shell(model, "cpu")
    made.load_state_dict(dict(whole_weights(model)), strict=False)
    made.tie_weights()
    made.row_layout = model.row_layout
    if hasattr(model, "images"):
        made.images = model.images
    return made.to(model.device).eval()


def plain_shell(model: Any, device: str = "meta") -> Any:
    """A plain model with the config of a quantised one, its weights not set."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    with torch.device(device), torch.random.fork_rng(devices=[]):
        shell = type(model)._from_config(config, dtype=model.dtype)
    shell.generation_config = copy.deepcopy(model.generation_config)
    return shell


def quantised_bytes(model: Any, dtype: torch.dtype) -> int:
    """What a plain model in `dtype` will take once its decoder's linear layers are quantised."""
    linear = {id(m.weight) for m in model.get_decoder().modules() if isinstance(m, nn.Linear)}
    sizes = {id(p): p.numel() * (BITS / 8 if id(p) in linear else dtype.itemsize) for p in model.parameters()}
    return int(sum(sizes.values()))
