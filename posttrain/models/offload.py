"""What the backward pass reads, kept on the host in the meantime: room on the GPU for time on the bus.

With gradient checkpointing it is the inputs of the layers alone. Not covered: copies that overlap with computation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

SMALLEST_BYTES = 1 << 20
"""Less than this is not worth a copy."""


def on_gpu(tensor: Tensor) -> bool:
    """Whether a copy on the host frees room that is scarce."""
    return tensor.is_cuda


def offload_activations(policy: nn.Module, wanted: Callable[[Tensor], bool] = on_gpu) -> None:
    """Have `policy`'s forward pass keep what it saves for backward on the host; weights stay where they are.

    wanted: which of the saved tensors of SMALLEST_BYTES or more are moved; the others are kept as they are.
    """
    entered: list[saved_tensors_hooks] = []

    def enter(module: nn.Module, _inputs: Any) -> None:
        weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}

        def pack(tensor: Tensor) -> tuple[torch.device | None, Tensor]:
            large = tensor.numel() * tensor.element_size() >= SMALLEST_BYTES
            if not large or not wanted(tensor) or tensor.untyped_storage().data_ptr() in weights:
                return None, tensor
            host = torch.empty_like(
                tensor, device="cpu", pin_memory=tensor.is_cuda
            )  # compiled kernels read its strides
            return tensor.device, host.copy_(tensor)

        entered.append(saved_tensors_hooks(pack, _unpack))
        entered[-1].__enter__()

    def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        entered.pop().__exit__(None, None, None)

    policy.register_forward_pre_hook(enter)
    policy.register_forward_hook(leave, always_call=True)


def _unpack(packed: tuple[torch.device | None, Tensor]) -> Tensor:
    device, tensor = packed
    return tensor if device is None else tensor.to(device, non_blocking=True)
