"""Calls of rewards on processes that can be killed, each call with its own deadline and memory limit.

Workers are plain subprocesses (no import of the parent's `__main__`, no torch) that answer every call of a chunk at
once, so the parent always knows which call is running: a hang costs one deadline and a death one call, and the rest of
the chunk goes back to the queue. This is why there is no library here: pebble 5.2 times whole tasks, takes os._exit(0)
for a timeout, and stops for good when an idle worker dies.
"""

from __future__ import annotations

import os
import signal
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from posttrain import children
from posttrain.errors import RunError, UserError
from posttrain.reward.worker import Answer, Begun, Call, Failure, Leaving, Mistake, Setup, Started

START_SECONDS = 120.0
MAX_FAILED_STARTS = 3
MAX_CHUNK = 32


@dataclass(eq=False)
class _Worker:
    """ready: it answered its start. calls: indices sent and not yet answered; begun: the first of them is running.

    since: when the present state (starting, idle, sent, running) began.
    """

    child: children.Child
    since: float
    ready: bool = False
    calls: deque[int] = field(default_factory=deque)
    begun: bool = False

    @property
    def pipe(self) -> Connection[Any, Any]:
        """This side of it."""
        return self.child.pipe


class WorkerPool:
    """`num_workers` processes that hold the rewards of `setup`; started by the constructor, which does not wait.

    Not thread-safe: one `run` at a time.
    """

    def __init__(self, setup: Setup, num_workers: int) -> None:
        self._setup = setup
        self._num_workers = num_workers
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._deadlines: list[float] = []  # of the calls of the present run
        self._end = weakref.finalize(self, _kill_all, self._workers, os.getpid())
        self._fill()

    def close(self) -> None:
        """Kill the workers; also happens at interpreter exit."""
        self._end()

    def run(self, calls: Sequence[Call]) -> list[Answer]:
        """The outcome of each call, in order.

        Raises UserError where a reward raised one, RunError where workers cannot start or the pool is closed.
        """
        if not self._end.alive:
            raise RunError("the reward workers were closed")
        outcomes: dict[int, Answer] = {}
        pending = deque(range(len(calls)))
        self._deadlines = [self._setup.deadlines_seconds[reward] for reward, _ in calls]
        try:
            while len(outcomes) < len(calls):
                self._fill()
                self._send(calls, pending)
                pipes = {worker.pipe: worker for worker in self._workers}
                for pipe in wait(list(pipes), self._seconds_to_deadline()):
                    self._receive(pipes[pipe], outcomes, pending)  # type: ignore[index]
                self._enforce_deadlines(outcomes, pending)
        finally:
            for worker in [worker for worker in self._workers if worker.calls]:  # only where something was raised
                self._remove(worker)
        return [outcomes[index] for index in range(len(calls))]

    def _fill(self) -> None:
        while len(self._workers) < self._num_workers:
            self._workers.append(_start(self._setup))

    def _send(self, calls: Sequence[Call], pending: deque[int]) -> None:
        """Give every idle worker a chunk; chunks shrink towards the end so that all workers finish together."""
        for worker in list(self._workers):
            if not pending or not worker.ready or worker.calls:
                continue
            size = min(MAX_CHUNK, max(1, len(pending) // (2 * self._num_workers)))
            chunk = [pending.popleft() for _ in range(size)]
            try:
                worker.pipe.send([calls[index] for index in chunk])
            except OSError:  # it died while idle
                pending.extendleft(reversed(chunk))
                self._remove(worker)
                continue
            worker.calls.extend(chunk)
            worker.begun = False
            worker.since = time.monotonic()

    def _receive(self, worker: _Worker, outcomes: dict[int, Answer], pending: deque[int]) -> None:
        """Take everything the worker has sent."""
        try:
            while worker.pipe.poll():
                message = worker.pipe.recv()
                worker.since = time.monotonic()
                if isinstance(message, Started):
                    self._started(worker, message)
                elif isinstance(message, Begun):
                    worker.begun = True
                elif isinstance(message, Mistake):
                    raise UserError(message.message)
                elif isinstance(message, Leaving):
                    self._give_up(worker, pending)
                    return
                else:
                    outcomes[worker.calls.popleft()] = message
        except (EOFError, OSError):
            self._died(worker, outcomes, pending)

    def _started(self, worker: _Worker, message: Started) -> None:
        if message.error is not None:
            raise RunError(
                f"a reward worker cannot start under rollout.memory_bytes={self._setup.memory_bytes}: {message.error}"
            )
        worker.ready = True
        self._failed_starts = 0

    def _died(self, worker: _Worker, outcomes: dict[int, Answer], pending: deque[int]) -> None:
        """The running call is the cause; a worker that never got ready counts against starting at all."""
        running = worker.calls.popleft() if worker.begun and worker.calls else None
        returncode = self._give_up(worker, pending)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise RunError(f"reward workers end before they are ready ({_describe(returncode)})")
        if running is not None:
            late = returncode == -signal.SIGALRM
            outcomes[running] = self._late(running) if late else Failure("worker died", _describe(returncode))

    def _enforce_deadlines(self, outcomes: dict[int, Answer], pending: deque[int]) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            limit = self._limit_seconds(worker)
            if limit is None or now - worker.since <= limit or worker.pipe.poll():
                continue
            if not worker.begun:
                raise RunError(f"a reward worker was not ready after {START_SECONDS:g} s")
            running = worker.calls.popleft()
            outcomes[running] = self._late(running)
            self._give_up(worker, pending)

    def _limit_seconds(self, worker: _Worker) -> float | None:
        """How long its present state may last; None: for ever (idle)."""
        if worker.ready and not worker.calls:
            return None
        return self._deadlines[worker.calls[0]] if worker.begun else START_SECONDS

    def _late(self, index: int) -> Failure:
        return Failure("deadline", f"no result after {self._deadlines[index]:g} s")

    def _seconds_to_deadline(self) -> float:
        """How long to wait for messages before a deadline must be looked at."""
        now = time.monotonic()
        limits = [(worker.since, self._limit_seconds(worker)) for worker in self._workers]
        left = [since + limit - now for since, limit in limits if limit is not None]
        return max(0.0, min(left, default=1.0)) + 0.001

    def _give_up(self, worker: _Worker, pending: deque[int]) -> int:
        """End a worker; the calls it did not begin go back to the front of the queue."""
        pending.extendleft(reversed(worker.calls))
        return self._remove(worker)

    def _remove(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        return worker.child.kill()


def _start(setup: Setup) -> _Worker:
    child = children.start("posttrain.reward.worker:main")
    child.pipe.send(setup)
    return _Worker(child, time.monotonic())


def _describe(returncode: int) -> str:
    if returncode < 0:
        return f"signal {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"


def _kill_all(workers: list[_Worker], owner: int) -> None:
    if os.getpid() != owner:  # a fork of the process that started them
        return
    while workers:
        workers.pop().child.kill()
