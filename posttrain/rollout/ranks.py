"""What the ranks of a run tell one another beside the trainer: over a process group of its own, from any thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_T = TypeVar("_T")


class Ranks:
    """All ranks of the run; every rank must make one at the same point, and call `of_main` alike."""

    def __init__(self) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.number: int = torch.distributed.get_world_size() if distributed else 1
        self.is_main = not distributed or torch.distributed.get_rank() == 0
        self._group: Any = torch.distributed.new_group(backend="gloo") if self.number > 1 else None

    def of_main(self, action: Callable[[], _T]) -> _T:
        """Run `action` on every rank and wait for all; the main rank's result, or the first error of any."""
        result: Any = None
        error: Exception | None = None
        try:
            result = action()
        except Exception as raised:  # raised on every rank below
            if self.number == 1:
                raise
            error = raised
        if self.number == 1:
            return result  # type: ignore[no-any-return] # what `action` gave
        found: list[Any] = [None] * self.number
        torch.distributed.all_gather_object(found, (result if self.is_main else None, error), group=self._group)
        if error is not None:
            raise error
        for _, other in found:
            if other is not None:
                raise other
        main: _T = found[0][0]
        return main
