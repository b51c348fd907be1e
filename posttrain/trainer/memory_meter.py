"""Measured memory: the most that this process has held since some moment, in bytes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class MemoryMeter:
    """Measures from the moment it is made.

    On CUDA what torch has allocated on the current device, weights and all. Elsewhere the growth of the resident set
    beyond what the process held already; where the kernel does not let the former peak be forgotten, at least that.
    """

    def __init__(self) -> None:
        self._cuda = torch.cuda.is_available()
        self._base = 0
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        with suppress(OSError):
            _RESET.write_text("5")
        self._base = _resident("VmRSS")

    def peak_bytes(self) -> int:
        """The most so far."""
        if self._cuda:
            return int(torch.cuda.max_memory_allocated())
        return max(0, _resident("VmHWM") - self._base)


def _resident(field: str) -> int:
    """A figure of the process's status, which the kernel gives in KiB; 0 where there is no such file."""
    if not _STATUS.exists():
        return 0
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])
