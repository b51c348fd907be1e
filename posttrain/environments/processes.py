"""Environments whose episodes live in processes of their own: what is not thread-safe, crashes, or starts browsers.

The code of an episode is plain and synchronous (`Playable`). Each process holds many episodes and answers one call at a
time. A call that outlasts its deadline, or whose process dies, fails its own episode and the others of that process
(failed episodes are data: they are played again or stay ungraded, and are counted); the next reset finds a new process.
"""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from posttrain import children
from posttrain.environments import Episode, Observation, Step
from posttrain.environments.process_worker import Answer, Call, Raised, Setup
from posttrain.errors import PosttrainError, RunError
from posttrain.trajectory import Prompt

START_SECONDS = 120.0


class Playable(Protocol):
    """The code of one episode, made in the worker process with the environment's settings as keywords.

    A method `expert(self) -> str | None`, as `environments.Guided`, is optional.
    """

    def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
        """Begin the episode of a data row; the same row and seed begin the same."""
        ...

    def step(self, action: str) -> Step:
        """Answer the policy's completion."""
        ...

    def close(self) -> None:
        """Free what the episode holds."""
        ...


class EpisodeLostError(Exception):
    """An episode's process died, hung, or its code raised: the episode failed, the program goes on."""


@dataclass
class InProcesses:
    """The `Environment` of episodes of `make` ("module:Class"), each made with `settings`.

    processes: most of them, started when they are needed. episodes_per_process: places in each; all together are the
    capacity. deadline_seconds: of one call. RunError where a process does not start.
    """

    make: str
    settings: Mapping[str, Any]
    processes: int = 2
    episodes_per_process: int = 32
    deadline_seconds: float = 60.0
    _hosts: list[_Host] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        """Hosts are killed with the environment, at the latest at the interpreter's exit."""
        self._end = weakref.finalize(self, _kill_all, self._hosts, os.getpid())

    @property
    def capacity(self) -> int:
        """All places."""
        return self.processes * self.episodes_per_process

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, Episode]:
        """A new episode in the process that has most room."""
        host = self._host()
        episode = _Remote(host, host.lease())
        try:
            observation: Observation = await episode.call("reset", dict(columns), seed)
        except BaseException:
            await episode.close()
            raise
        return observation, episode

    def close(self) -> None:
        """Kill the processes and what they started."""
        for host in self._hosts:
            host.thread.shutdown(wait=False, cancel_futures=True)
        _kill_all(self._hosts, os.getpid())

    def _host(self) -> _Host:
        for host in [host for host in self._hosts if host.dead is not None]:
            host.thread.shutdown(wait=False)
            self._hosts.remove(host)
        free = min(self._hosts, key=lambda host: len(host.open), default=None)
        if free is None or (free.open and len(self._hosts) < self.processes):
            free = _Host(Setup(self.make, dict(self.settings)), self.deadline_seconds)
            self._hosts.append(free)
        return free


class _Host:
    """A process, the episodes in it, and the one thread that talks to it."""

    def __init__(self, setup: Setup, deadline_seconds: float) -> None:
        self.child = children.start("posttrain.environments.process_worker:main")
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="environment")
        self.open: set[int] = set()
        self.dead: str | None = None
        self._deadline_seconds = deadline_seconds
        self._started = False
        self._number = 0
        self.child.pipe.send(setup)

    def lease(self) -> int:
        """A place for one more episode: its number."""
        self._number += 1
        self.open.add(self._number)
        return self._number

    def ask(self, call: Call) -> Any:
        """The answer to a call, in the host's thread; EpisodeLostError where there is none, or an error of ours."""
        if self.dead is not None:
            raise EpisodeLostError(self.dead)
        try:
            if not self._started:
                self._receive(START_SECONDS, "start")
                self._started = True
            self.child.pipe.send(call)
            return self._receive(self._deadline_seconds, call.method)
        except (EOFError, OSError) as error:
            code = self._lose("its process died")
            raise EpisodeLostError(f"{call.method}: the environment's process ended with status {code}") from error

    def _receive(self, seconds: float, what: str) -> Any:
        began = time.monotonic()
        if not self.child.pipe.poll(seconds):
            self._lose(f"{what} had no answer after {seconds:g} s")
            raise EpisodeLostError(f"{what}: no answer after {time.monotonic() - began:.1f} s")
        answer: Answer | Raised = self.child.pipe.recv()
        if isinstance(answer, Answer):
            return answer.value
        if isinstance(answer.error, PosttrainError):
            raise answer.error
        if what == "start":
            self._lose(answer.text)
            raise RunError(f"an environment's process cannot start: {answer.text}")
        raise EpisodeLostError(answer.text)

    def _lose(self, why: str) -> int:
        self.dead = f"another episode's call ended the process they shared: {why}"
        return self.child.kill()


@dataclass
class _Remote:
    """An `Episode` in a process."""

    host: _Host
    number: int

    async def step(self, action: str) -> Step:
        """The process's answer."""
        step: Step = await self.call("step", action)
        return step

    async def expert(self) -> str | None:
        """What the episode's expert would do, where it has one."""
        action: str | None = await self.call("expert")
        return action

    async def close(self) -> None:
        """Give the place back; an episode whose process is gone holds nothing."""
        if self.number in self.host.open:
            self.host.open.discard(self.number)
            if self.host.dead is None:
                await self.call("close")

    async def call(self, method: str, *arguments: Any) -> Any:
        """Ask the process; calls of one process wait for each other."""
        if self.host.dead is not None:
            raise EpisodeLostError(self.host.dead)
        asked = self.host.thread.submit(self.host.ask, Call(self.number, method, arguments))
        return await asyncio.wrap_future(asked)


def _kill_all(hosts: list[_Host], owner: int) -> None:
    if os.getpid() != owner:  # a fork of the process that started them
        return
    while hosts:
        host = hosts.pop()
        host.dead = host.dead or "the environment was closed"
        host.child.kill()
