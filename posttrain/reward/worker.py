"""The process that calls rewards: started by `posttrain.reward.pool`, one call at a time, every outcome sent at once.

It holds itself to a memory limit and a deadline (so that it also ends where its parent was killed), ignores Ctrl-C (the
trainer finishes its step), and ends when its parent's side of the pipe closes. A reward file that imports heavy
packages may define `warm_up()`, or `warm_up(**settings)`: it is called before the first call, outside any deadline.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from posttrain import catalog
from posttrain.errors import UserError
from posttrain.reward.graded import Graded, Measured
from posttrain.reward.signature import is_batched, is_grouped

Reward = Callable[..., Any]
Call = tuple[int, dict[str, Any]]
"""Which reward, and its inputs."""

MESSAGE_CHARACTERS = 300
ORPHAN_SECONDS = 1.0


@dataclass(frozen=True)
class Setup:
    """What a worker is told first. rewards: name and settings of each; deadlines_seconds: of a call of each."""

    rewards: tuple[tuple[str, dict[str, Any]], ...]
    deadlines_seconds: tuple[float, ...]
    memory_bytes: int


@dataclass(frozen=True)
class Failure:
    """Why a call has no value. kind: an exception's type, "deadline", "worker died", "memory", "returned None", ..."""

    kind: str
    message: str


@dataclass(frozen=True)
class Mistake:
    """A UserError of a reward: the recipe or the data is wrong, not the rollout."""

    message: str


@dataclass(frozen=True)
class Started:
    """The worker is ready, or says why it cannot be."""

    error: str | None = None


@dataclass(frozen=True)
class Begun:
    """The worker has its list of calls and starts with the first."""


@dataclass(frozen=True)
class Leaving:
    """The worker has grown large and ends itself; the rest of its calls is undone."""


Outcome = float | Failure
Answer = Outcome | list[Outcome]
"""What comes of a call: one outcome, or where it was about a whole group, one for each trajectory."""


def main(descriptor: int) -> None:
    """Serve the pipe `descriptor` until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(descriptor, False)
    logging.disable(logging.CRITICAL)
    pipe: Connection[Any, Any] = Connection(descriptor)
    try:
        setup: Setup = pipe.recv()
        _limit(setup.memory_bytes)
        try:
            rewards = [_load(name, settings) for name, settings in setup.rewards]
        except Exception as error:  # the boundary of rewards: their files run here
            pipe.send(Started(_one_line(error)))
            return
        pipe.send(Started())
        while _serve(pipe, rewards, setup):
            pass
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone


def _limit(memory_bytes: int) -> None:
    """Limit the address space (Linux; elsewhere the kernel does not keep such limits) and write no core files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _load(name: str, settings: dict[str, Any]) -> Reward:
    function = catalog.find("rewards", name)
    warm_up = getattr(sys.modules[function.__module__], "warm_up", None)
    if warm_up is not None:
        warm_up(**(settings if inspect.signature(warm_up).parameters else {}))
    reward = partial(function, **settings)
    if is_grouped(function):
        return partial(_each, reward)
    return partial(_only_one, reward) if is_batched(function) else reward


def _only_one(reward: Reward, **inputs: Any) -> Any:
    """The value of a batch of one."""
    (value,) = reward(**inputs)
    return value


class _Each(list[Any]):
    """The values of a group's trajectories."""


def _each(reward: Reward, **inputs: Any) -> _Each:
    """The values of a batch, as many as it has."""
    values = _Each(reward(**inputs))
    count = len(next(iter(inputs.values())))
    if len(values) != count:
        raise ValueError(f"{len(values)} values for {count} completions")
    return values


def _serve(pipe: Connection[Any, Any], rewards: Sequence[Reward], setup: Setup) -> bool:
    """Answer one list of calls; False where the worker should end."""
    calls: list[Call] = pipe.recv()
    pipe.send(Begun())
    for index, inputs in calls:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, setup.deadlines_seconds[index] + ORPHAN_SECONDS)
        outcome = _call(rewards[index], inputs)
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send(outcome)
        if _resident_bytes() > setup.memory_bytes / 2:
            pipe.send(Leaving())
            return False
    return True


def _call(reward: Reward, inputs: dict[str, Any]) -> Answer | Mistake:
    """What one call returned, or why there is nothing."""
    try:
        value = reward(**inputs)
        return [_outcome(one) for one in value] if isinstance(value, _Each) else _outcome(value)
    except UserError as error:
        return Mistake(str(error))
    except MemoryError as error:
        return Failure("memory", _one_line(error))
    except Exception as error:  # the boundary of rewards
        return Failure(type(error).__name__, _one_line(error))


def _outcome(value: Any) -> Outcome:
    if value is None:
        return Failure("returned None", "the reward could not grade it")
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        return Failure("not a number", f"returned {value!r:.100}")
    number = value if isinstance(value, Graded | Measured) else float(value)
    return number if math.isfinite(number) else Failure("not finite", f"returned {number}")


def _one_line(error: BaseException) -> str:
    name = type(error).__name__
    text = " ".join(str(error).split())
    return (f"{name}: {text}" if text else name)[:MESSAGE_CHARACTERS]


def _resident_bytes() -> int:
    """Memory held now, where a limit is kept (rusage would tell the parent's peak, which exec hands on)."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
