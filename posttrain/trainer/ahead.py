"""Windows that are played while the trainer updates, in a thread of their own; without staleness, in the trainer's.

Window w is sampled by the policy as it was before window max(0, w - max_staleness): which one never depends on how
long anything takes, so a run ahead of itself repeats exactly. All windows are played in their order, and what the main
thread does besides (updates, judging, scoring, every collective of the trainer) never waits for more than the next one.
Not covered: stopping a generation halfway; whoever waits for what is in flight waits for all of it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from posttrain.trainer.redraw import Gather
from posttrain.trainer.sampler import Weights
from posttrain.trainer.window import Window

_LAST_SECONDS = 10.0

Play = Callable[[int, Weights | None], Window]
"""Draws and plays a window with the weights given; None where nothing is sampled."""


class Ahead:
    """A queue of windows to play, and those that are played and not taken yet.

    threaded False plays each within `put`. An error of the thread is raised by the next call of any method, with its
    own traceback, whichever window that call is about.
    """

    def __init__(self, play: Play, *, threaded: bool) -> None:
        self._play = play
        self._threaded = threaded
        self._asked: deque[tuple[int, Weights | None]] = deque()
        self._played: deque[Window] = deque()
        self._changed = threading.Condition()
        self._num_open = 0
        self._error: BaseException | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def put(self, index: int, weights: Weights | None) -> None:
        """Have window `index` played after those that were asked for before."""
        self.check()
        if not self._threaded:
            self._played.append(self._play(index, weights))
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)
            self._thread.start()
        with self._changed:
            self._asked.append((index, weights))
            self._num_open += 1
            self._changed.notify_all()

    def take(self) -> Window:
        """The next window, once it is there."""
        self._wait(lambda: bool(self._played))
        return self._played.popleft()

    def settle(self) -> Sequence[Window]:
        """Wait for everything that was asked for; the windows that are played and not taken."""
        self._wait(lambda: self._num_open == 0)
        return tuple(self._played)

    def hold(self, windows: Sequence[Window]) -> None:
        """Windows of a checkpoint, to be taken before any other."""
        self._played.extend(windows)

    def check(self) -> None:
        """Raise what has failed in the thread."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Play nothing more. A generation in flight is given some seconds to end, then left to the process's end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_LAST_SECONDS)

    def _wait(self, ready: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: ready() or self._error is not None)
        self.check()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._asked) or self._closed)
                if self._closed:
                    return
                index, weights = self._asked.popleft()
            try:
                window = self._play(index, weights)
            except BaseException as error:  # the main thread raises it
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            del weights
            with self._changed:
                self._played.append(window)
                self._num_open -= 1
                self._changed.notify_all()


def gather_aside(accelerator: Any, deadline_seconds: float) -> Gather:
    """`of_all_ranks` for the players: over a process group of its own, beside whatever the main threads exchange.

    deadline_seconds: how long a rank waits for another; a group of its own does not inherit the trainer's.
    """
    import torch

    if accelerator.num_processes == 1:
        return list
    group: Any = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=deadline_seconds))

    def gather(values: list[int]) -> list[int]:
        found: list[list[int]] = [[] for _ in range(accelerator.num_processes)]
        torch.distributed.all_gather_object(found, values, group=group)
        return [value for one in found for value in one]

    return gather
