"""Finish the step, write a checkpoint, say how to resume: what SIGINT and SIGTERM ask for."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Any

_ONE_REQUEST_SECONDS = 2.0


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets `received`; a later one ends the process at once.

    What comes right after the first belongs to it: a rank is sent one by the terminal or the scheduler, which reach
    every process, and another by its launcher, which passes its own on.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._since = 0.0
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if time.monotonic() - self._since > _ONE_REQUEST_SECONDS:
                sys.exit(128 + number)
            return
        self.received, self._since = signal.Signals(number), time.monotonic()
        print(f"\n{self.received.name}: finishing this step, then writing a checkpoint (again: stop now)", flush=True)
