"""LoRA through peft: small matrices train beside frozen weights (arXiv 2106.09685).

The adapter is injected into the model itself, so everything that reads hidden states stays as it is. What leaves the
trainer is merged: samplers and `final/` get plain weights, one layer at a time. Its base may be quantised (see
`models.quantised`). Not covered: adapters on embeddings and on the output head, whose weight the fused head reads
directly.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.config.schema import LoraSettings
from posttrain.errors import RecipeError
from posttrain.models.policy import Scored
from posttrain.models.quantised import is_quantised, quantised_layers, whole_tensor, whole_weight
from posttrain.models.sharded import whole
from posttrain.models.vision import is_vision, tower_of
from posttrain.rows import Rows

_LAYER = ".base_layer"


def add_lora(model: Any, settings: LoraSettings, seed: int) -> None:
    """Freeze `model` and inject an adapter, initialised from `seed` alone; at first it changes nothing (B = 0).

    A vision tower that is frozen already gets none. RecipeError where target_modules match nothing, or the embeddings
    or the output head.
    """
    from peft import LoraConfig, get_peft_model

    targets = settings.target_modules
    frozen = is_vision(model.config) and not any(p.requires_grad for p in tower_of(model).parameters())
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha if settings.alpha is not None else 2 * settings.rank,
        lora_dropout=settings.dropout,
        target_modules=targets[0] if targets == ["all-linear"] else list(targets),
        use_dora=settings.dora,
        use_rslora=settings.rank_stabilised,
        exclude_modules=r".*\bvisual\..*" if frozen else None,
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            get_peft_model(model, config)
    except ValueError as error:
        linear = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise RecipeError(
            f"lora.target_modules: {targets} cannot be adapted: {str(error).splitlines()[0]}; "
            f"allowed: all-linear, or names among {', '.join(linear)}"
        ) from error
    for which in (model.get_input_embeddings(), model.get_output_embeddings()):
        if _is_adapted(which):
            raise RecipeError("lora.target_modules: embeddings and output head cannot be adapted; leave them out")
    if model.is_gradient_checkpointing:
        model.enable_input_require_grads()  # else no checkpointed block sees an input with a gradient


def has_lora(model: Any) -> bool:
    """Whether `add_lora` was called on it."""
    return any(_is_adapted(module) for module in model.modules())


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Within it the model computes what its frozen weights say."""
    layers = [module for module in model.modules() if _is_adapted(module)]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)
        for parameter in trainable:  # peft freezes what it switches off
            parameter.requires_grad_(True)


class WithoutAdapter(nn.Module):
    """A policy, wrapped for several ranks or not, as it was before its adapter: a reference that costs no memory."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.module = policy

    def forward(self, rows: Rows) -> Scored:
        """As `Policy`'s, by the frozen weights alone."""
        with adapter_off(self.module):
            scored: Scored = self.module(rows)
        return scored


def merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Weights named as in the plain model, W + (alpha / r) B A in place of W; the memory of one layer at a time."""
    layers = {name: module for name, module in model.named_modules() if _is_adapted(module)}
    quantised = quantised_layers(model)
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner = next((prefix for prefix in layers if name.startswith(prefix + ".")), None)
        if id(tensor) in seen or (owner is not None and not name.startswith(owner + _LAYER)):
            continue
        seen.add(id(tensor))
        if owner is not None and name == owner + _LAYER + ".weight":
            with whole(*layers[owner].parameters()) as parameters:
                yield name.replace(_LAYER, ""), _merged(layers[owner], parameters)
            continue
        with whole(tensor) as (found,):
            yield name.replace(_LAYER, ""), whole_tensor(name, found, quantised, model.dtype)


def adapter_weights(model: Any) -> dict[str, Tensor]:
    """The adapter's own weights, named as peft stores them."""
    from peft import get_peft_model_state_dict

    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with whole(*trained.values()) as tensors:
        state = {name: tensor.clone() for name, tensor in zip(trained, tensors, strict=True)}
    found = get_peft_model_state_dict(model, state, adapter_name="default")
    return {f"base_model.model.{name}": tensor.contiguous().cpu() for name, tensor in found.items()}


def save_adapter(model: Any, weights: dict[str, Tensor], directory: Path) -> None:
    """Write the adapter as peft stores one: adapter_config.json and adapter_model.safetensors."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    model.peft_config["default"].save_pretrained(directory)


def _merged(layer: Any, parameters: Sequence[Tensor]) -> Tensor:
    """The layer's weight with its adapter in it, from its whole parameters; the layer stays as it is."""
    from peft.tuners.lora.layer import Linear

    base = layer.get_base_layer()
    copies: dict[int, Any] = {}
    if not is_quantised(base):
        new = [nn.Parameter(tensor.clone(), requires_grad=False) for tensor in parameters]
        copies = {id(own): one for own, one in zip(layer.parameters(), new, strict=True)}
    alone = copy.deepcopy(layer, copies)
    if is_quantised(base):  # peft would quantise the sum again
        alone.base_layer = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
        alone.base_layer.weight = nn.Parameter(whole_weight(base, layer.lora_A["default"].weight.dtype))
        Linear.merge(alone)
    else:
        alone.merge()
    weight: Tensor = alone.get_base_layer().weight
    return weight.detach()


def _is_adapted(module: Any) -> bool:
    return hasattr(module, "base_layer") and hasattr(module, "enable_adapters")
