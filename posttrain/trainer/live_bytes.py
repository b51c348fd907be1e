"""What a computation holds in memory, counted without running it: tensors that have shapes and no data.

Every operation of torch passes through `LiveBytes`, which adds up the storages that are alive. Exact for tensors;
what a kernel uses inside itself, and what an allocator loses to fragments, is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_SMALL_NUMEL = 1 << 12  # two such may make a table of 2^22, no more
_BOOKKEEPING_NUMEL = 1 << 16


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, while it is entered, the bytes of the storages that operations make: alive now, and at most so far."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def forget_peak(self) -> None:
        """Measure the peak from here on."""
        self.peak = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and count what is new in its result."""
        given = kwargs or {}
        result = _run(func, args, given)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        weakref.finalize(storage, self._free, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _free(self, size: int) -> None:
        self.now -= size


@contextmanager
def without_data() -> Iterator[LiveBytes]:
    """Within it tensors that are made have no data, and their bytes are counted.

    Tensors made before are real. What is computed from them alone stays real as long as it is small or its shape
    depends on data: masks, positions and indices of rows can be looked at.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        yield live


def materialise(module: nn.Module) -> None:
    """Give a module of the meta device tensors on the CPU; within `without_data`, where they have no data."""
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                empty = torch.empty_like(parameter, device="cpu")
                made.setdefault(id(parameter), nn.Parameter(empty, requires_grad=parameter.requires_grad))
                part._parameters[name] = made[id(parameter)]  # type: ignore[assignment]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = made.setdefault(id(buffer), torch.empty_like(buffer, device="cpu"))


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors or any(isinstance(tensor, FakeTensor) for tensor in tensors):
        return func(*args, **kwargs)
    if func._schema.is_mutable or sum(tensor.numel() for tensor in tensors) <= _SMALL_NUMEL:
        return _for_real(func, args, kwargs)
    try:
        shaped = func(*args, **kwargs)
    except (DataDependentOutputException, DynamicOutputShapeException):
        return _for_real(func, args, kwargs)
    numel = sum(leaf.numel() for leaf in tree_leaves(shaped) if isinstance(leaf, Tensor))
    return shaped if numel > _BOOKKEEPING_NUMEL else _for_real(func, args, kwargs)


def _for_real(func: Any, args: Any, kwargs: Any) -> Any:
    with unset_fake_temporarily():
        return func(*args, **kwargs)
